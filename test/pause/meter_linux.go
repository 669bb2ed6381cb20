package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// meter is a lab with one guest at a time on host A, and all that measures it.
type meter struct {
	o       options
	lab     *lab.Lab
	ramMiB  int // of the guest; 0: there is none
	rssMiB  int // of its QEMU, once populated
	guest   *lab.Guest
	beacon  *lab.Beacon
	sampler *sampler
	mode    string // how this process is scheduled
	agent   *agent
	spinner spinner
}

// newMeter builds the lab.
func newMeter(ctx context.Context, o options) (_ *meter, err error) {
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	m := &meter{o: o}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if m.lab, err = lab.New(ctx, lab.Options{Log: log}); err != nil {
		return nil, err
	}
	boot, err := m.lab.InstallBoot(assets)
	if err != nil {
		m.lab.Close()
		return nil, err
	}
	m.o.boot.Kernel, m.o.boot.Initrd = boot.Kernel, boot.Initrd
	return m, nil
}

// seatMax bounds booting and populating a guest.
const seatMax = 3 * time.Minute

// seat boots a guest of a size in the place of the one before, has it write to
// all of its memory, and begins to track it. A guest that has the size stays.
func (m *meter) seat(ctx context.Context, mib int) (err error) {
	if m.ramMiB == mib {
		return nil
	}
	if err := m.unseat(ctx); err != nil {
		return err
	}
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, seatMax)
	defer cancel()
	shape := m.o.boot
	shape.Name, shape.MemMiB = fmt.Sprintf("ram%d", mib), mib
	if m.guest, err = m.lab.A.StartGuest(bounded, shape); err != nil {
		return err
	}
	m.ramMiB = mib
	if err = m.populate(bounded); err != nil {
		return err
	}
	if m.beacon, err = m.lab.A.OpenBeacon(bounded, m.guest.Name, m.guest.Ready.BeaconGPA); err != nil {
		return err
	}
	m.sampler = newSampler(m.beacon, m.o.nap)
	m.spinner = spinner{lab: m.lab, beacon: m.beacon}
	if m.agent, err = startAgent(bounded, m.lab.A, m.guest.Name, m.o.passes); err != nil {
		return err
	}
	if m.o.nice != 0 {
		if err = prefer(m.lab.A, m.o.nice); err != nil {
			return err
		}
	}
	m.mode = elevate(true) // nothing is started from here on
	say("guest %s runs on host A, holds %d MiB, and is tracked (%d ms); the sampler is a %s process, its nap is %v",
		m.guest.Name, m.rssMiB, time.Since(start).Milliseconds(), m.mode, m.o.nap)
	return nil
}

// unseat ends the guest, if there is one.
func (m *meter) unseat(ctx context.Context) error {
	if m.ramMiB == 0 {
		return nil
	}
	m.letGo()
	if _, err := m.lab.A.Virsh(ctx, "destroy", m.guest.Name); err != nil {
		return err
	}
	m.ramMiB = 0
	m.spinner.wait()
	return nil
}

// letGo ends what looks at the guest.
func (m *meter) letGo() {
	elevate(false)
	if m.agent != nil {
		m.agent.close()
		m.agent = nil
	}
	if m.sampler != nil {
		m.sampler.close()
		m.sampler = nil
	}
}

// populatedShare is how much of its memory a populated guest must hold.
const populatedShare = .9

// populate has the guest write to its memory, and makes sure that QEMU has it.
func (m *meter) populate(ctx context.Context) error {
	if _, err := m.lab.Command(ctx, "populate 0"); err != nil {
		return err
	}
	pid, err := m.lab.A.QEMU(m.guest.Name)
	if err != nil {
		return err
	}
	if m.rssMiB, err = field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS"); err != nil {
		return err
	}
	if float64(m.rssMiB) < populatedShare*float64(m.ramMiB) {
		return fmt.Errorf("the guest wrote to its memory, but QEMU holds only %d of %d MiB", m.rssMiB, m.ramMiB)
	}
	return nil
}

// lacksMemory says why this machine has no room for a populated guest of a
// size; empty: it has.
func lacksMemory(mib int) string {
	const spareMiB = 1024 // QEMU's own, libvirtd, and what others want
	have, err := field("/proc/meminfo", "MemAvailable")
	switch {
	case err != nil:
		return err.Error()
	case have < mib+spareMiB:
		return fmt.Sprintf("a guest of %d MiB needs %d MiB of available memory, this machine has %d", mib, mib+spareMiB, have)
	}
	return ""
}

// field reads one line of a file of /proc, in kB there, as MiB.
func field(path, name string) (mib int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 3 && words[0] == name+":" && words[2] == "kB" {
			kb, err := strconv.Atoi(words[1])
			return kb >> 10, err
		}
	}
	return 0, fmt.Errorf("%s does not tell %s", path, name)
}

// close ends all; the lab takes guest and agent with it.
func (m *meter) close() {
	m.letGo()
	m.lab.Close()
	m.spinner.wait()
}

// triesMax bounds how many rounds are gone through for one that counts.
const triesMax = 5

// level measures all kinds in turn while the guest dirties pages every epoch.
func (m *meter) level(ctx context.Context, pages, rounds int) (*level, error) {
	l := &level{DirtyPages: pages, RAMMiB: m.ramMiB, RSSMiB: m.rssMiB}
	if err := m.spinner.ensure(ctx); err != nil {
		return nil, err
	}
	rate := int(float64(pages) / m.o.epoch.Seconds())
	if _, err := m.lab.Command(ctx, "sweep "+strconv.Itoa(rate)); err != nil {
		return nil, err
	}
	// The first round finds caches cold, and its checkpoint all of memory.
	for i := 0; !l.complete(rounds); i++ {
		if i > rounds*triesMax {
			return nil, fmt.Errorf("%d pages an epoch: the machine is too busy: in %d rounds the sampler was kept from running for more than %v too often", pages, i, m.o.blind)
		}
		for _, k := range kinds() {
			s, err := m.sample(ctx, k)
			if errors.Is(err, errNoLooks) { // it began to look too late: blind, too
				l.Blind[k]++
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("%d pages an epoch, round %d: %s: %w", pages, i, k, err)
			}
			if i > 0 {
				l.take(k, s, m.o.blind, rounds)
			}
		}
	}
	l.summarize()
	return l, nil
}

// leadIn is for how long the counter is watched before an operation.
const leadIn = 2 * time.Millisecond

// sample carries one operation out and finds the longest stall in it.
func (m *meter) sample(ctx context.Context, k kind) (sample, error) {
	if err := m.spinner.ensure(ctx); err != nil {
		return sample{}, err
	}
	if k == checkpoint { // the epoch begins
		if _, err := m.agent.do(ctx, request{Op: "collect"}); err != nil {
			return sample{}, err
		}
	}
	if err := pauseFor(ctx, m.o.epoch); err != nil {
		return sample{}, err
	}
	m.sampler.start()
	err := pauseFor(ctx, leadIn)
	var a answer
	if err == nil {
		a, err = m.agent.do(ctx, request{Op: k.String()})
	}
	looks, serr := m.sampler.stop(ctx)
	if err = errors.Join(err, serr); err != nil {
		return sample{}, err
	}
	return newSample(a, looks)
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
