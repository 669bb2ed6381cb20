package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// TestKilled takes one guest through losses that it must not notice as long as its
// own host lives, and through campaigns of them. TestKilled/anywhere and
// TestKilled/in_the_checkpoint take -kills.
func TestKilled(t *testing.T) {
	s := besiege(t, small(lab.GuestOptions{}), 15+rounds(anywhereRounds)+rounds(checkpointRounds))
	s.story("daemon restarted", daemonRestarted)
	s.story("backup lost", backupLost)
	s.story("beside a paused guest", restartedBesidePausedGuest)
	s.story("anywhere", killedAnywhere)
	s.story("in the checkpoint", killedInTheCheckpoint)
}

// TestKilledHalfway kills while protect, and while a take-over, is under way. Its
// guest has memory enough for the first to take a while.
func TestKilledHalfway(t *testing.T) {
	s := besiege(t, lab.GuestOptions{}, 15+2*rounds(takeOverRounds))
	s.story("in the beginning", killedInTheBeginning)
	s.story("in the take-over", killedInTheTakeOver)
}

// How many rounds are fought unless -kills says otherwise: a few minutes' worth.
const (
	anywhereRounds   = 5
	checkpointRounds = 6
	takeOverRounds   = 2
)

// killedAnywhere kills what there is at random moments, often another one
// before the first is whole again. The guest never stops for long; protection
// resumes, or says that it ended and can be asked for again; nothing is left.
func killedAnywhere(s *siege) {
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	for i := range rounds(anywhereRounds) {
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
		s.t.Logf("round %d: %s; whole again after %v", i+1, what, time.Since(began).Round(time.Millisecond))
	}
	s.t.Logf("struck %v; taken over %d times, protection lost %d times, longest silence on one host %v", s.struck, s.moves, s.lost, s.neverQuiet())
	s.lastStand()
}

// killedInTheCheckpoint kills the primary's daemon while QEMU has the
// guest stopped for it, many times in a row. Only the guest's life counts.
func killedInTheCheckpoint(s *siege) {
	pid, err := s.home.QEMU(s.name)
	s.must(err)
	dead := pipesOf(pid) // those that are no session's, too
	s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
	n, inside := rounds(checkpointRounds), 0
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
	s.t.Logf("%d of %d kills hit a checkpoint; longest silence %v", inside, n, s.neverQuiet())
	if inside == 0 {
		s.t.Error("no kill hit a checkpoint: this test has shown nothing")
	}
	if s.moves > 0 {
		s.t.Errorf("the guest moved %d times though its host and its QEMU lived", s.moves)
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

// killedInTheBeginning kills while protect is under way: at once, in the
// initial sync, and in the rehearsal, some of all there is each time.
func killedInTheBeginning(s *siege) {
	moments := []struct {
		name string
		come func(context.Context) bool
	}{
		{"at once", func(context.Context) bool { s.brief(300 * time.Millisecond); return true }},
		{"in the initial sync", func(ctx context.Context) bool {
			ps, err := s.home.Poll(ctx, s.name)
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
				s.t.Logf("protect said: %v", err)
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
			s.t.Logf("%s, %s (hit: %v): whole after %v", v.name, m.name, hit, time.Since(began).Round(time.Millisecond))
			_, err := s.home.Ctl(s.step(), "unprotect", s.name)
			s.must(err)
			s.eventually("unprotect leaves something", func() error { return s.cleanQEMU(0) })
		}
	}
	s.t.Logf("lost %d times; longest silence %v", s.lost, s.neverQuiet())
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
