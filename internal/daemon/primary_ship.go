package daemon

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// shipment is one thing that the data connection has to send: a batch of
// pages, writes to disks, or (last) the device state that ends an epoch, and
// what the guest sent in it.
type shipment struct {
	epoch   ftengine.Epoch
	batch   *capture.Batch
	disk    []diskrep.Write
	device  []byte
	frames  []netgate.Frame
	writes  uint64       // of disks, in the epoch
	whole   <-chan error // tells whether those are all; nil where there is no disk
	initial bool
	last    bool
}

// free lets go of what s carries.
func (s *shipment) free() {
	if s.batch != nil {
		s.batch.Free()
	}
	for i := range s.disk {
		s.disk[i].Free()
	}
}

// enqueue hands s to the shipper, which owns what it carries from then on, also
// when enqueue fails. It blocks while the queue is full: that is what slows a
// guest down that dirties more than the connection carries.
func (l *link) enqueue(s shipment) error {
	select {
	case l.ship <- s:
		return nil
	case <-l.ctx.Done():
		s.free()
		return fmt.Errorf("the connection to the backup is gone: %w", l.ctx.Err())
	}
}

// tryEnqueue is enqueue without waiting; it hands nothing over if it is false.
func (l *link) tryEnqueue(s shipment) bool {
	select {
	case l.ship <- s:
		return true
	default:
		return false
	}
}

// shipAll sends what is queued until the link ends, then frees the rest.
func (l *link) shipAll() {
	sh := shipper{link: l}
	for {
		select {
		case s := <-l.ship:
			if err := sh.send(s); err != nil {
				l.fail(err)
			}
		case <-l.ctx.Done():
			for {
				select {
				case s := <-l.ship:
					s.free()
				default:
					return
				}
			}
		}
	}
}

// shipper sends epochs over the data connection; one goroutine owns it.
type shipper struct {
	link  *link
	pages uint64 // sent since the last end of an epoch
	runs  []replica.Run
	data  [][]byte
	disk  []replica.DiskRun
}

func (s *shipper) send(x shipment) error {
	st := replica.Stamp{Generation: s.link.p.generation(), Epoch: uint64(x.epoch)}
	if x.batch != nil {
		return s.sendBatch(st, x.batch)
	}
	if x.disk != nil {
		return s.sendDisk(st, x.disk)
	}
	l := s.link
	if err := l.s.Data.Send(l.ctx, st, &replica.Device{Blob: x.device}); err != nil {
		return err
	}
	sent, err := s.sendOutputs(st, x.frames)
	if err != nil {
		return err
	}
	if err := l.allWritten(&x); err != nil {
		return err
	}
	end := &replica.EpochEnd{Pages: s.pages, Packets: uint64(len(x.frames)), DiskWrites: x.writes, CapturedUnixNs: time.Now().UnixNano()}
	if x.initial {
		end.Flags |= replica.EpochInitial
	}
	s.pages = 0
	l.p.stats.sent(len(x.device) + sent)
	return l.s.Data.Send(l.ctx, st, end)
}

// allWritten waits for the word that no write to a disk was missed in the epoch.
func (l *link) allWritten(s *shipment) error {
	if s.whole == nil {
		return nil
	}
	select {
	case err := <-s.whole:
		if err == nil {
			return nil
		}
		if l.p.dying(l.ctx) {
			<-l.ctx.Done() // nothing more is sent; watchGuest tells why
		}
		return fmt.Errorf("epoch %d is not sent: %w", s.epoch, err)
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
}

// sendDisk sends writes to disks, in their order.
func (s *shipper) sendDisk(st replica.Stamp, ws []diskrep.Write) error {
	s.disk, s.data = s.disk[:0], s.data[:0]
	bytes := 0
	for _, w := range ws {
		run := replica.DiskRun{Disk: uint16(w.Disk), Bytes: uint32(w.Len), Off: uint64(w.Off)}
		if w.Data == nil {
			run.Flags = replica.DiskZero
		} else {
			s.data = append(s.data, w.Data)
			bytes += len(w.Data)
		}
		s.disk = append(s.disk, run)
	}
	s.link.p.stats.sent(bytes)
	return s.link.s.Data.SendDiskWrites(s.link.ctx, st, s.disk, s.data, func(error) {
		for i := range ws {
			ws[i].Free()
		}
	})
}

// sendOutputs sends what the guest sent in an epoch: should we not come to
// release it, the backup does.
func (s *shipper) sendOutputs(st replica.Stamp, frames []netgate.Frame) (bytes int, err error) {
	for rest := packetsOf(frames); len(rest) > 0; {
		var now []replica.Packet
		now, rest = replica.Batch(replica.TypeOutput, rest)
		if err := s.link.s.Data.Send(s.link.ctx, st, &replica.Output{Packets: now}); err != nil {
			return bytes, err
		}
		for i := range now {
			bytes += len(now[i].Data)
		}
	}
	return bytes, nil
}

// packetsOf is frames as the wire calls them.
func packetsOf(frames []netgate.Frame) []replica.Packet {
	ps := make([]replica.Packet, len(frames))
	for i, f := range frames {
		ps[i] = replica.Packet{NIC: f.NIC, Data: f.Data}
	}
	return ps
}

// framesOf is packets as the gate calls them.
func framesOf(ps []replica.Packet) []netgate.Frame {
	frames := make([]netgate.Frame, len(ps))
	for i, p := range ps {
		frames[i] = netgate.Frame{NIC: p.NIC, Data: p.Data}
	}
	return frames
}

// sendBatch finds the zero pages of b, which travel without contents, and
// sends it in messages that the protocol allows.
func (s *shipper) sendBatch(st replica.Stamp, b *capture.Batch) error {
	s.cut(b)
	var out atomic.Int32 // messages on their way, and one for us
	out.Store(1)
	free := func(error) {
		if out.Add(-1) == 0 {
			b.Free()
		}
	}
	defer free(nil)
	for runs, data := s.runs, s.data; len(runs) > 0; {
		r, d, bytes := fit(runs, data)
		for i := range runs[:r] {
			s.pages += uint64(runs[i].Pages)
		}
		s.link.p.stats.sent(bytes)
		out.Add(1)
		if err := s.link.s.Data.SendPages(s.link.ctx, st, runs[:r], data[:d], free); err != nil {
			return err
		}
		runs, data = runs[r:], data[d:]
	}
	return nil
}

// fit is how many of runs, with how many of data and bytes, make one message.
func fit(runs []replica.Run, data [][]byte) (r, d, bytes int) {
	for ; r < len(runs) && r < replica.MaxRuns; r++ {
		if runs[r].Flags&replica.RunZero != 0 {
			continue
		}
		if bytes+len(data[d]) > replica.MaxPageData {
			return r, d, bytes
		}
		bytes += len(data[d])
		d++
	}
	return r, d, bytes
}

// cut splits the ranges of b into runs of zero and of other pages.
func (s *shipper) cut(b *capture.Batch) {
	s.runs, s.data = s.runs[:0], s.data[:0]
	rest := b.Data
	for _, r := range b.Ranges {
		s.cutRange(r, rest[:r.Bytes()])
		rest = rest[r.Bytes():]
	}
}

func (s *shipper) cutRange(r guestram.Range, mem []byte) {
	const page = replica.PageSize
	for i := 0; i < len(mem); {
		zero := guestram.IsZero(mem[i : i+page])
		j := i + page
		for j < len(mem) && guestram.IsZero(mem[j:j+page]) == zero && (zero || j-i < replica.MaxPageData) {
			j += page
		}
		run := replica.Run{Block: r.Block, Pages: uint32((j - i) / page), Off: r.Off + uint64(i)}
		if zero {
			run.Flags = replica.RunZero
		} else {
			s.data = append(s.data, mem[i:j])
		}
		s.runs = append(s.runs, run)
		i = j
	}
}
