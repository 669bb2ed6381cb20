package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

const (
	// clockGapMax bounds by how much a guest's clocks are set forward at activation:
	// for longer, a date is wrong somewhere, or a person has to say what is right.
	clockGapMax = 30 * 24 * time.Hour
	// virtualGapMax bounds that for QEMU's own clock: periodic timers catch up a
	// period at a time before the guest runs, some 35 ms for each hour.
	virtualGapMax = 10 * time.Minute
	// learnedMax is how long an activation waits for what should be known by then,
	// and preparedMax for what should be ready.
	learnedMax  = 200 * time.Millisecond
	preparedMax = 500 * time.Millisecond
)

// takeover is what is known of a guest's clocks when its standby is given its
// device state. Of the work goroutine.
type takeover struct {
	kvm      bool             // there is a kvmclock
	reading  kvmclock.Reading // of it, by this host's time of day; zero: not known
	prepared *kvmclock.Prepared
}

func (t *takeover) close() {
	if t.prepared != nil {
		_ = t.prepared.Close() // the tracer is a process of ours that does nothing
	}
	*t = takeover{}
}

// setClocks returns device state in which the guest's clocks show what they would
// show now if the guest had not stood still since the checkpoint, as far as that
// can be written there. The original is not changed.
func (b *backup) setClocks(device []byte, g replica.GuestClock) []byte {
	ds, err := vmstate.ParseDevices(device)
	if err != nil {
		b.log.Warn("the guest's clocks stay where the checkpoint was", "err", err)
		return device
	}
	device = bytes.Clone(device)
	now := time.Now()
	ahead, _, known := b.peerClock.ahead()
	there := uint64(now.Add(ahead).UnixNano())
	if !known {
		b.log.Warn("the hosts' clocks were not compared: they are taken to show the same time")
	}
	own, kvm := ds.KVMClock(device)
	b.takeover.kvm = kvm
	var errs []error
	if kvm {
		errs = append(errs, b.setKVMClock(ds, device, own, g, there, now))
	}
	by, err := gap(g.PausedNs, there)
	if err == nil && by <= virtualGapMax {
		errs = append(errs, ds.AdvanceVirtualClock(device, by, b.d.tscKHz()))
	}
	if err == nil && kvm {
		errs = append(errs, b.setTSCs(ds, device, by))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		b.log.Warn("a clock of the guest stays where the checkpoint was", "err", err)
		b.warn("clock: " + err.Error())
	}
	b.log.Info("clocks", "setForwardBy", by, "kvmclock", b.takeover.reading.ClockNs, "peerAhead", ahead)
	return device
}

// setKVMClock sets kvmclock to what it would be when the primary's clock shows
// there, which is now here. It is never set back.
func (b *backup) setKVMClock(ds vmstate.Devices, device []byte, own uint64, g replica.GuestClock, there uint64, now time.Time) error {
	if g.ClockNs == 0 {
		return errors.New("the primary did not say what the guest's kvmclock shows")
	}
	by, err := gap(g.RealtimeNs, there)
	if err != nil {
		return err
	}
	if at := g.ClockNs + uint64(by); at > own && g.ClockNs <= math.MaxInt64 {
		b.takeover.reading = kvmclock.Reading{ClockNs: at, RealtimeNs: uint64(now.UnixNano())}
		return ds.SetKVMClock(device, at)
	}
	return fmt.Errorf("kvmclock shows %d ns in the checkpoint, and would be set back to %d ns", own, g.ClockNs)
}

// gap is the time from an instant of the primary's clock to another.
func gap(fromNs, toNs uint64) (time.Duration, error) {
	switch by := time.Duration(toNs - fromNs); {
	case fromNs == 0:
		return 0, errors.New("the primary did not say when the checkpoint was")
	case by < 0:
		return 0, fmt.Errorf("the checkpoint is %v in the future: the hosts' clocks differ, or were set", -by)
	case by > clockGapMax:
		return 0, fmt.Errorf("the checkpoint is %v old: a host's date is wrong, or the guest's clock is better set by hand", by)
	default:
		return by, nil
	}
}

// setTSCs sets the time stamp counters of a guest under KVM forward.
func (b *backup) setTSCs(ds vmstate.Devices, device []byte, by time.Duration) error {
	pid, err := b.standby.PID()
	if err != nil {
		return err
	}
	layout, err := layoutOf(b.ctx, &b.d.layouts, pid, b.setup.SourceXML, learnedMax)
	if err != nil {
		return err
	}
	cpus, err := ds.CPUClocks(device, layout)
	if err != nil {
		return err
	}
	for _, c := range cpus {
		kHz := c.TSCkHz
		if kHz == 0 {
			kHz = b.d.tscKHz() // QEMU says it where it may differ from the host's
		}
		if kHz == 0 {
			return errors.New("the rate of the time stamp counter is not known")
		}
		if err := ds.SetTSC(device, layout, c.Instance, kvmclock.AdvanceTSC(c.TSC, kHz, by)); err != nil {
			return err
		}
	}
	return nil
}

// learnLayout has what setTSCs needs known before it is needed.
func (b *backup) learnLayout(pid int, domainXML string) {
	if _, err := layoutOf(b.ctx, &b.d.layouts, pid, domainXML, layoutMax); err != nil && b.ctx.Err() == nil {
		b.log.Warn("the guest's time stamp counters will not be set right at activation", "err", err)
	}
}

// prepareClock makes ready for resumeStandby, while the standby loads.
func (b *backup) prepareClock(pid int) <-chan *kvmclock.Prepared {
	ready := make(chan *kvmclock.Prepared, 1)
	b.async(func() {
		p, err := kvmclock.Prepare(b.ctx, pid, kvmclock.Options{Logger: b.log})
		if err != nil && !errors.Is(err, kvmclock.ErrNoKVM) {
			b.log.Warn("the guest's clock cannot be set at its resume", "err", err)
		}
		ready <- p // nil on error
	})
	return ready
}

// await returns what is ready soon after the standby has loaded, or nil.
func (b *backup) await(ready <-chan *kvmclock.Prepared) *kvmclock.Prepared {
	select {
	case p := <-ready:
		return p
	case <-time.After(preparedMax):
		b.log.Warn("the tracer of the guest's clock is not ready; the guest is not to wait for it")
		b.async(func() {
			if p := <-ready; p != nil {
				_ = p.Close()
			}
		})
		return nil
	}
}

// resumeStandby resumes the standby, with its clock set if there is one.
func (b *backup) resumeStandby(ctx context.Context) error {
	t := &b.takeover
	defer t.close()
	s := control.ClockStatus{State: control.ClockTCG}
	err := errors.New("the standby is gone")
	switch {
	case b.standby == nil:
	case t.prepared == nil:
		if err = b.standby.Resume(ctx); t.kvm {
			s.State, s.Why = control.ClockUncorrected, "it goes on from where it was when the standby was loaded"
		}
	default:
		var did kvmclock.Applied
		did, err = t.prepared.SetAtResume(ctx, t.reading, b.standby.Resume)
		s.State, s.Why, s.StepUs = control.ClockCorrected, did.Why, micros(did.StepNs)
		if !did.Set {
			s.State = control.ClockUncorrected
		}
		b.log.Info("clock", "set", did.Set, "step", time.Duration(did.StepNs), "why", did.Why)
	}
	if err == nil {
		b.mu.Lock()
		b.status.Clock = s
		b.mu.Unlock()
	}
	return err
}
