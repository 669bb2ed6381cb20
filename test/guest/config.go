package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Limits on what the kernel command line may ask for.
const (
	memMaxMiB       = 1 << 16
	pagesPerSecMax  = 10_000_000
	tickMin         = time.Millisecond / 2
	tickMaxMs       = 3_600_000
	verifyPerSecDef = 8000
)

// config is what the kernel command line says, as ft.KEY=VALUE words.
type config struct {
	ip           netip.Prefix   // ft.ip, of the first network interface
	observer     netip.AddrPort // ft.observer, where ticks go
	memMiB       int            // ft.mem_mb, the working set
	dirtyPerSec  int            // ft.dirty_pages_s, pages rewritten per second
	verifyPerSec int            // ft.verify_pages_s, pages checked per second
	tick         time.Duration  // ft.tick_ms, may be a fraction; 0: nobody is told
	disks        []diskConfig   // ft.disks, once for each
	acceptDisk   string         // ft.disk, where the acceptance service writes before it answers
}

// diskConfig is one disk by its serial number, as "vda:records" or "vda:ext4".
type diskConfig struct{ name, workload string }

// disksMax bounds the disks.
const disksMax = 8

// parseConfig reads the command line. Unknown ft. keys are an error, so that a
// misspelt one does not pass for a default.
func parseConfig(cmdline string) (config, error) {
	c := config{memMiB: 64, dirtyPerSec: 2000, verifyPerSec: verifyPerSecDef, tick: 2 * time.Millisecond}
	for word := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		if !strings.HasPrefix(key, "ft.") {
			continue
		}
		if err := c.set(key, value); err != nil {
			return c, fmt.Errorf("%s: %w", word, err)
		}
	}
	return c, nil
}

func (c *config) set(key, value string) (err error) {
	switch key {
	case "ft.ip":
		c.ip, err = netip.ParsePrefix(value)
	case "ft.observer":
		c.observer, err = netip.ParseAddrPort(value)
	case "ft.mem_mb":
		c.memMiB, err = number(value, memMaxMiB)
	case "ft.dirty_pages_s":
		c.dirtyPerSec, err = number(value, pagesPerSecMax)
	case "ft.verify_pages_s":
		c.verifyPerSec, err = number(value, pagesPerSecMax)
	case "ft.tick_ms":
		var ms float64
		ms, err = strconv.ParseFloat(value, 64)
		c.tick, err = tickOf(ms, err)
	case "ft.disks":
		name, workload, _ := strings.Cut(value, ":")
		if name == "" || workload != "records" && workload != "ext4" || len(c.disks) == disksMax {
			return fmt.Errorf("not one of at most %d NAME:records or NAME:ext4", disksMax)
		}
		c.disks = append(c.disks, diskConfig{name, workload})
	case "ft.disk":
		c.acceptDisk = value
	default:
		err = fmt.Errorf("unknown key")
	}
	return err
}

// tickOf bounds a tick given in milliseconds.
func tickOf(ms float64, err error) (time.Duration, error) {
	switch {
	case err != nil:
		return 0, err
	case !(ms >= 0 && ms <= tickMaxMs):
		return 0, fmt.Errorf("not between 0 and %d ms", int64(tickMaxMs))
	case ms == 0:
		return 0, nil
	}
	return max(time.Duration(ms*float64(time.Millisecond)), tickMin), nil
}

func number(s string, max int) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && (n < 0 || n > max) {
		err = fmt.Errorf("not between 0 and %d", max)
	}
	return n, err
}
