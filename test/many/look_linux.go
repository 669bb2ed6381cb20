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

// usage is what a process takes.
type usage struct {
	rssMiB       float64
	threads, fds int
}

// look notes what the daemons of hosts take at a moment with a name.
func (c *crowd) look(when string, hosts ...*lab.Host) error {
	for _, h := range hosts {
		pid, err := h.Daemon.Pid()
		if err != nil {
			return err
		}
		u, err := usageOf(pid)
		if err != nil {
			return err
		}
		side := strings.TrimPrefix(h.Name, "host-")
		c.result.Metric(fmt.Sprintf("daemon_%s_%s_mib", side, when), u.rssMiB)
		c.result.Metric(fmt.Sprintf("daemon_%s_%s_threads", side, when), float64(u.threads))
		c.result.Metric(fmt.Sprintf("daemon_%s_%s_fds", side, when), float64(u.fds))
		say("daemon of %s, %s: %.0f MiB, %d threads, %d descriptors", h.Name, when, u.rssMiB, u.threads, u.fds)
	}
	return nil
}

// lookAtStandbys notes what QEMU takes for a standby on B, its guest's memory left
// aside.
func (c *crowd) lookAtStandbys() error {
	var each []float64
	for _, g := range c.guests {
		pid, err := c.lab.B.QEMU(g.Name)
		if err != nil {
			return err
		}
		u, err := usageOf(pid)
		if err != nil {
			return err
		}
		each = append(each, u.rssMiB)
	}
	c.result.Metric("standby_qemu_mib", tool.Median(each))
	say("QEMU of a standby: %.0f MiB of its own", tool.Median(each))
	return nil
}

// usageOf reads a process's status. Its memory is what it has for itself, for
// it maps that of every standby too.
func usageOf(pid int) (usage, error) {
	var u usage
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.fds = len(fds)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "RssAnon:" && words[0] != "Threads:" {
			continue
		}
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return u, fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
		if words[0] == "Threads:" {
			u.threads = n
		} else {
			u.rssMiB = float64(n) / 1024
		}
	}
	return u, nil
}

// shares notes what the guests take of a processor over the window, in hundredths
// of one and for each guest, and what the daemons and A's libvirtd take for them.
func (c *crowd) shares(ctx context.Context, when string) error {
	pids := map[string][]int{}
	for who, s := range map[string]*lab.Service{"daemon_a": c.lab.A.Daemon, "daemon_b": c.lab.B.Daemon, "libvirtd_a": c.lab.A.Libvirtd} {
		pid, err := s.Pid()
		if err != nil {
			return err
		}
		pids[who] = []int{pid}
	}
	for _, g := range c.guests {
		pid, err := c.lab.A.QEMU(g.Name)
		if err != nil {
			return err
		}
		pids["qemu_a"] = append(pids["qemu_a"], pid)
	}
	before, err := times(pids)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := wait(ctx, c.window); err != nil {
		return err
	}
	after, err := times(pids)
	if err != nil {
		return err
	}
	text := ""
	for _, who := range []string{"qemu_a", "daemon_a", "daemon_b", "libvirtd_a"} {
		share := 100 * (after[who] - before[who]).Seconds() / time.Since(began).Seconds() / float64(len(c.guests))
		c.result.Metric(fmt.Sprintf("cpu_%s_%s_pct", who, when), share)
		text += fmt.Sprintf(", %s %.1f %%", who, share)
	}
	say("%s, of a processor for each guest: %s", when, text[2:])
	return nil
}

// times sums up what processes have had of the processors.
func times(pids map[string][]int) (map[string]time.Duration, error) {
	sums := map[string]time.Duration{}
	for who, ps := range pids {
		for _, pid := range ps {
			d, err := tool.CPUTime(pid)
			if err != nil {
				return nil, err
			}
			sums[who] += d
		}
	}
	return sums, nil
}
