package capture

import (
	"errors"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
)

// Between the first byte and the moment in which the guest is let go, a
// checkpoint allocates nothing. The figure is the whole process's: the goroutine
// of the monitor, which may be late in going to sleep, is now and then in it.
func TestPauseDoesNotAllocate(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{AtPause: func() {}})
	r := newReplica(s.Blocks())
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	threads := pprof.Lookup("threadcreate") // the runtime's own doing, and it allocates for them
	measured, allocating, pages := 0, 0, 0
	for i := range 40 {
		a, err := s.arenas.checkpoint.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		handed, started := 0, 0
		w := s.prepare(a, CheckpointOptions{Early: func(*Batch) { handed++ }, Hold: time.Microsecond})
		_, err = s.underBrake(t.Context(), &w.c.Phases, func(overdue func() bool) error {
			started = threads.Count()
			runtime.ReadMemStats(&before)
			err := w.do(overdue)
			runtime.ReadMemStats(&after)
			started = threads.Count() - started
			return err
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.copiedBytes, s.rangesCopied = w.copied, len(w.rs)
		pages += w.copied / 4096
		if i >= 3 && started == 0 { // the first ones find all of memory
			measured++
			if n := after.Mallocs - before.Mallocs; n != 0 {
				allocating++
				t.Logf("checkpoint %d: %d allocations for %d pages", i, n, w.copied/4096)
			}
		}
		if handed > 0 {
			if err := r.apply(w.batch); err != nil {
				t.Fatal(err)
			}
		} else {
			a.fill(w.batch, w.rs, w.copied).Free()
		}
	}
	if allocating > measured/4 {
		t.Errorf("%d of %d checkpoints allocate under pause", allocating, measured)
	}
	if measured < 20 || pages < measured {
		t.Errorf("%d pages in the %d checkpoints that count", pages, measured)
	}
	r.compare(t, g, s)
}

func TestHold(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	for _, c := range []struct{ hold, max time.Duration }{
		{0, DefaultPauseMax}, {3 * time.Millisecond, DefaultPauseMax}, {20 * time.Millisecond, DefaultPauseMax},
		{time.Hour, 3 * time.Second}, // bounded, and no failure
	} {
		s := open(t, g, Options{PauseMax: c.max})
		r := newReplica(s.Blocks())
		handed := false
		p, err := s.Checkpoint(t.Context(), CheckpointOptions{Hold: c.hold, Early: func(b *Batch) {
			handed = true
			if err := r.apply(b); err != nil {
				t.Error(err)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		ph := p.Phases
		still := time.Duration(ph.AtPauseNs + ph.ScanNs + ph.CopyNs + ph.HoldNs)
		if want := min(c.hold, c.max/8*7); still < want || !handed {
			t.Errorf("hold %v: stood still for %v: %+v", c.hold, still, ph)
		}
		if ph.PausedNs < int64(still) || still > max(c.max, time.Duration(ph.ScanNs+ph.CopyNs)) || c.hold == 0 && ph.HoldNs != 0 {
			t.Errorf("hold %v of at most %v: %+v", c.hold, c.max, ph)
		}
		if sum := ph.StopNs + int64(still) + ph.DeviceNs; sum > ph.TotalNs {
			t.Errorf("the phases add up to %d of %d", sum, ph.TotalNs)
		}
		if now := status(t, g); now != "running" {
			t.Errorf("guest is %s", now)
		}
		r.compare(t, g, s)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A guest that is held for an hour, and whose QEMU ends, costs no hour.
func TestHoldEndsWithQEMU(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{PauseMax: 2 * time.Hour})
	_, err := s.Checkpoint(t.Context(), CheckpointOptions{Hold: time.Hour, Early: func(b *Batch) {
		b.Free()
		g.Process().Kill()
	}})
	if !errors.Is(err, ErrGuestGone) {
		t.Errorf("Checkpoint: %v", err)
	}
}

// Live passes: none for a quiet guest, as many as pay for a busy one, and what
// they and the pause find is all there is.
func TestConverge(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	r := newReplica(s.Blocks())
	first, err := s.Converge(t.Context(), 12, r.apply)
	if err != nil || first < pagesFew {
		t.Fatalf("first epoch: %d pages live, %v", first, err)
	}
	r.checkpoint(t, s)
	if s.foreseen() < first {
		t.Errorf("%d pages were copied live, %d are foreseen", first, s.foreseen())
	}
	qmp(t, g, "stop") // an idle guest
	for range recentEpochs + 1 {
		r.checkpoint(t, s)
	}
	if n, err := s.Converge(t.Context(), 12, r.apply); n != 0 || err != nil {
		t.Errorf("%d pages of an idle guest, %v", n, err)
	}
	qmp(t, g, "cont")
	for range 50 {
		if _, err := s.Converge(t.Context(), 3, r.apply); err != nil {
			t.Fatal(err)
		}
		r.checkpoint(t, s)
	}
	refuse := errors.New("refused")
	s.recent[0] = pagesFew
	within(t, 10*time.Second, "a pass finds something", func() bool {
		_, err := s.Converge(t.Context(), 1, func(b *Batch) error { b.Free(); return refuse })
		return errors.Is(err, refuse)
	})
	r.compare(t, g, s)
}

func TestPassPays(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, found int
		want          bool
	}{
		{"nothing is known", pagesUnknown, pagesUnknown / 2, true},
		{"few are foreseen", pagesUnknown, pagesFew - 1, false},
		{"many are foreseen", pagesUnknown, pagesFew, true},
		{"the first pass found many", pagesUnknown, 100_000, true},
		{"half of the pass before", 8000, 4000, true},
		{"few", 8000, pagesFew - 1, false},
		{"hardly fewer", 8000, 6001, false},
		{"more", 8000, 9000, false},
	} {
		if got := passPays(c.before, c.found); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
