package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// usage is what was used up to a moment. Processor time is of all threads of a
// process, user and system.
type usage struct {
	At                         time.Time
	Epochs                     uint64  // captured
	PauseMs                    float64 // median of the latest, by the daemon's clock
	Primary, Backup, LibvirtdA time.Duration
}

// usage looks at host A's protection, which must be one, and at the processes.
func (b *bench) usage(ctx context.Context) (u usage, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	ps, err := b.lab.A.Protections(ctx, b.guest.Name)
	if err != nil {
		return u, err
	}
	if len(ps) != 1 || ps[0].State != "protected" {
		return u, fmt.Errorf("the guest is not protected any more: %+v", ps)
	}
	u.At, u.Epochs, u.PauseMs = time.Now(), ps[0].Epoch.Captured, ps[0].Pause.P50Ms
	for _, of := range []struct {
		s  *lab.Service
		to *time.Duration
	}{{b.lab.A.Daemon, &u.Primary}, {b.lab.B.Daemon, &u.Backup}, {b.lab.A.Libvirtd, &u.LibvirtdA}} {
		if *of.to, err = cpuTime(of.s); err != nil {
			return u, err
		}
	}
	return u, nil
}

// cpuTime is what a service has had of the processors.
func cpuTime(s *lab.Service) (time.Duration, error) {
	pid, err := s.Pid()
	if err != nil {
		return 0, err
	}
	return tool.CPUTime(pid)
}

func procFile(s *lab.Service, name string) ([]byte, error) {
	pid, err := s.Pid()
	if err != nil {
		return nil, err
	}
	return os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
}

// memory reads how much the daemons have resident.
func (b *bench) memory() (m memory, err error) {
	for _, of := range []struct {
		s  *lab.Service
		to *resident
	}{{b.lab.A.Daemon, &m.Primary}, {b.lab.B.Daemon, &m.Backup}} {
		text, err := procFile(of.s, "status")
		if err != nil {
			return m, err
		}
		if *of.to, err = parseResident(string(text)); err != nil {
			return m, fmt.Errorf("status of %s: %w", of.s.LogPath(), err)
		}
	}
	return m, nil
}

// parseResident reads /proc/PID/status.
func parseResident(text string) (r resident, err error) {
	for key, to := range map[string]*float64{"RssAnon": &r.AnonMiB, "RssFile": &r.FileMiB, "RssShmem": &r.SharedMiB} {
		_, rest, found := strings.Cut(text, "\n"+key+":")
		value, _, whole := strings.Cut(strings.TrimSpace(rest), " kB")
		if !found || !whole {
			return r, fmt.Errorf("no %s", key)
		}
		kib, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return r, fmt.Errorf("%s: %w", key, err)
		}
		*to = float64(kib) / 1024
	}
	return r, nil
}
