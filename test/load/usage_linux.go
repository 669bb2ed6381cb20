package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// clockTicks is USER_HZ, which is 100 on every architecture that we know.
const clockTicks = 100

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
	text, err := procFile(s, "stat")
	if err != nil {
		return 0, err
	}
	ticks, err := parseStat(text)
	if err != nil {
		return 0, fmt.Errorf("stat of %s: %w", s.LogPath(), err)
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

func procFile(s *lab.Service, name string) ([]byte, error) {
	p := s.Process()
	if p == nil {
		return nil, fmt.Errorf("it does not run any more; its log is %s", s.LogPath())
	}
	return os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid(), name))
}

// parseStat returns utime and stime of /proc/PID/stat, which are the 14th and
// 15th field; the second may have blanks and parentheses in it.
func parseStat(text []byte) (ticks uint64, err error) {
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%d fields behind the name", len(fields))
	}
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return ticks, nil
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
