package lab

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Speech is what the guest's network card said, frame after frame, out of one
// host's cable, until a frame came out of the other's.
type Speech struct {
	Host        string
	First, Last time.Time
	Frames      uint64
	Answers     uint64    // of the acceptance service, among Frames
	FirstAnswer time.Time // zero if there was none
	Ticks       uint64    // among Frames
}

// Split is what was heard of two copies of the guest that ran at once. All of it
// must be zero.
type Split struct {
	Frames uint64 // with the guest's address, of any protocol
	Ticks  uint64 // of the guest's program, among Frames
}

// splitOf counts what came out of a host's cable after the other's was heard,
// in speeches among which the guest moves once, at most, and away from that host.
func splitOf(all []Speech, old string) (n Split) {
	moved := false
	for _, s := range all {
		if moved = moved || s.Host != old; moved && s.Host == old {
			n.Frames += s.Frames
			n.Ticks += s.Ticks
		}
	}
	return n
}

// speechesMax bounds how many speeches are kept: a guest moves once a round, and
// of two that run at once the first few tell enough.
const speechesMax = 1 << 12

// speeches are kept in order; the zero value is ready.
type speeches struct {
	all  []Speech
	lost bool // there were more than speechesMax
}

func (s *speeches) add(host string, at time.Time, answer, tick bool) {
	n := len(s.all)
	if n == 0 || s.all[n-1].Host != host {
		if n == speechesMax {
			s.lost = true
			return
		}
		s.all = append(s.all, Speech{Host: host, First: at})
		n++
	}
	last := &s.all[n-1]
	last.Last = at
	last.Frames++
	if answer {
		if last.Answers == 0 {
			last.FirstAnswer = at
		}
		last.Answers++
	}
	if tick {
		last.Ticks++
	}
}

// since returns the speeches that were not over at t.
func (s *speeches) since(t time.Time) ([]Speech, error) {
	if s.lost {
		return nil, fmt.Errorf("lab: the guest spoke from one host and the other in turn more than %d times", speechesMax)
	}
	i := len(s.all)
	for i > 0 && !s.all[i-1].Last.Before(t) {
		i--
	}
	return append([]Speech(nil), s.all[i:]...), nil
}

// fromGuest tells whether an Ethernet frame was sent by the guest's first
// network card, and whether it carries an answer of the acceptance service, the
// first in a segment or datagram.
func fromGuest(frame []byte) (guest, answer bool) {
	const ethernet, mac = 14, "\x52\x54\x00\xf7\x00\x0a" // guestMAC
	if len(frame) < ethernet || string(frame[6:12]) != mac {
		return false, false
	}
	return true, isAnswer(binary.BigEndian.Uint16(frame[12:]), frame[ethernet:])
}

// isAnswer looks into a packet of IPv4 or IPv6, neither fragmented nor with
// extension headers.
func isAnswer(etherType uint16, packet []byte) bool {
	const ipv4, ipv6, tcp, udp = 0x0800, 0x86dd, 6, 17
	var proto byte
	switch {
	case etherType == ipv4 && len(packet) >= 20 && int(packet[0]&0xf)*4 <= len(packet):
		proto, packet = packet[9], packet[packet[0]&0xf*4:]
	case etherType == ipv6 && len(packet) >= 40:
		proto, packet = packet[6], packet[40:]
	default:
		return false
	}
	header := 8
	if proto == tcp && len(packet) >= 20 {
		header = int(packet[12]>>4) * 4
	} else if proto != udp {
		return false
	}
	if len(packet) < header+guestapi.AnswerBytes || binary.BigEndian.Uint16(packet) != guestapi.AcceptPort {
		return false
	}
	_, err := guestapi.ParseAnswer(packet[header : header+guestapi.AnswerBytes])
	return err == nil
}

// toldMax is how many ticks are remembered: more than a backup may repeat.
const toldMax = 1024

// told are the last ticks; the zero value is ready.
type told struct {
	ring      [toldMax]guestapi.Tick
	n         int
	highest   uint64 // counter of this boot
	next      uint64 // number of the tick that comes next
	stepsBack uint64
	missing   map[uint64]bool // numbers that were skipped, the last toldMax of them
	lost      uint64          // those that are too long ago to be in missing
}

func (t *told) add(now guestapi.Tick) {
	if t.n > 0 && now.BootID != t.ring[(t.n-1)%toldMax].BootID {
		t.highest, t.next = 0, now.Told
		t.lost += uint64(len(t.missing))
		clear(t.missing)
	}
	if now.Counter > t.highest {
		if t.n > 0 && now.Told > t.next {
			t.skip(t.next, now.Told)
		}
		t.highest, t.next = now.Counter, now.Told+1
		t.ring[t.n%toldMax] = now
		t.n++
		return
	}
	for _, before := range t.ring[:min(t.n, toldMax)] {
		if before == now {
			return
		}
	}
	if t.missing[now.Told] {
		// It was overtaken, as happens on any network and when a gate opens.
		// One that the guest lived twice has a number that was heard before.
		delete(t.missing, now.Told)
		return
	}
	t.stepsBack++
}

// skip notes that the numbers from first up to next were not heard.
func (t *told) skip(first, next uint64) {
	if t.missing == nil {
		t.missing = map[uint64]bool{}
	}
	for n := first; n < next; n++ {
		if len(t.missing) >= toldMax {
			t.lost += uint64(len(t.missing)) + next - n
			clear(t.missing)
			return
		}
		t.missing[n] = true
	}
}

func (t *told) gone() uint64 { return t.lost + uint64(len(t.missing)) }
