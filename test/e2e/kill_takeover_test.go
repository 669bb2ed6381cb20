package e2e

import (
	"fmt"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// killedInTheTakeOver kills the guest's QEMU and, a moment later, the
// daemon that takes over: two failures at once. Either the guest runs on the
// other host, with the right memory, or it is lost and both daemons say so;
// nothing half-loaded is left, and never do two run.
func killedInTheTakeOver(s *siege) {
	n, survived := rounds(takeOverRounds), 0
	for i := range n {
		s.protect(s.home, s.name, "--epoch-idle", shortEpoch)
		s.wander(30)
		from, to := s.home, s.Peer(s.home)
		s.killQEMU(from, s.name)
		after := time.Duration(s.rng.Int64N(int64(150 * time.Millisecond)))
		time.Sleep(after)
		s.must(to.Daemon.Kill())
		s.must(to.Daemon.Start(s.step()))
		runs := s.takeOverRuns(to)
		s.t.Logf("round %d: daemon killed %v after QEMU; the guest lives: %v", i+1, after, runs)
		if runs {
			survived++
			s.livesOn(to)
			s.verified(to)
		} else {
			s.reportedLost(from, to)
			s.gpa, s.home = s.guest(lab.GuestOptions{}).Ready.BeaconGPA, nil
			s.livesOn(s.A)
		}
	}
	s.t.Logf("the guest survived %d of %d", survived, n)
}

// takeOverRuns waits for the outcome of a take-over on h.
func (s *siege) takeOverRuns(h *lab.Host) (runs bool) {
	s.t.Helper()
	s.eventually("the take-over has no outcome", func() error {
		ps, err := s.protections(h)
		switch {
		case err != nil && strings.Contains(err.Error(), "not protected"):
			return nil
		case err != nil:
			return err
		case len(ps) != 1:
			return fmt.Errorf("%d protections", len(ps))
		case ps[0].State == "active":
			runs = true
			return nil
		case ps[0].State == "waiting": // for a primary that will not come
			return nil
		}
		return fmt.Errorf("%s is %s: %s", h.Name, ps[0].State, ps[0].Error)
	})
	return runs
}

// reportedLost checks what is left of a guest that did not survive.
func (s *siege) reportedLost(from, to *lab.Host) {
	s.t.Helper()
	s.eventually("the loss is not reported", func() error {
		if _, err := s.protections(from); err == nil || !strings.Contains(err.Error(), "not protected any more: ") {
			return fmt.Errorf("%s says %v", from.Name, err)
		}
		for _, h := range []*lab.Host{from, to} {
			if out, err := h.Virsh(s.ctx, "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "" {
				return fmt.Errorf("domains on %s: %q (%w)", h.Name, out, err)
			}
		}
		return nil
	})
}
