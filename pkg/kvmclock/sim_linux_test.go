package kvmclock

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/virt-ft/virt-ft/internal/ptracer"
)

// outcome is what becomes of a pause's trap.
type outcome int

const (
	caught   outcome = iota
	slipped          // armed, but QEMU's call was not seen
	refused          // the tracer is away
	unseen           // nobody told the Keeper of the pause
	cutOff           // the tracer could not read the struct when the call returned
	unknown          // the tracer did what it should, and died before it could say so
	outcomes         // how many there are
)

var errAway = fmt.Errorf("the tracer is away: %w", ptracer.ErrTrapAway)

// world is a host, its KVM, a guest, a QEMU and a tracer, as far as clocks are
// concerned. Its time passes only when it is told to.
type world struct {
	rawNs, realNs, clockNs float64 // float64 is exact to 1 ns for 100 days
	clockPPM, slewPPM      float64 // rates against RAW
	flags                  uint32
	strict                 bool // a kernel before 5.16: no flags in a SET
	died                   string

	savedNs uint64 // QEMU's: the clock at the stop
	armed   *ptracer.Change
	result  *ptracer.Caught
	next    outcome
	arms    int
	closed  bool
	logs    int
}

func newWorld() *world {
	return &world{rawNs: 1e15, realNs: 1.7e15, clockNs: 5e12, flags: FlagTSCStable | FlagRealtime | FlagHostTSC}
}

func (w *world) options() Options {
	return Options{
		Logger: slog.New(slog.NewTextHandler(counter{&w.logs}, nil)), trap: w, now: w.now, realtime: func(int) bool { return !w.strict },
	}
}

// counter counts lines.
type counter struct{ n *int }

func (c counter) Write(p []byte) (int, error) { *c.n++; return io.Discard.Write(p) }

func (w *world) now() instant { return instant{realNs: int64(w.realNs), rawNs: int64(w.rawNs)} }

func (w *world) pass(d time.Duration) {
	ns := float64(d)
	w.rawNs += ns
	w.realNs += ns * (1 + w.slewPPM/1e6)
	w.clockNs += ns * (1 + w.clockPPM/1e6)
}

// stop and cont are QEMU's; cont returns what its call did to the clock.
func (w *world) stop() { w.savedNs = uint64(w.clockNs) }

func (w *world) cont() {
	ch := w.armed
	w.armed = nil
	before := Data{ClockNs: w.savedNs}.Append(nil)
	data := Data{ClockNs: w.savedNs}
	switch {
	case ch == nil || w.next == slipped:
	case ch.Arg1 == kvmGetClock && len(ch.Data) == 0:
		d := Data{ClockNs: uint64(w.clockNs), Flags: w.flags}
		if w.flags&FlagRealtime != 0 {
			d.RealtimeNs, d.HostTSC = uint64(w.realNs), 1
		}
		w.result = &ptracer.Caught{Before: before, After: d.Append(nil), Changed: true, Attached: time.Millisecond}
		if w.next == cutOff {
			w.result.After = nil
		}
		return // the clock goes on
	case ch.Arg1 == 0 && len(ch.Data) > 0:
		d, err := ParseData(append(ch.Data, make([]byte, DataBytes-len(ch.Data))...))
		if err != nil {
			w.died = err.Error()
		}
		below := ch.NotBelow && w.savedNs > d.ClockNs
		w.result = &ptracer.Caught{Before: before, Changed: !below, Attached: time.Millisecond}
		if !below {
			data = d
		}
	default:
		w.died = "an arming that is neither"
	}
	if data.Flags&^FlagRealtime != 0 || w.strict && data.Flags != 0 {
		w.died = "KVM_SET_CLOCK refused its flags: QEMU aborts"
	}
	w.clockNs = float64(data.ClockNs)
	if data.Flags&FlagRealtime != 0 {
		w.clockNs += max(0, w.realNs-float64(data.RealtimeNs))
	}
}

// pause is a checkpoint's: drain until the Keeper hears of it, then work.
func (w *world) pause(k *Keeper, what outcome, drain, work time.Duration) {
	w.next = what
	w.stop()
	w.pass(drain)
	if what != unseen {
		k.Paused()
	}
	w.pass(work)
	if what != unseen {
		k.Resuming()
	}
	w.pass(100 * time.Microsecond)
	w.cont()
	w.pass(time.Millisecond)
	if what != unseen {
		k.Resumed()
	}
}

func (w *world) Arm(ch ptracer.Change) error {
	if w.closed || w.next == refused {
		return errAway
	}
	w.arms++
	w.armed, w.result = &ch, nil
	return nil
}

func (w *world) Armed(time.Duration) bool { return w.armed != nil && w.next != slipped }

func (w *world) Collect(time.Duration) (ptracer.Caught, error) {
	w.armed = nil
	if w.result == nil || w.next == unknown {
		return ptracer.Caught{}, errors.New("not caught")
	}
	return *w.result, nil
}

func (w *world) Close() error { w.closed = true; return nil }
