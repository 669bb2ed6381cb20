// Package arbiter answers one question: which host may run a domain alone.
//
// Before a host runs a guest without its peer it must win an atomic claim on
// (domain, generation). A claim has two steps. CLAIMED gives the right to load
// the guest; RUNNING says that it executed its first instruction. The loser
// keeps its guest paused until the winner is RUNNING. A winner that cannot load
// withdraws, which is possible only before RUNNING; then either host may claim
// the same generation again.
//
//	          Claim               Confirm
//	(free) ----------> CLAIMED ------------> RUNNING (for good)
//	  ^                   |
//	  |      Withdraw     v
//	  +-------------- WITHDRAWN
//
// An error from Claim means "outcome unknown", never "won" (but see
// [ErrOperator]). The same host may repeat every call: the answer is the same.
package arbiter

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Arbiter decides between hosts. Implementations are safe for concurrent use.
type Arbiter interface {
	// Name is the word by which configuration and users call this arbiter.
	Name() string
	// Claim asks for the right to run c.Domain alone in c.Generation. An
	// error leaves the outcome unknown: the caller must not run, and repeats
	// the claim or withdraws it.
	Claim(ctx context.Context, c Claim) (Verdict, error)
	// Confirm records that the winner of c runs. The right can no longer be
	// handed back. On an error the caller must not run the guest.
	Confirm(ctx context.Context, c Claim) error
	// Withdraw hands back a right that was never used. It fails with
	// ErrRunning after Confirm, and with ErrNotHolder when another host holds
	// the claim. Withdrawing what nobody claimed succeeds.
	Withdraw(ctx context.Context, c Claim) error
	// Inspect returns the record of the highest generation of a domain, or a
	// Record with Generation 0 when nothing was ever claimed.
	Inspect(ctx context.Context, domain string) (Record, error)
}

// Revoker is an arbiter whose records a person may correct. The same rule as for every
// step makes it safe: of a Confirm and a Revoke of one right only one succeeds.
type Revoker interface {
	// Revoke takes the right to a generation from the host that holds it and was lost
	// before it used it; either host may claim the generation again. It fails with
	// ErrRunning after Confirm. c.Host is who revokes. What nobody holds is no error.
	Revoke(ctx context.Context, c Claim) error
}

// Claim names a right: Host wants to run Domain (its UUID) in Generation,
// which counts from 1.
type Claim struct {
	Domain     string
	Generation uint64
	Host       string
}

// Verdict is the answer to a claim. Its zero value grants nothing.
type Verdict struct {
	Won bool
	// Holder is the host which has the right; the claimant itself when Won.
	Holder string
	// Step is how far the holder is. Zero from an arbiter that cannot tell.
	Step Step
}

// Step is how far a claim has come. The zero Step is invalid in records and
// stands for "never claimed" in answers.
type Step int

// The steps of a claim.
const (
	StepClaimed Step = iota + 1
	StepRunning
	StepWithdrawn
)

// String returns the word that records use.
func (s Step) String() string {
	switch s {
	case StepClaimed:
		return "CLAIMED"
	case StepRunning:
		return "RUNNING"
	case StepWithdrawn:
		return "WITHDRAWN"
	default:
		return fmt.Sprintf("Step(%d)", int(s))
	}
}

// MarshalText implements encoding.TextMarshaler; an invalid step is an error.
func (s Step) MarshalText() ([]byte, error) {
	if s < StepClaimed || s > StepWithdrawn {
		return nil, fmt.Errorf("arbiter: invalid step %d", int(s))
	}
	return []byte(s.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Step) UnmarshalText(text []byte) error {
	for _, known := range []Step{StepClaimed, StepRunning, StepWithdrawn} {
		if string(text) == known.String() {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("arbiter: unknown step %.20q", text)
}

// Record is what an arbiter knows of one generation of a domain.
type Record struct {
	Domain     string
	Generation uint64
	Host       string
	Step       Step
	// At is the holder's wall clock when it took the step: for people only.
	At time.Time
}

var (
	// ErrOperator means that only a person can decide. Unlike every other
	// error of Claim it is a definite "not now".
	ErrOperator = errors.New("operator must run `virt-ft activate DOMAIN`")
	// ErrNotHolder means that another host holds the claim, or a later one.
	ErrNotHolder = errors.New("claim is not held by this host")
	// ErrRunning means that the right was used and cannot be handed back.
	ErrRunning = errors.New("already RUNNING: the right cannot be handed back")
	// ErrUnknown means that an operation may or may not have taken effect.
	ErrUnknown = errors.New("outcome unknown")
	// ErrUndecided means that the arbiter gave this claim no answer, and that
	// nothing it was asked can take effect later: the right was not given, and
	// only another Claim can win it. Who else holds it is not known.
	ErrUndecided = errors.New("undecided, and nothing was changed")
	// ErrStorage means that the storage is not the one it should be: gone,
	// replaced, or holding records which nobody of us wrote.
	ErrStorage = errors.New("arbiter storage cannot be trusted")
)

// undecided marks err as one before which nothing was changed.
func undecided(err error) error { return fmt.Errorf("%w: %w", ErrUndecided, err) }

// OpError says which operation on which claim failed.
type OpError struct {
	Op         string // "claim", "confirm", "withdraw", "revoke", "inspect", "grant", "open"
	Domain     string
	Generation uint64
	Err        error
}

// Error implements error.
func (e *OpError) Error() string {
	switch {
	case e.Domain == "":
		return fmt.Sprintf("arbiter %s: %v", e.Op, e.Err)
	case e.Generation == 0:
		return fmt.Sprintf("arbiter %s %s: %v", e.Op, e.Domain, e.Err)
	}
	return fmt.Sprintf("arbiter %s %s generation %d: %v", e.Op, e.Domain, e.Generation, e.Err)
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

const maxNameLen = 128 // of a domain or host; both become parts of file names

// checkName accepts what is safe as a file name on any shared storage.
func checkName(what, name string) error {
	if name == "" || len(name) > maxNameLen {
		return fmt.Errorf("%s name must have 1 to %d characters, has %d", what, maxNameLen, len(name))
	}
	if name[0] == '.' {
		return fmt.Errorf("%s name %q starts with a dot", what, name)
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("%s name %q: only letters, digits, '-', '_' and '.' are allowed", what, name)
		}
	}
	return nil
}

func (c Claim) check() error {
	if c.Generation == 0 {
		return errors.New("generation 0 is invalid: generations count from 1")
	}
	if err := checkName("domain", c.Domain); err != nil {
		return err
	}
	return checkName("host", c.Host)
}
