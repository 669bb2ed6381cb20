package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
	"github.com/virt-ft/virt-ft/test/clock/guest"
)

// payload is what the measured guest does beside reading its clock.
func payload() guest.Payload {
	return guest.Payload{Pages: 256, Every: 256, GapNs: 200_000}
}

// quiet is for sessions and keepers: what goes wrong is in their errors and
// reports, and the rest is no news here.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// switchable is a clock for a session that is opened once, and taken out and put
// back between checkpoints.
type switchable struct{ *kvmclock.Keeper }

func (s *switchable) Paused() {
	if s.Keeper != nil {
		s.Keeper.Paused()
	}
}

func (s *switchable) Resuming() {
	if s.Keeper != nil {
		s.Keeper.Resuming()
	}
}

func (s *switchable) Resumed() {
	if s.Keeper != nil {
		s.Keeper.Resumed()
	}
}

// subject is a guest under checkpoints.
type subject struct {
	*guest.Machine
	*meter
	session *capture.Session
	mon     *qmptest.Client
	clock   switchable
}

func newSubject(ctx context.Context, cpus int) (s *subject, err error) {
	s = &subject{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			s = nil
		}
	}()
	if s.Machine, err = guest.Start(ctx, guest.Options{CPUs: cpus, Payload: payload()}); err != nil {
		return s, err
	}
	if s.meter, err = newMeter(ctx, s.Machine); err != nil {
		return s, err
	}
	return s, s.open(ctx)
}

// open begins to take checkpoints.
func (s *subject) open(ctx context.Context) (err error) {
	if s.mon, err = qmptest.Dial(ctx, s.Socket); err != nil {
		return err
	}
	s.session, err = capture.Open(ctx, s.PID, s.mon, capture.Options{Clock: &s.clock, Logger: quiet()})
	return err
}

// shut ends the checkpoints; the guest goes on.
func (s *subject) shut() (err error) {
	if s.session != nil {
		err = s.session.Close(context.Background())
		s.session = nil
	}
	if s.mon != nil {
		err = errors.Join(err, s.mon.Close())
		s.mon = nil
	}
	return err
}

func (s *subject) close() error {
	err := errors.Join(s.release(), s.shut())
	if s.Machine != nil {
		err = errors.Join(err, s.Machine.Close())
	}
	return err
}

// keep puts a new keeper in.
func (s *subject) keep(ctx context.Context) (err error) {
	s.clock.Keeper, err = kvmclock.Open(ctx, s.PID, kvmclock.Options{Logger: quiet()})
	return err
}

// release takes the keeper out.
func (s *subject) release() (err error) {
	if s.clock.Keeper != nil {
		err = s.clock.Close()
		s.clock.Keeper = nil
	}
	return err
}

// checkpoint takes one, and gives what was copied to take, if there is such.
func (s *subject) checkpoint(ctx context.Context, take func(*capture.Batch) error) (*capture.Checkpoint, error) {
	c, err := s.session.Checkpoint(ctx, capture.CheckpointOptions{})
	if err != nil {
		return nil, errors.Join(err, s.Alive())
	}
	if c.Batch == nil { // nothing was written
		return c, nil
	}
	defer c.Batch.Free()
	if take != nil {
		err = take(c.Batch)
	}
	return c, err
}

// pace is a rate of checkpoints: one that comes late moves all that follow.
type pace struct {
	every time.Duration
	next  time.Time
}

func newPace(hz int) *pace { return &pace{every: time.Second / time.Duration(hz), next: time.Now()} }

func (p *pace) wait(ctx context.Context) error {
	p.next = p.next.Add(p.every)
	left := time.Until(p.next)
	if left < p.every/10 { // the guest runs a little in any case
		p.next = p.next.Add(p.every/10 - left)
		left = p.every / 10
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(left):
		return nil
	}
}

// epochOf is what one epoch of a stretch showed.
type epochOf struct {
	reading
	phases capture.Phases
}

// mode of a stretch.
type mode int

const (
	alone       mode = iota // no checkpoints
	uncorrected             // checkpoints, and QEMU's own clock
	corrected               // checkpoints, and a keeper
)

func (m mode) String() string { return [...]string{"unprotected", "uncorrected", "corrected"}[m] }

// stretch is a time of checkpoints of one kind.
type stretch struct {
	mode   mode
	hz     int
	first  reading // the anchor
	epochs []epochOf
	steps  steps
	report kvmclock.Report
}

// stretch runs the guest for a time.
func (s *subject) stretch(ctx context.Context, m mode, hz int, lasts time.Duration) (st *stretch, err error) {
	st = &stretch{mode: m, hz: hz}
	if m == corrected {
		if err := s.keep(ctx); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, s.release()) }()
	}
	before := stepsOf(s.Machine)
	if st.first, err = s.readFresh(ctx); err != nil {
		return nil, err
	}
	p := newPace(hz)
	for until := time.Now().Add(lasts); time.Now().Before(until); {
		if err := p.wait(ctx); err != nil {
			return nil, err
		}
		var e epochOf
		if m != alone {
			c, err := s.checkpoint(ctx, nil)
			if err != nil {
				return nil, err
			}
			e.phases = c.Phases
		}
		if e.reading, err = s.readFresh(ctx); err != nil {
			return nil, err
		}
		st.epochs = append(st.epochs, e)
	}
	st.steps = stepsOf(s.Machine).since(before)
	if m == corrected {
		st.report = s.clock.Report()
	}
	return st, s.check(ctx)
}

// errsNs are what the guest's clock has gained since the anchor, at each epoch.
func (st *stretch) errsNs() (v []int64) {
	for _, e := range st.epochs {
		v = append(v, e.lead()-st.first.lead())
	}
	return v
}

// elapsedNs is the length of the stretch.
func (st *stretch) elapsedNs() int64 {
	if len(st.epochs) == 0 {
		return 0
	}
	return st.epochs[len(st.epochs)-1].rawNs - st.first.rawNs
}

// gainedNs is what the clock has gained in all of it.
func (st *stretch) gainedNs() int64 {
	if len(st.epochs) == 0 {
		return 0
	}
	return st.epochs[len(st.epochs)-1].lead() - st.first.lead()
}

func (st *stretch) print(w io.Writer) {
	d := describe(st)
	fmt.Fprintf(w, "  %-11s %3d Hz: %4d epochs in %5.2f s, paused p50 %.2f ms; clock %+.3f µs (%+.3f ppm), error p99 %.3f max %.3f µs; without the rate max %.3f µs; backwards %d, TSC skew %d of %d reads; kept %d restored %d missed %d\n",
		st.mode, st.hz, d.Epochs, d.Seconds, d.PausedP50Ms, d.GainedUs, d.PPM, d.ErrP99Us, d.ErrMaxUs, d.ResidualMaxUs, st.steps.backwards(), st.steps.Skew, st.steps.Reads,
		d.Kept, d.Restored, d.Missed)
	if d.LastMiss != "" {
		fmt.Fprintf(w, "              last miss: %s\n", d.LastMiss)
	}
}
