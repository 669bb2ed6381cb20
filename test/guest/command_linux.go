package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Limits of the command port.
const (
	lineMaxBytes = 1024
	clientsMax   = 16
	spinMax      = 10 * time.Minute
	gapsMax      = 1 << 16
	// gapNoteNs is the shortest gap that spin keeps for its percentiles.
	gapNoteNs = 500_000
)

// commands answers lines with one JSON object each.
type commands struct {
	guest    *guest
	served   atomic.Uint64 // numbered requests answered
	highest  atomic.Uint64 // highest number among them
	spinning atomic.Bool
	sweeper  sweeper
	worker   worker
}

func (c *commands) serve() error {
	tcp, err := net.Listen("tcp4", fmt.Sprintf(":%d", guestapi.CommandPort))
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", guestapi.CommandPort))
	if err != nil {
		tcp.Close()
		return err
	}
	go c.serveUDP(udp)
	go c.serveTCP(tcp)
	return nil
}

func (c *commands) serveUDP(conn net.PacketConn) {
	buf := make([]byte, lineMaxBytes)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			continue
		}
		_, _ = conn.WriteTo(append(c.answer(string(buf[:n])), '\n'), from)
	}
}

func (c *commands) serveTCP(l net.Listener) {
	slots := make(chan struct{}, clientsMax)
	for {
		conn, err := l.Accept()
		if err != nil {
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { conn.Close(); <-slots }()
			lines := bufio.NewScanner(conn)
			lines.Buffer(nil, lineMaxBytes)
			for lines.Scan() {
				if _, err := conn.Write(append(c.answer(lines.Text()), '\n')); err != nil {
					return
				}
			}
		}()
	}
}

func (c *commands) answer(line string) []byte {
	result, err := c.run(strings.Fields(line))
	if err != nil {
		result = map[string]any{"error": err.Error()}
	}
	out, err := json.Marshal(result)
	if err != nil {
		out = []byte(`{"error":"unprintable answer"}`)
	}
	return out
}

func (c *commands) run(words []string) (map[string]any, error) {
	if len(words) == 0 {
		return nil, fmt.Errorf("empty command")
	}
	if words[0] == "disk" {
		return c.guest.disks.run(words[1:])
	}
	if words[0] == "stream-send" {
		return streamSend(words[1:])
	}
	if words[0] == "work" {
		return c.worker.run(c.guest.beacon.word(guestapi.SpinsOffset), words[1:])
	}
	var n uint64
	if len(words) > 1 {
		var err error
		if n, err = strconv.ParseUint(words[1], 10, 63); err != nil {
			return nil, fmt.Errorf("%s: bad number %q", words[0], words[1])
		}
	}
	switch words[0] {
	case "status":
		return c.status(), nil
	case "req":
		return c.request(n), nil
	case "spin":
		return c.spin(time.Duration(n) * time.Millisecond)
	case "dirty":
		if n > pagesPerSecMax {
			return nil, fmt.Errorf("dirty: at most %d pages a second", pagesPerSecMax)
		}
		c.guest.work.dirtyPerSec.Store(int64(n))
		return map[string]any{"dirty_pages_s": n}, nil
	case "verify":
		if n < 1 || n > hurryPassesMax {
			return nil, fmt.Errorf("verify: 1 to %d passes", hurryPassesMax)
		}
		c.guest.work.hurry(n)
		return map[string]any{"passes": n}, nil
	case "populate":
		return populate(n)
	case "sweep":
		return c.sweeper.run(n)
	case "tick":
		every, err := tickOf(float64(n), nil)
		if err != nil {
			return nil, fmt.Errorf("tick: %w", err)
		}
		c.guest.tellNs.Store(int64(every))
		return map[string]any{"tick_ms": n}, nil
	case "poweroff":
		return c.after(func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }), nil
	case "reboot":
		return c.after(func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }), nil
	case "panic":
		return c.after(func() { _ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }), nil
	}
	return nil, fmt.Errorf("unknown command %q", words[0])
}

// after lets the answer leave before the guest goes.
func (c *commands) after(do func()) map[string]any {
	time.AfterFunc(100*time.Millisecond, do)
	return map[string]any{"ok": true}
}

func (c *commands) status() map[string]any {
	t := c.guest.tick()
	s := map[string]any{
		"boot_id": t.BootID.String(), "counter": t.Counter, "monotonic_ns": t.MonotonicNs,
		"uptime_ns": t.UptimeNs, "realtime_ns": clockNs(unix.CLOCK_REALTIME), "pid": t.Pid,
		"mem_errors": t.MemErrors, "passes": t.Passes, "writes": t.Writes,
		"pages": len(c.guest.work.pages), "dirty_pages_s": c.guest.work.dirtyPerSec.Load(),
		"served": c.served.Load(), "highest": c.highest.Load(),
	}
	if e := c.guest.work.firstError.Load(); e != nil {
		s["first_error"] = *e
	}
	return s
}

// request answers a numbered request and remembers that it did: a client that
// got the answer may expect the guest to know of it for ever.
func (c *commands) request(n uint64) map[string]any {
	for {
		old := c.highest.Load()
		if n <= old || c.highest.CompareAndSwap(old, n) {
			break
		}
	}
	return map[string]any{"req": n, "served": c.served.Add(1), "highest": c.highest.Load()}
}

// spin reads CLOCK_MONOTONIC as fast as it can for d, counting in the beacon
// page, and reports the gaps it saw. On a clock that stops with the guest
// (TCG) it is the counter, watched from outside, that shows the pauses.
func (c *commands) spin(d time.Duration) (map[string]any, error) {
	if d <= 0 || d > spinMax {
		return nil, fmt.Errorf("spin: give milliseconds, at most %d", spinMax.Milliseconds())
	}
	if !c.spinning.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("spin: already spinning")
	}
	defer c.spinning.Store(false)
	counter := c.guest.beacon.word(guestapi.SpinsOffset)
	gaps := make([]uint64, 0, 1024)
	start := clockNs(unix.CLOCK_MONOTONIC)
	last, longest, reads := start, uint64(0), uint64(0)
	for last-start < uint64(d) {
		now := clockNs(unix.CLOCK_MONOTONIC)
		gap := now - last
		longest = max(longest, gap)
		if gap >= gapNoteNs && len(gaps) < gapsMax {
			gaps = append(gaps, gap)
		}
		last = now
		reads++
		atomic.AddUint64(counter, 1)
	}
	slices.Sort(gaps)
	at := func(q float64) uint64 {
		if len(gaps) == 0 {
			return 0
		}
		return gaps[int(q*float64(len(gaps)-1))]
	}
	return map[string]any{"longest_gap_ns": longest, "reads": reads, "elapsed_ns": last - start,
		"gaps": len(gaps), "gap_note_ns": gapNoteNs, "gap_p50_ns": at(.5), "gap_p99_ns": at(.99)}, nil
}
