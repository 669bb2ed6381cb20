package journal

// stateMessage is the message by which the daemon logs a change of state, with
// the new one as "now".
const stateMessage = "state"

// ID is a kind of record that is worth looking for.
type ID struct {
	ID    string // MESSAGE_ID, 128 bits; it never changes
	State string // of a change of state; empty: of another message
	Text  string // the message, or what the state means
}

// IDs are all of them. An ID is never used for anything else.
func IDs() []ID {
	return []ID{
		{"bb4b95c4f9ab4107b67c6540dfcfdd06", "syncing", "a standby is made, or made anew"},
		{"52f1521cac3649739cb4a50398f2c7d7", "protected", "the guest survives the loss of a host (primary)"},
		{"43567de8c8a14f40a8fd91a87a021189", "standby", "the same (backup)"},
		{"c4fe0d51577e4930a14d6f2f430277c4", "undecided", "the backup is lost, and who goes on is not known"},
		{"67cd04251cf34feb809ba5b79740cfb2", "alone", "the guest goes on without a backup"},
		{"0cc20e74e8e14c8f8f91812bf60b7530", "fenced", "the backup went on: this copy is paused, and destroyed"},
		{"aad989479a6d4bc7b0e843cfa269fadb", "orphaned", "the primary's daemon is gone"},
		{"d251449c1fee4afeac3816d82ffb72c9", "claiming", "the primary is lost: the right to go on is claimed"},
		{"d7028fbc3a42488e946a36d7cd501fc1", "active", "failover: the guest runs on the backup's host now"},
		{"632882cd6fd34cb3aea9dfdc6cbd7b15", "failed", "the standby cannot go on"},
		{"c100db8ad7f44192a835a0b00fde574c", "stopped", "the protection ended"},
		{"4d23960764bb41e1920029c5f7489ff0", "", "stalled: the guest's output waits"},
		{"831bb564aecf4caba0c6b4c0c2187323", "", "the guest's output flows again"},
		{"e5e1f908e8044ec2b6448656550c1747", "", "the fate of a lost guest is known"},
	}
}

// MessageID returns the ID of a record with that message and state; "" for most.
func MessageID(message, state string) string {
	for _, id := range IDs() {
		if id.State == "" && id.Text == message || id.State != "" && message == stateMessage && id.State == state {
			return id.ID
		}
	}
	return ""
}
