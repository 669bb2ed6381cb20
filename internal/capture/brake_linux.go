package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// commandMax bounds one xen-save-devices-state: stopping waits for the
	// guest's disks.
	commandMax = 30 * time.Second
	// statusMax bounds one query-status, and settleMax all of them after a
	// command whose outcome is unknown.
	statusMax = 3 * time.Second
	settleMax = 15 * time.Second
	// maxDeviceBytes bounds the device state of a guest.
	maxDeviceBytes = 64 << 20
	// deviceRoom is allocated for the first device state.
	deviceRoom = 128 << 10
	// deviceTailBytes is the end of a device state: the footer of its last
	// section (0x7e and the section's number) and the mark of the end.
	deviceTailBytes = 6
)

type saveArgs struct {
	Filename string `json:"filename"`
	Live     bool   `json:"live"` // true would make the guest's disks inactive
}

// underBrake stops the guest, runs work, lets the guest go and returns its
// device state. work must not log or block; overdue tells it that the guest was
// let go by the watchdog. whole, if not nil, is told of the device state as soon
// as it is all there, if that can be seen before the monitor says so. On return
// the guest is as it was before, or QEMU has ended, or (ErrOutcomeUnknown) the
// pipe is broken so that QEMU lets it go.
func (s *Session) underBrake(ctx context.Context, ph *Phases, work func(overdue func() bool) error, whole func([]byte)) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := s.pipe
	if err := p.verify(); err != nil {
		return nil, err
	}
	device := make([]byte, 0, max(deviceRoom, s.deviceBytes+s.deviceBytes/2))
	if _, _, err := p.drain(device, maxDeviceBytes); err != nil {
		return nil, err
	}
	brake := s.brake()
	if err := p.resize(brake); err != nil {
		return nil, fmt.Errorf("shrink checkpoint pipe: %w", err)
	}
	w := newWatchdog(p)
	p.unring()
	start := time.Now()
	reply := s.send(ctx, p)

	ev, err := p.wait(-1) // ends with the command's own limit
	stopped := time.Now()
	ph.StopNs = stopped.Sub(start).Nanoseconds()
	if ev.data && err == nil {
		w.start(s.o.PauseMax)
		s.clockPaused()
		err = work(w.overdue.Load)
		ph.ClockNs = s.clockResuming()
		defer s.clockResumed() // however this ends, QEMU goes on
		if w.stop() && err == nil {
			err = ErrPauseExceeded
		}
	}
	held := len(reply) == 0 // nobody has let the guest go but we, now
	released := time.Now()
	told := 0 // bytes of device state
	device, rerr := p.flow(device, reply, func(device []byte) {
		if whole != nil && told == 0 && err == nil && held && len(device) > brake && s.complete(device) {
			told = len(device)
			whole(device)
		}
	})
	end := time.Now()
	ph.DeviceNs = end.Sub(released).Nanoseconds()
	ph.PausedNs, ph.TotalNs = end.Sub(stopped).Nanoseconds(), end.Sub(start).Nanoseconds()

	if rerr != nil {
		return nil, errors.Join(err, fmt.Errorf("save device state: %w", rerr), s.settle(ctx))
	}
	if err == nil && (!held || len(device) <= brake) {
		// All of it fitted into the pipe: nothing shows that QEMU waited.
		s.deviceBytes = 0
		err = ErrNoBrake
	}
	if err == nil && told > 0 && told != len(device) {
		err = ErrNotWhole
	}
	if err != nil {
		return nil, err
	}
	s.deviceBytes = len(device)
	s.deviceTail = [deviceTailBytes]byte(device[len(device)-deviceTailBytes:])
	return device, nil
}

// complete tells whether device, which QEMU may still be writing, is all of a
// device state: as long as the last one that the monitor confirmed, and with the
// same last section and the mark of the end at its end. The monitor's word comes
// a millisecond or two later, because libvirt keeps books of the guest's resume
// first. A state of another length waits for it.
func (s *Session) complete(device []byte) bool {
	return len(device) == s.deviceBytes && [deviceTailBytes]byte(device[len(device)-deviceTailBytes:]) == s.deviceTail
}

// brake is the capacity of the pipe while the guest is held: as much of the
// device state as QEMU may write meanwhile, and less than all of it for sure.
// What it has written when the guest is let go it need not write then. That the
// state is larger than the brake proves afterwards that QEMU had to wait.
func (s *Session) brake() int {
	n := brakeBytes
	for n < brakeMaxBytes && 2*n <= s.deviceBytes-s.deviceBytes/4 {
		n *= 2
	}
	return n
}

// send issues the command; the reply goes to the channel and rings the pipe's
// bell. The command is not cancelled with ctx: its outcome would be unknown.
func (s *Session) send(ctx context.Context, p *pipe) <-chan error {
	reply := make(chan error, 1)
	args := saveArgs{Filename: "/proc/self/fd/" + strconv.Itoa(p.remote)}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandMax)
	go func() {
		defer cancel()
		_, err := s.mon.QMP(ctx, "xen-save-devices-state", args)
		reply <- err
		p.ring()
	}()
	return reply
}

// flow lets the guest go: it drains the pipe until the monitor has replied,
// and returns what was in it. It shows what there is so far to look.
func (p *pipe) flow(device []byte, reply <-chan error, look func([]byte)) ([]byte, error) {
	_ = p.resize(flowBytes) // EPERM: it stays small, and drains in more steps
	over := false
	for {
		ev, err := p.wait(-1)
		var o bool
		if err == nil {
			device, o, err = p.drain(device, maxDeviceBytes)
			over = over || o
		}
		if err == nil && !ev.replied && !ev.gone {
			if !over {
				look(device)
			}
			continue
		}
		if err != nil || ev.gone {
			p.closeRead() // whatever it is, the guest must not wait for us
		}
		rerr := <-reply
		switch {
		case err != nil:
			return nil, err
		case ev.gone:
			return nil, errors.Join(ErrGuestGone, rerr)
		case rerr != nil:
			return nil, rerr
		}
		// QEMU has written all before it replied.
		if device, o, err = p.drain(device, maxDeviceBytes); over || o || err != nil {
			return nil, errors.Join(fmt.Errorf("device state: at most %d bytes are supported", maxDeviceBytes), err)
		}
		return device, nil
	}
}

// watchdog lets the guest go when work takes too long.
type watchdog struct {
	p       *pipe
	overdue atomic.Bool
	over    atomic.Bool // work is done
	timer   *time.Timer
	done    chan struct{}
}

func newWatchdog(p *pipe) *watchdog {
	w := &watchdog{p: p, done: make(chan struct{})}
	w.timer = time.AfterFunc(time.Hour, w.drain)
	w.timer.Stop()
	return w
}

func (w *watchdog) start(after time.Duration) { w.timer.Reset(after) }

// stop ends the watchdog and reports whether it has acted. It waits for it.
func (w *watchdog) stop() bool {
	if w.timer.Stop() {
		return false
	}
	w.over.Store(true)
	<-w.done
	return true
}

// drain empties the pipe for as long as work goes on.
func (w *watchdog) drain() {
	defer close(w.done)
	w.overdue.Store(true)
	_ = w.p.resize(flowBytes)
	trash := make([]byte, 0, flowBytes)
	for !w.over.Load() {
		if ev, err := w.p.wait(1); err != nil || ev.gone || ev.replied {
			return
		}
		if _, _, err := w.p.drain(trash, flowBytes); err != nil {
			return
		}
	}
}

// settle finds out what became of the guest after a command whose outcome is
// unknown, and resumes it if it was left stopped by that command. All the while
// the pipe is drained. If nobody answers, the pipe is broken: then QEMU fails
// the command, should it still come to it, and starts the guest.
func (s *Session) settle(ctx context.Context) error {
	if s.pipe.gone() {
		return ErrGuestGone
	}
	if s.pipe.read < 0 {
		return nil // broken already
	}
	s.log.Warn("outcome of a checkpoint is unknown; asking for the guest's state")
	s.pipe.unring()
	w := newWatchdog(s.pipe)
	w.start(0)
	defer w.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleMax)
	defer cancel()
	for {
		state, err := s.status(ctx)
		if err == nil && state == stateSaving {
			// Only a guest that ran gets into this state, and only
			// xen-save-devices-state leaves it in it.
			_, err = s.mon.QMP(ctx, "cont", nil)
			s.log.Warn("guest was left stopped by a checkpoint; resumed", "err", err)
		} else if err == nil {
			return nil
		}
		if s.pipe.gone() {
			return ErrGuestGone
		}
		if ctx.Err() != nil {
			w.stop()
			s.pipe.closeRead()
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		if err != nil { // a monitor that fails at once is asked every 100 ms
			s.pipe.waitGone(100)
		}
	}
}

// stateSaving is RUN_STATE_SAVE_VM, into which xen-save-devices-state puts a
// running guest. A guest suspended by its user is "paused".
const stateSaving = "save-vm"

func (s *Session) status(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusMax)
	defer cancel()
	raw, err := s.mon.QMP(ctx, "query-status", nil)
	if err != nil {
		return "", fmt.Errorf("query-status: %w", err)
	}
	var st struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return "", fmt.Errorf("query-status: %w", err)
	}
	return st.Status, nil
}
