// Package probe looks at what a host is like for virt-ft, beside what other
// packages try by doing it: its kernel's settings, the rights of this process,
// libvirt's hook, confinement, room on disk. It only looks, and changes nothing.
//
// Readers of files take a root directory, "/" but in tests.
package probe

// Level is the weight of a Finding.
type Level string

// Fail prevents protection, Warn is told to the user.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is one thing that was looked at.
type Finding struct {
	ID     string // as docs/CHECK.md has it
	Item   string // for people
	Level  Level
	Text   string
	Remedy string // what to do about it; empty for OK
}
