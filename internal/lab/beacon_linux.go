package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Beacon reads a guest's beacon page out of its QEMU's memory, without QEMU's
// or the guest's help: it works on a running, a paused and a waiting domain.
// It is safe for concurrent use.
type Beacon struct {
	pid  int
	addr uintptr // of the page in QEMU
}

// ErrTorn says that the guest was changing the page whenever it was read.
var ErrTorn = errors.New("lab: the beacon page is being written")

// beaconTries bounds how often a torn page is read again.
const beaconTries = 100

// OpenBeacon finds the page at a guest-physical address in the QEMU of a
// domain on the host. It asks QEMU once, for the address.
func (h *Host) OpenBeacon(ctx context.Context, domain string, gpa uint64) (*Beacon, error) {
	pid, err := h.QEMU(domain)
	if err != nil {
		return nil, err
	}
	out, err := h.Virsh(ctx, "qemu-monitor-command", domain, "--hmp", fmt.Sprintf("gpa2hva %#x", gpa))
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`is (0x[0-9a-f]+)`).FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("lab: %s: gpa2hva of %#x said %q", domain, gpa, out)
	}
	addr, err := strconv.ParseUint(m[1], 0, 64)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", domain, err)
	}
	return &Beacon{pid: pid, addr: uintptr(addr)}, nil
}

// Read returns the page's content as of one moment. A guest that was stopped
// in the middle of an update stays ErrTorn until it runs.
func (b *Beacon) Read() (guestapi.Beacon, error) {
	var page [guestapi.BeaconBytes]byte
	var before, after [8]byte
	for range beaconTries {
		for _, part := range [...]struct {
			to  []byte
			off uintptr
		}{{before[:], guestapi.SeqOffset}, {page[:], 0}, {after[:], guestapi.SeqOffset}} {
			if err := b.peek(part.to, part.off); err != nil {
				return guestapi.Beacon{}, err
			}
		}
		if seq := binary.LittleEndian.Uint64(before[:]); before == after && seq%2 == 0 {
			return guestapi.ParseBeacon(page[:])
		}
	}
	return guestapi.Beacon{}, ErrTorn
}

// Spins returns the spin counter alone, which cannot be torn.
func (b *Beacon) Spins() (uint64, error) {
	var v [8]byte
	err := b.peek(v[:], guestapi.SpinsOffset)
	return binary.LittleEndian.Uint64(v[:]), err
}

func (b *Beacon) peek(to []byte, off uintptr) error {
	local := []unix.Iovec{{Base: &to[0], Len: uint64(len(to))}}
	remote := []unix.RemoteIovec{{Base: b.addr + off, Len: len(to)}}
	n, err := unix.ProcessVMReadv(b.pid, local, remote, 0)
	if err == nil && n != len(to) {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("lab: beacon in process %d: %w", b.pid, err)
	}
	return nil
}

// Stalls watches the spin counter for d, while the guest obeys "spin", and
// returns how long it stood still each time that was note or longer, and the
// longest. This is the guest's pause by a clock that runs on.
func (b *Beacon) Stalls(ctx context.Context, d time.Duration, note time.Duration) (stalls []time.Duration, longest time.Duration, err error) {
	start := time.Now()
	last, err := b.Spins()
	for moved := start; err == nil && ctx.Err() == nil; {
		now := time.Now()
		if now.Sub(start) >= d {
			return stalls, longest, nil
		}
		var v uint64
		if v, err = b.Spins(); err != nil || v == last {
			continue
		}
		still := now.Sub(moved)
		longest = max(longest, still)
		if still >= note && len(stalls) < stallsMax {
			stalls = append(stalls, still)
		}
		last, moved = v, now
	}
	return stalls, longest, errFirst(err, ctx.Err())
}

// stallsMax bounds how many stalls are kept.
const stallsMax = 1 << 16
