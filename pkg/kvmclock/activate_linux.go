package kvmclock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/ptracer"
)

const (
	// resumeBound is the longest time for which a standby is traced: a resume
	// through libvirt may wait for a lock there.
	resumeBound = 5 * time.Second
	// readyMax bounds the wait for the tracer before a standby is resumed. It
	// takes well below a millisecond; only an overloaded host needs more, and the
	// guest's clock is worth that: what is lost now is not put back.
	readyMax = 25 * time.Millisecond
	// doneMax bounds the wait for the tracer's word after the resume.
	doneMax = 25 * time.Millisecond
)

// Applied says what became of a clock at activation.
type Applied struct {
	Set    bool
	StepNs int64  // our clock minus QEMU's own value for it, when we computed it; positive: the guest was set forward
	Why    string // if not Set
}

// Prepared is a standby whose clock can be set at its resume without delay: its
// tracer runs already, and touches nothing until then.
type Prepared struct {
	o        Options
	trap     trap
	realtime bool // the kernel takes FlagRealtime
}

// Prepare makes ready for [Prepared.SetAtResume] of QEMU process pid. It takes some
// milliseconds, and the result may wait for days. Errors as of [Open].
func Prepare(ctx context.Context, pid int, o Options) (*Prepared, error) {
	o = o.withDefaults()
	t, err := o.openTrap(ctx, pid, resumeBound)
	if err != nil {
		return nil, err
	}
	return &Prepared{o: o, trap: t, realtime: o.takesRealtime(pid)}, nil
}

// SetAtResume calls resume, which is to resume the guest and to return when QEMU
// has done so, and sees to it that the guest starts with the clock that r says it
// has by then. r is as of this host's CLOCK_REALTIME: what another host read is
// corrected by [Offset] first. A clock below the one that the guest brought from
// its checkpoint is not set.
//
// resume is called exactly once, by this goroutine, whatever becomes of the
// clock, and its error is returned as it is. When SetAtResume returns nothing is
// attached. It may be called again, for instance after a resume that failed, but
// not concurrently.
func (p *Prepared) SetAtResume(ctx context.Context, r Reading, resume func(context.Context) error) (Applied, error) {
	clockNs, err := p.arm(r)
	if err != nil {
		return Applied{Why: err.Error()}, resume(ctx)
	}
	resumeErr := resume(ctx)
	caught, err := p.trap.Collect(doneMax)
	a := applied(clockNs, caught, err)
	if !a.Set && resumeErr == nil {
		p.o.Logger.Warn("clock: the guest goes on with the clock of its checkpoint", "why", a.Why)
	}
	return a, resumeErr
}

// arm computes the clock for now and has it ready for QEMU's call.
func (p *Prepared) arm(r Reading) (clockNs uint64, err error) {
	now := p.o.now()
	if r == (Reading{}) || now.realNs < 0 {
		return 0, errors.New("it is not known what the guest's clock was")
	}
	clockNs, ok := r.at(uint64(now.realNs))
	if !ok {
		return 0, fmt.Errorf("a clock that was %d ns when it was %d ns here is no clock for now, %d ns: is a host's date wrong?", r.ClockNs, r.RealtimeNs, now.realNs)
	}
	change := ptracer.Change{Data: setTo(clockNs, uint64(now.realNs), p.realtime), NotBelow: true}
	late := time.Now().Add(readyMax)
	for err = p.trap.Arm(change); errors.Is(err, ptracer.ErrTrapAway) && time.Now().Before(late); err = p.trap.Arm(change) {
		time.Sleep(time.Millisecond) // a tracer that died while we waited is being replaced; nobody says when
	}
	if err != nil {
		return 0, err
	}
	// If it is not ready it may be in time still; what is collected will tell.
	_ = p.trap.Armed(readyMax)
	return clockNs, nil
}

// applied is what was caught, in our words.
func applied(clockNs uint64, c ptracer.Caught, err error) Applied {
	if err != nil {
		return Applied{Why: err.Error()}
	}
	before, err := ParseData(c.Before)
	if err != nil {
		return Applied{Set: c.Changed, Why: err.Error()}
	}
	a := Applied{Set: c.Changed, StepNs: int64(clockNs - before.ClockNs)}
	if !a.Set {
		a.Why = "the clock of the checkpoint is later than the one it was to get: the hosts' clocks differ"
	}
	return a
}

// Close ends the tracer. It is idempotent.
func (p *Prepared) Close() error { return p.trap.Close() }

// SetAtResume is [Prepare], [Prepared.SetAtResume] and Close in one, for a standby
// that was not prepared. If it cannot be prepared, resume is called all the same.
func SetAtResume(ctx context.Context, pid int, r Reading, resume func(context.Context) error, o Options) (Applied, error) {
	p, err := Prepare(ctx, pid, o)
	if err != nil {
		return Applied{Why: err.Error()}, resume(ctx)
	}
	defer p.Close()
	return p.SetAtResume(ctx, r, resume)
}
