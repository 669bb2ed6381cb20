package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestKilledAnywhere kills what there is at random moments, often another one
// before the first is whole again. The guest never stops for long; protection
// resumes, or says that it ended and can be asked for again; nothing is left.
func TestKilledAnywhere(t *testing.T) {
	n := rounds(5)
	s := besiege(t, small(lab.GuestOptions{}), n)
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	for i := range n {
		began := time.Now()
		s.wander(60)
		vs := s.victims()
		first := vs[s.rng.IntN(len(vs))]
		what := first.name
		s.strike(first)
		s.alive()
		s.brief([]time.Duration{time.Millisecond, 100 * time.Millisecond, 1500 * time.Millisecond}[s.rng.IntN(3)])
		for s.rng.IntN(3) == 0 { // before, or while, it is whole again
			if s.rng.IntN(2) == 0 {
				s.heal()
				s.brief(2 * time.Second)
			}
			next := vs[s.rng.IntN(len(vs))]
			what += ", " + next.name
			s.strike(next)
			s.alive()
		}
		s.heal()
		s.alive()
		s.settled()
		s.tidy()
		s.epochs(3)
		t.Logf("round %d: %s; whole again after %v", i+1, what, time.Since(began).Round(time.Millisecond))
	}
	t.Logf("struck %v; taken over %d times, protection lost %d times, longest silence on one host %v", s.struck, s.moves, s.lost, s.neverQuiet())
	s.lastStand()
}

// TestKilledInTheCheckpoint kills the primary's daemon while QEMU has the
// guest stopped for it, many times in a row. Only the guest's life counts.
func TestKilledInTheCheckpoint(t *testing.T) {
	n := rounds(6)
	s := besiege(t, small(lab.GuestOptions{}), n)
	pid, err := s.home.QEMU(s.name)
	s.must(err)
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	dead := map[string]int{}
	inside := 0
	for range n {
		for skip := s.rng.IntN(3); skip >= 0; skip-- {
			s.checkpoint(pid, dead)
		}
		s.brief(4 * time.Millisecond)
		if checkpointing(pid, dead) {
			inside++
		}
		s.must(s.home.Daemon.Kill())
		dead = pipesOf(pid)
		s.alive()
		s.must(s.home.Daemon.Start(s.step()))
	}
	s.alive()
	s.settled()
	s.tidy()
	t.Logf("%d of %d kills hit a checkpoint; longest silence %v", inside, n, s.neverQuiet())
	if inside == 0 {
		t.Error("no kill hit a checkpoint: this test has shown nothing")
	}
	if s.moves > 0 {
		t.Errorf("the guest moved %d times though its host and its QEMU lived", s.moves)
	}
	s.lastStand()
}

// checkpoint waits until a checkpoint is being taken.
func (s *siege) checkpoint(pid int, dead map[string]int) {
	s.t.Helper()
	end := time.Now().Add(stepMax)
	for !checkpointing(pid, dead) {
		if time.Now().After(end) {
			s.t.Fatalf("no checkpoint is taken; QEMU's pipes are %v", pipesOf(pid))
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// checkpointing tells whether QEMU has opened the pipe that it holds for a
// session that lives. dead are the pipes of those before.
func checkpointing(pid int, dead map[string]int) bool {
	for pipe, times := range pipesOf(pid) {
		if dead[pipe] == 0 && times > 1 {
			return true
		}
	}
	return false
}

// TestKilledInTheBeginning kills while protect is under way: at once, in the
// initial sync, and in the rehearsal, some of all there is each time.
func TestKilledInTheBeginning(t *testing.T) {
	s := besiege(t, lab.GuestOptions{}, 15)
	moments := []struct {
		name string
		come func(context.Context) bool
	}{
		{"at once", func(context.Context) bool { s.brief(300 * time.Millisecond); return true }},
		{"in the initial sync", func(ctx context.Context) bool {
			ps, err := s.home.Protections(ctx, s.name)
			return err == nil && len(ps) == 1 && ps[0].State == "syncing" && ps[0].BytesSent > 0
		}},
		{"in the rehearsal", func(context.Context) bool {
			return len(s.processes(s.Peer(s.home))[qemuName]) == 2
		}},
	}
	for _, m := range moments {
		vs := s.victims()
		for _, i := range s.rng.Perm(len(vs))[:min(len(vs), rounds(2))] {
			v := vs[i]
			began := time.Now()
			ctx, cancel := context.WithTimeout(s.ctx, stepMax)
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				_, err := s.home.Ctl(ctx, "protect", s.name, "--to", s.Peer(s.home).Name, "--epoch-idle", shortEpoch)
				t.Logf("protect said: %v", err)
			}()
			hit := false
			for over := false; !hit && !over; {
				hit = m.come(ctx)
				select {
				case <-asked:
					over = true
				case <-time.After(time.Millisecond):
				}
			}
			s.strike(v)
			s.alive()
			s.brief(time.Second)
			s.heal()
			s.alive()
			<-asked
			cancel()
			s.settledAfterProtect()
			s.tidy()
			t.Logf("%s, %s (hit: %v): whole after %v", v.name, m.name, hit, time.Since(began).Round(time.Millisecond))
			_, err := s.home.Ctl(s.step(), "unprotect", s.name)
			s.must(err)
			s.eventually("unprotect leaves something", func() error { return s.cleanQEMU(0) })
		}
	}
	t.Logf("lost %d times; longest silence %v", s.lost, s.neverQuiet())
	s.verified(s.home)
}

// settledAfterProtect is settled for a protection that may never have begun:
// the command that asked for it has told its user so.
func (s *siege) settledAfterProtect() {
	s.t.Helper()
	if ps, err := s.protections(s.home); err != nil || len(ps) == 0 {
		s.lost++
		s.protectHome()
	}
	s.settled()
}
