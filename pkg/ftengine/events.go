package ftengine

import "time"

// What a runner owes its machine:
//   - Every event of a session comes before its SessionDown, and after
//     CloseSession nothing of that session comes, not even SessionDown.
//   - Capture, Claim, MakeStandby, RemakeStandby, Load, Confirm, Resume and
//     RetryAfter are each answered exactly once, also when nobody waits for
//     the answer any more.
//   - PaceDue comes once after each answer to Capture. The last Capture of a
//     hand over, and a final one, are asked for without waiting for it.
//   - A Capture may be asked for while PauseGuest holds our guest: it stays
//     paused. Capture{Final} is asked for when QEMU is gone.
//   - The work on the standby (MakeStandby, RemakeStandby, Commit, Rehearse,
//     Load, Resume, DestroyStandby) is done, and answered, in the order asked.
//     Only a rehearsal, once it has its copy of the checkpoint, may go on
//     beside later work; DestroyStandby ends it, and after that it is not
//     answered any more.
//   - CaptureFailed{k} says that the backup was not sent all of epoch k, and
//     never will be: it cannot acknowledge it.
//   - Commit of a final epoch is answered whatever becomes of the standby: only
//     disks are written. They get what was acknowledged also if the daemon dies
//     before, from their journal.
//   - StandbyDied is not told of a standby that DestroyStandby ended.
//   - A backup's Claim reaches the arbiter only when the lease of the primary's
//     last session is surely over, except Because HandedOver: the gate was
//     sealed before that was said, and the guest dead or paused. The lease is counted from the last heartbeat
//     that was answered. CloseSession comes before such a Claim and closes, at
//     the backup, also a connection that was let in and whose SessionUp has
//     not come yet: no heartbeat is answered any more.
//   - What the gate does outlives the daemon: with the daemon dead, or frozen,
//     nothing that is to be held leaves, and RestorePrimary finds it as it was.
//     What is held when it is sealed stays held: OpenGate may come yet.
//   - HandOver is answered once, by Refuse or Switched, unless the machine ended
//     before it heard of it. While one is not answered, another one and
//     OperatorActivate have a Refuse of their own at once.
//   - With an arbiter that leaves decisions to a person, the primary's GuestDead
//     is a person's word at the backup: Claim{HandedOver} wins there.
//   - Connect while it dials already, PauseGuest of a paused guest, and
//     WatchWinner of a generation that is watched already change nothing.
//   - Withdraw is tried until the arbiter took it or says that somebody else
//     holds the right, and a later Claim waits for that: until then the other
//     side stays paused. The marker of a machine that asked for it says so
//     until then, so that a restarted daemon (RestoreBackup) asks again.

// Events that both sides know.
type (
	// SessionUp: a session with the peer was agreed on. To the backup it
	// brings the primary's Generation. To the primary it brings what the
	// peer holds itself: 0, or a generation it won, and whether it runs.
	SessionUp struct {
		Generation Generation
		PeerRuns   bool
	}
	// SessionDown: the session ended.
	SessionDown struct{ How Loss }
	// ClaimDone answers Claim.
	ClaimDone struct {
		Generation Generation
		Verdict    Verdict
	}
	// Retry answers RetryAfter with its token.
	Retry struct{ Token uint64 }
	// OperatorActivate: virt-ft activate, a person's word that the guest is to
	// go on on this host alone. Force skips what protects against the other
	// side's copy: a primary that may still run, a backup that was told to go on.
	OperatorActivate struct{ Force bool }
)

// Events of the primary.
type (
	// PeerDropped: the backup let go of all that it held for older sessions.
	// Making a standby, and finding out what its disks hold, takes longer.
	PeerDropped struct{}
	// StandbyReady: the backup made its standby and takes pages now.
	StandbyReady struct{}
	// Captured answers Capture: checkpoint Epoch is queued for shipping.
	Captured struct{ Epoch Epoch }
	// CaptureFailed answers Capture: nothing of Epoch may be committed; the
	// guest runs on and its dirty pages are part of the next capture.
	CaptureFailed struct {
		Epoch Epoch
		// Fatal: the capture session itself is unusable (for instance our
		// descriptor in QEMU is gone) and must be opened again.
		Fatal bool
	}
	// Acked: the backup holds all of Epoch and of those before it.
	Acked struct{ Epoch Epoch }
	// Rehearsed: a scratch QEMU on the backup did or did not load the first
	// checkpoint.
	Rehearsed struct {
		OK     bool
		Reason string
	}
	// PaceDue: the next epoch may end now.
	PaceDue struct{}
	// GuestGone: QEMU ended. Orderly means by the guest's or an operator's
	// wish, so that nobody wants it to go on elsewhere.
	GuestGone struct {
		Orderly bool
		Reason  string
	}
	// WinnerRunning: the arbiter shows that the winner of the generation we
	// lost runs the guest.
	WinnerRunning struct{}
	// WinnerWithdrew: the winner handed the right back before it ran.
	WinnerWithdrew struct{}
	// PeerStoodDown: the backup let go of its standby.
	PeerStoodDown struct{}
	// PeerActivated: the backup says that it runs the guest now.
	PeerActivated struct{ Generation Generation }
	// Unprotect: the operator ends the protection; the guest runs on.
	Unprotect struct{ Reason string }
	// HandOver: virt-ft failback, a person's wish that the roles are swapped:
	// the guest is to go on on the backup from where it stands now. Refuse or
	// Switched answers.
	HandOver struct{ Reason string }
)

// Events of the backup.
type (
	// StandbyMade answers MakeStandby.
	StandbyMade struct{ Err string }
	// Staged: all of Epoch arrived and its checksums are right. Final: it is
	// the last one of a guest that was shut down in order.
	Staged struct {
		Epoch Epoch
		Final bool
	}
	// CommitDone answers Commit.
	CommitDone struct {
		Epoch Epoch
		Err   string
	}
	// RehearseDone answers Rehearse.
	RehearseDone struct {
		OK     bool
		Reason string
	}
	// ReleasedTo: the primary performed the outputs of all epochs up to Epoch.
	ReleasedTo struct{ Epoch Epoch }
	// GuestDead: the primary's daemon says that its guest died, or was paused
	// to be handed over, and that nothing of it will be heard again.
	GuestDead struct{ Reason string }
	// StandDown: the primary wants no standby any more.
	StandDown struct{ Reason string }
	// StandbyDied: the standby's QEMU ended while it was waiting.
	StandbyDied struct{ Reason string }
	// LoadDone answers Load: the standby holds the checkpoint, or not.
	LoadDone struct{ Err string }
	// ConfirmDone answers Confirm.
	ConfirmDone struct{ Err string }
	// ResumeDone answers Resume.
	ResumeDone struct{ Err string }
)

func (SessionUp) event()        {}
func (SessionDown) event()      {}
func (ClaimDone) event()        {}
func (Retry) event()            {}
func (PeerDropped) event()      {}
func (StandbyReady) event()     {}
func (Captured) event()         {}
func (CaptureFailed) event()    {}
func (Acked) event()            {}
func (Rehearsed) event()        {}
func (PaceDue) event()          {}
func (GuestGone) event()        {}
func (WinnerRunning) event()    {}
func (WinnerWithdrew) event()   {}
func (PeerStoodDown) event()    {}
func (PeerActivated) event()    {}
func (Unprotect) event()        {}
func (HandOver) event()         {}
func (StandbyMade) event()      {}
func (Staged) event()           {}
func (CommitDone) event()       {}
func (RehearseDone) event()     {}
func (ReleasedTo) event()       {}
func (GuestDead) event()        {}
func (StandDown) event()        {}
func (OperatorActivate) event() {}
func (StandbyDied) event()      {}
func (LoadDone) event()         {}
func (ConfirmDone) event()      {}
func (ResumeDone) event()       {}

// Actions that both sides ask for.
type (
	// Persist writes the durable marker (domain, generation, role, phase)
	// and returns only when it is on disk: it precedes what it announces.
	Persist struct {
		Generation Generation
		Phase      string
	}
	// Claim asks the arbiter for Generation; ClaimDone answers.
	Claim struct {
		Generation Generation
		Because    Cause
	}
	// Withdraw hands the right back: nothing was executed here under it.
	Withdraw struct{ Generation Generation }
	// RetryAfter asks for one Retry event with Token after Delay.
	RetryAfter struct {
		Delay time.Duration
		Token uint64
	}
	// CloseSession drops the connection to the peer.
	CloseSession struct{}
	// Refuse answers OperatorActivate with the reason why not.
	Refuse struct{ Reason string }
	// Finish ends the machine: no further action will be asked for.
	Finish struct{ Reason string }
)

// Actions of the primary.
type (
	// Connect dials the peer until SessionUp.
	Connect struct{}
	// SendSetup describes the guest to the backup; StandbyReady answers.
	SendSetup struct{}
	// Capture takes checkpoint Epoch, and what the guest sent since the one
	// before it. Initial: all of the guest's memory is sent in live passes
	// first, and from this checkpoint's pause on the gate holds what the guest
	// sends; what it sent before has left. Final: the guest ended in order, and
	// nothing is to go on from this checkpoint: it has no pages and no device
	// state, but what the guest sent, and wrote to its disks, since the one
	// before.
	Capture struct {
		Epoch          Epoch
		Initial, Final bool
	}
	// ReopenCapture closes the capture session so that Capture opens another.
	ReopenCapture struct{}
	// Release performs the held outputs of Epoch, behind those of the epochs
	// before, while the lease of this session holds, and tells the backup
	// (ReleasedTo there) when all of them have left. Epoch was acknowledged. It
	// is a standing order: outputs that a lease was too old for stay held, and
	// untold, until the same session renews it. Another session's lease does
	// not count for them. Not answered. That of a final epoch may come before
	// its Captured.
	Release struct{ Epoch Epoch }
	// OpenGate performs what is held, in order, and holds nothing any more
	// until the next Capture{Initial}; a Capture that is still under way does
	// not hold either. No lease is needed: the backup surely cannot go on from
	// a checkpoint any more. An open gate stays open, and a sealed one is opened
	// like any other. After a final epoch the guest is gone: what it said last
	// has to leave without its interfaces.
	OpenGate struct{}
	// SendGuestDead tells the backup to take over. Before it is sent the gate
	// is sealed: nothing that the guest had sent leaves this host any more,
	// neither by an earlier Release that is still at it nor later, unless
	// OpenGate comes.
	SendGuestDead struct{ Reason string }
	// SendStandDown tells the backup to let go; PeerStoodDown answers. After a
	// final epoch that comes unasked.
	SendStandDown struct{ Reason string }
	// PauseGuest and ResumeGuest stop and start our copy.
	PauseGuest  struct{}
	ResumeGuest struct{}
	// WatchWinner polls the arbiter until WinnerRunning or WinnerWithdrew.
	WatchWinner struct{ Generation Generation }
	// DestroyGuest ends our copy: the winner runs.
	DestroyGuest struct{}
	// Switched answers HandOver: the backup runs the guest.
	Switched struct{}
)

// Actions of the backup.
type (
	// MakeStandby starts the paused domain.
	MakeStandby struct{}
	// RemakeStandby starts another one from the memory that we still hold.
	RemakeStandby struct{}
	// SendDropped tells the primary that we cannot go on from anything any
	// more that an older session brought: not after a restart either.
	SendDropped struct{}
	// SendReady tells the primary to go on.
	SendReady struct{}
	// Ack acknowledges Epoch to the primary.
	Ack struct{ Epoch Epoch }
	// Commit applies Epoch to the standby's memory, and to its disks.
	Commit struct{ Epoch Epoch }
	// Rehearse loads the committed checkpoint into a scratch QEMU.
	Rehearse struct{}
	// SendRehearsed reports that to the primary.
	SendRehearsed struct {
		OK     bool
		Reason string
	}
	// DropUncommitted forgets every epoch that was not acknowledged.
	DropUncommitted struct{}
	// PerformOutputs performs the outputs of epochs From..To, in order, which
	// were committed but not known to be performed, before the first of the
	// guest itself.
	PerformOutputs struct{ From, To Epoch }
	// Load gives the standby its device state; LoadDone answers.
	Load struct{}
	// Confirm records RUNNING with the arbiter; ConfirmDone answers.
	Confirm struct{ Generation Generation }
	// Resume lets the guest run here, then injects the logged inputs of the
	// epochs after the committed one, then announces the guest to the network;
	// ResumeDone answers.
	Resume struct{}
	// SendActivated tells the old primary, if it listens.
	SendActivated struct{ Generation Generation }
	// SendStoodDown answers SendStandDown, or a final epoch.
	SendStoodDown struct{}
	// DestroyStandby ends the standby and frees its memory.
	DestroyStandby struct{}
)

func (Persist) action()         {}
func (Claim) action()           {}
func (RetryAfter) action()      {}
func (CloseSession) action()    {}
func (Finish) action()          {}
func (Connect) action()         {}
func (SendSetup) action()       {}
func (Capture) action()         {}
func (ReopenCapture) action()   {}
func (Release) action()         {}
func (OpenGate) action()        {}
func (SendGuestDead) action()   {}
func (SendStandDown) action()   {}
func (PauseGuest) action()      {}
func (ResumeGuest) action()     {}
func (WatchWinner) action()     {}
func (DestroyGuest) action()    {}
func (Switched) action()        {}
func (MakeStandby) action()     {}
func (RemakeStandby) action()   {}
func (SendDropped) action()     {}
func (SendReady) action()       {}
func (Ack) action()             {}
func (Commit) action()          {}
func (Rehearse) action()        {}
func (SendRehearsed) action()   {}
func (DropUncommitted) action() {}
func (PerformOutputs) action()  {}
func (Load) action()            {}
func (Confirm) action()         {}
func (Withdraw) action()        {}
func (Resume) action()          {}
func (SendActivated) action()   {}
func (SendStoodDown) action()   {}
func (DestroyStandby) action()  {}
func (Refuse) action()          {}
