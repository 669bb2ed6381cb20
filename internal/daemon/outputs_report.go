package daemon

import (
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// look, on the keeper, notices output that waits for too long: it says so once,
// and gives the backup up if that is what the operator wants.
func (o *outputs) look() {
	why, waiting := o.stall()
	o.mu.Lock()
	was := o.stalled
	o.stalled = why
	o.mu.Unlock()
	switch {
	case why != "" && was == "":
		o.p.log.Warn("stalled: the guest's output waits", "why", why)
		o.p.tell(control.EventStalled, why)
	case why == "" && was != "":
		o.p.log.Info("the guest's output flows again")
		o.p.tell(control.EventFlowing, "the guest's output flows again")
	}
	max := time.Duration(o.p.pacing.Load().HeldMaxNs)
	if max > 0 && waiting != nil && time.Since(waiting.cut) > max {
		waiting.link.fail(fmt.Errorf("epoch %d is not acknowledged for %v, which is more than held-max: %w", waiting.epoch, max, replica.ErrPeerSilent))
	}
}

// stall says why held output does not leave, "" if it does, and which epoch
// waits for the backup, if one does.
func (o *outputs) stall() (why string, waiting *heldEpoch) {
	o.mu.Lock()
	gate := o.gate
	var oldest *heldEpoch
	for _, h := range o.queue {
		if len(h.frames) > 0 {
			oldest = h
			break
		}
	}
	granted, failed := oldest != nil && oldest.granted, oldest != nil && oldest.failed
	o.mu.Unlock() // a pause may want it
	if gate == nil || !gate.Holding() {
		return "", nil
	}
	if oldest != nil && !granted && !failed {
		waiting = oldest
	}
	age := gate.Stats().HeldAge
	if age <= stalledAfter {
		return "", waiting
	}
	wait := age.Round(time.Millisecond)
	switch {
	case o.p.currentLink() == nil:
		why = fmt.Sprintf("no backup is connected, and nobody decided yet which host goes on; output waits for %v", wait)
	case granted:
		why = fmt.Sprintf("the backup does not answer heartbeats, so the right to release is over; epoch %d waits for %v", oldest.epoch, wait)
	case waiting != nil:
		why = fmt.Sprintf("epoch %d is not acknowledged, output waits for %v: the backup or the connection to it is slow, or gone", oldest.epoch, wait)
	default:
		why = fmt.Sprintf("no checkpoint for %v: QEMU or libvirtd does not answer", wait)
	}
	return why, waiting
}

// report fills in what status says of the guest's output.
func (o *outputs) report(s *control.Status) {
	o.mu.Lock()
	gate, stalled := o.gate, o.stalled
	o.mu.Unlock()
	if gate == nil {
		return
	}
	st := gate.Stats()
	out := &control.OutputStatus{Mode: control.OutputPassing, HeldFrames: uint64(st.HeldFrames), HeldBytes: uint64(st.HeldBytes), OldestMs: ms(st.HeldAge),
		ReleasedFrames: st.Released, DroppedFull: st.DroppedFull, DroppedLease: st.DroppedLease,
		InputsLogged: st.InputsLogged - min(st.InputsLogged, o.lost.Load()), InputsSkipped: st.InputsSkipped + o.lost.Load(), Stalled: stalled}
	o.p.withLink(func(l *link) { out.LeaseMs = ms(max(0, l.beat.LeaseUntil().Sub(replica.Boottime()))) })
	switch {
	case st.Mode == netgate.Sealed || st.Mode == netgate.Holding && out.LeaseMs == 0:
		out.Mode = control.OutputClosed
	case st.Mode == netgate.Holding:
		out.Mode = control.OutputHolding
	}
	s.Output = out
}
