package kvmclock

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/ptracer"
)

const (
	// armedMax bounds the wait for the tracer before a resume. It has had the
	// whole pause by then.
	armedMax = 3 * time.Millisecond
	// collectMax bounds the wait for its word after a resume: the call has been
	// made, and the word is on its way. The guest runs meanwhile.
	collectMax = 50 * time.Millisecond
	// defaultBound is Options.Bound when they do not say.
	defaultBound = 2 * time.Second
)

// trap is what a Keeper needs of a *ptracer.Trap.
type trap interface {
	Arm(ptracer.Change) error
	Armed(time.Duration) bool
	Collect(time.Duration) (ptracer.Caught, error)
	Close() error
}

// Options of [Open], [Prepare] and [SetAtResume]. The zero value is good.
type Options struct {
	Logger *slog.Logger // slog.Default() if nil
	// Bound is the longest time for which [Keeper] may trace QEMU at once: more than
	// the longest pause, because a tracer that is over it ends, and the pause is
	// missed. 2 s if 0.
	Bound time.Duration

	// What tests put in the place of a QEMU, its tracer, the host's clocks and
	// the kernel.
	trap     trap
	now      func() instant
	realtime func(pid int) bool
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Bound <= 0 {
		o.Bound = defaultBound
	}
	if o.now == nil {
		o.now = hostInstant
	}
	if o.realtime == nil {
		o.realtime = kernelTakesRealtime
	}
	return o
}

// takesRealtime tells whether clocks may be set with FlagRealtime.
func (o Options) takesRealtime(pid int) bool {
	if o.realtime(pid) {
		return true
	}
	o.Logger.Warn("clock: KVM cannot be asked, or is older than Linux 5.16: what is missed is not put back, and a clock that is set is late by the resume", "qemuPid", pid)
	return false
}

// openTrap starts a tracer for the KVM_SET_CLOCK of process pid, unless a test
// brought one.
func (o Options) openTrap(ctx context.Context, pid int, bound time.Duration) (trap, error) {
	if o.trap != nil {
		return o.trap, nil
	}
	fd, err := vmDescriptor(pid)
	if err != nil {
		return nil, err
	}
	t, err := ptracer.OpenTrap(ctx, pid, ptracer.Catch{Nr: unix.SYS_IOCTL, Arg0: fd, Arg1: kvmSetClock, DataBytes: DataBytes},
		ptracer.TrapOptions{Bound: bound, Logger: o.Logger})
	if err != nil {
		return nil, fmt.Errorf("kvmclock: %w", err)
	}
	return t, nil
}

// Keeper keeps the clock of a guest that is stopped and started again and again.
// It owns a small process that traces QEMU's main thread from Paused until QEMU
// has made its call, and holds nothing of QEMU otherwise.
type Keeper struct {
	o     Options
	trap  trap
	pause pause // of the goroutine that makes pauses

	mu     sync.Mutex
	ledger ledger
}

// pause is what is known of the pause that is going on.
type pause struct {
	open    bool
	armed   bool
	why     string // if not armed
	from    instant
	setting bool // to this, and otherwise kept
	set     sample
}

// Open starts to look after the clock of QEMU process pid. Errors are ErrNoKVM, or
// those of the tracer (no permission, traced by a debugger, gone). The program
// must call ptracer.MaybeInject first thing in main, and in TestMain.
func Open(ctx context.Context, pid int, o Options) (*Keeper, error) {
	o = o.withDefaults()
	t, err := o.openTrap(ctx, pid, o.Bound)
	if err != nil {
		return nil, err
	}
	return &Keeper{o: o, trap: t, ledger: ledger{canSet: o.takesRealtime(pid)}}, nil
}

// Paused says that the guest stands still now, and will be resumed soon. It does
// not wait. Paused, Resuming and Resumed are called in this order, also when the
// checkpoint between them fails, by one goroutine at a time. They return nothing,
// because a clock that could not be kept is no reason to give up a checkpoint:
// [Keeper.Report] counts it, and a later resume makes up for it.
func (k *Keeper) Paused() {
	k.Resumed() // of a pause that was not ended; otherwise nothing
	now := k.o.now()
	k.mu.Lock()
	set, setting := k.ledger.toSet(now.rawNs)
	may := k.ledger.mayArm(now.rawNs)
	k.mu.Unlock()
	k.pause = pause{open: true, from: now, setting: setting, set: set}
	if !may {
		return
	}
	change := ptracer.Change{Arg1: kvmGetClock, WantResult: true}
	if setting {
		change = ptracer.Change{Data: setTo(uint64(set.clockNs), uint64(now.realNs), true), NotBelow: true}
	}
	if err := k.trap.Arm(change); err != nil {
		k.pause.why = err.Error()
		return
	}
	k.pause.armed = true
}

// Resuming says that the guest will be resumed as soon as this returns: at once
// if the tracer is ready, as it should be, and after 3 ms otherwise.
func (k *Keeper) Resuming() {
	if k.pause.armed {
		// If it is not, it may still be in time; Resumed will know.
		_ = k.trap.Armed(armedMax)
	}
}

// Resumed says that the guest runs again, or that it will not. It waits for the
// tracer's word, 50 ms at most; QEMU is left alone then.
func (k *Keeper) Resumed() {
	p := k.pause
	if !p.open {
		return
	}
	k.pause = pause{}
	var caught ptracer.Caught
	var err error
	if p.armed {
		caught, err = k.trap.Collect(collectMax)
	}
	now := k.o.now()
	k.mu.Lock()
	e := k.book(p, caught, err, now)
	k.mu.Unlock()
	switch by := time.Duration(e.errNs); {
	case e.why != "":
		k.o.Logger.Warn("clock: "+e.what, "lasted", by, "why", e.why)
	case e.what != "":
		k.o.Logger.Info("clock: "+e.what, "by", by)
	}
}

// book enters what became of a pause into the ledger.
func (k *Keeper) book(p pause, c ptracer.Caught, err error, now instant) entry {
	pauseNs := now.rawNs - p.from.rawNs
	if p.armed && err == nil {
		k.ledger.LastAttached = c.Attached
	}
	switch {
	case !p.armed:
		return k.ledger.missed(now.rawNs, pauseNs, p.why)
	case err != nil:
		return k.ledger.missed(now.rawNs, pauseNs, err.Error())
	case !c.Changed:
		return k.ledger.missed(now.rawNs, pauseNs, "QEMU's own clock was later than ours")
	case p.setting:
		k.ledger.restored(p.set)
		return entry{} // the miss before it had its line
	case c.Ret != 0:
		return k.ledger.missed(now.rawNs, pauseNs, fmt.Sprintf("KVM_GET_CLOCK: %v", syscall.Errno(-c.Ret)))
	}
	d, err := ParseData(c.After)
	if err != nil {
		return k.ledger.missed(now.rawNs, pauseNs, err.Error())
	}
	s, exact, err := sampleOf(d, p.from, now)
	if err != nil {
		return k.ledger.missed(now.rawNs, pauseNs, err.Error())
	}
	k.ledger.Coarse = !exact
	k.ledger.canSet = k.ledger.canSet || d.Flags&FlagRealtime != 0
	return k.ledger.kept(s)
}

// Reading returns what the guest's clock is now, with a debt that waits to be put
// back. It is false before the first resume that was kept. Any goroutine may call
// it. While somebody else has paused the guest it goes on.
func (k *Keeper) Reading() (r Reading, ok bool) {
	now := k.o.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ledger.reading(now)
}

// Report returns what was done so far. Any goroutine may call it.
func (k *Keeper) Report() Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ledger.Report
}

// Close ends the tracer; nothing is attached to QEMU afterwards. Pauses are missed
// from then on. It is idempotent, and any goroutine may call it.
func (k *Keeper) Close() error { return k.trap.Close() }
