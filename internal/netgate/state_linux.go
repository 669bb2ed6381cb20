package netgate

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The only value of a gate's map: 64-bit words in host byte order. A daemon
// that finds another layout in a pinned map does not take it over.
const (
	wordLayout        = 8 * iota
	wordMode          // Mode
	wordGuest         // ifindex of the guest's tap
	wordCapture       // ifindex of the capture tap
	wordLease         // CLOCK_BOOTTIME in ns; held frames leave strictly before
	wordPassed        // from here on: counters
	wordCaptured      //
	wordReleased      //
	wordDroppedLease  //
	wordDroppedSealed //
	wordDroppedStray  //
	wordMuted         // not 0: the guest gets nothing; never pinned
	stateBytes

	layoutVersion = 0x7674667400000002 // "vtft", 2
	// leaseForever is in the map while no lease is needed.
	leaseForever = 1<<64 - 1
	// mapMmapable is BPF_F_MMAPABLE of linux/bpf.h.
	mapMmapable = 1 << 10
)

// state is the map of one interface, mapped into our memory: reading a counter
// or extending a lease is one load or store.
type state struct {
	m   *ebpf.Map
	mem []byte
}

func newState() (*state, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "virtft_gate", Type: ebpf.Array, KeySize: 4, ValueSize: stateBytes, MaxEntries: 1, Flags: mapMmapable,
	})
	if err != nil {
		return nil, err
	}
	s, err := mapState(m)
	if err != nil {
		return nil, err
	}
	s.word(wordMode).Store(uint64(Passing))
	s.word(wordLayout).Store(layoutVersion)
	return s, nil
}

// mapState takes ownership of m.
func mapState(m *ebpf.Map) (*state, error) {
	if m.ValueSize() != stateBytes || m.Type() != ebpf.Array {
		defer m.Close()
		return nil, fmt.Errorf("%w: a map of %v with %d bytes", ErrLayout, m.Type(), m.ValueSize())
	}
	mem, err := unix.Mmap(m.FD(), 0, stateBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("mapping the gate's state: %w", err)
	}
	return &state{m: m, mem: mem}, nil
}

func (s *state) word(off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&s.mem[off]))
}

func (s *state) mode() Mode { return Mode(s.word(wordMode).Load()) }

// settled counts the frames of which it is known what became of them after
// they were written to the capture tap.
func (s *state) settled() uint64 {
	return s.word(wordReleased).Load() + s.word(wordDroppedLease).Load() + s.word(wordDroppedSealed).Load()
}

// close leaves what is pinned as it is.
func (s *state) close() {
	_ = unix.Munmap(s.mem) // cannot fail for what Mmap returned
	s.mem = nil
	s.m.Close()
}
