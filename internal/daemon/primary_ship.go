package daemon

import (
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/lean"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// shipment is one thing that the data connections have to send: a batch of
// pages, writes to disks, or (last) the device state that ends an epoch, and
// what the guest sent in it.
type shipment struct {
	epoch    ftengine.Epoch
	batch    *capture.Batch
	disk     []diskrep.Write
	device   []byte
	frames   []netgate.Frame
	writes   uint64       // of disks, in the epoch
	pausedAt time.Time    // last: when the guest was seen to stand still
	whole    <-chan error // tells whether those are all; nil where there is no disk
	initial  bool
	last     bool
	final    bool // last, too: the guest has ended, and there is no device state
}

// letGo frees what s carries.
func (l *link) letGo(s *shipment) {
	if s.batch != nil {
		newUses(l, s.batch).done()
	}
	for i := range s.disk {
		s.disk[i].Free()
	}
}

// enqueue hands s to the shipper, which owns what it carries from then on, also
// when enqueue fails. It blocks while the queue is full: that is what slows a
// guest down that dirties more than the connection carries.
func (l *link) enqueue(s shipment) error {
	l.owes(&s)
	select {
	case l.ship <- s:
		l.sweepIfOver()
		return nil
	case <-l.ctx.Done():
		l.letGo(&s)
		return fmt.Errorf("the connection to the backup is gone: %w", l.ctx.Err())
	}
}

// tryEnqueue is enqueue without waiting; it hands nothing over if it is false.
func (l *link) tryEnqueue(s shipment) bool {
	select {
	case l.ship <- s:
		l.owes(&s)
		l.sweepIfOver()
		return true
	default:
		return false
	}
}

// sweepIfOver frees what is queued for a link that is over: its shipper may have
// ended before it was put there.
func (l *link) sweepIfOver() {
	for l.ctx.Err() != nil {
		select {
		case s := <-l.ship:
			l.letGo(&s)
		default:
			return
		}
	}
}

// shipAll sends what is queued until the link ends, then frees the rest.
func (l *link) shipAll() {
	sh := newShipper(l)
	for l.ctx.Err() == nil {
		select {
		case s := <-l.ship:
			if err := sh.send(s); err != nil {
				// What follows must not be sent: a part of this one is missing.
				l.fail(err)
				<-l.ctx.Done()
			}
		case <-l.ctx.Done():
		}
	}
	l.sweepIfOver()
	sh.close()
}

// lentBytesMin is how many bytes of pages may always be on their way. More than that
// and a quarter of the guest's memory is not, or a guest that is much faster
// than its link would take the host's memory too.
const lentBytesMin = 256 << 20

// owes counts what a batch takes until it is freed.
func (l *link) owes(s *shipment) {
	if s.batch != nil {
		l.lent.Add(int64(len(s.batch.Data)))
	}
}

// waitRoom returns when there is memory for another checkpoint's pages.
func (l *link) waitRoom() error {
	most := max(lentBytesMin, int64(l.p.sync.memory.Load()/4))
	for l.lent.Load() > most {
		select {
		case <-l.paid:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
	return nil
}

// spreadBytesMin is the size of the first batch of an epoch from which the epoch
// is spread over all streams: a smaller one is there sooner on one.
const spreadBytesMin = 1 << 20

// shipped is what became of an epoch.
type shipped struct {
	pages  uint64 // sent, with or without contents
	zero   uint64 // of these, without
	same   uint64 // not sent
	bytes  uint64
	packed bool
	at     time.Time // the last of it was handed to the kernel

	sending time.Duration // took, of the stream that was the last
}

// shipper sends epochs over the data connections; one goroutine owns it.
//
//	batch ── which pages are zero, or what the backup has ── region ──▶ lane 0: this goroutine, stream 0
//	                                                         └────────▶ lane i: a goroutine, stream i
type shipper struct {
	link   *link
	lanes  []*lane // of each stream
	filter *lean.Filter

	// Of the epoch that is being sent.
	open   bool
	cut    bool // a batch was sent: it has been decided on spread
	spread bool // over all streams
	now    shipped
	seen   laneWork // by the first lane, before the batch that is sent now

	disk []replica.DiskRun // scratch
	data [][]byte
}

func newShipper(l *link) *shipper {
	s := &shipper{link: l}
	for i, c := range l.s.Streams {
		s.lanes = append(s.lanes, newLane(l, c, i))
	}
	return s
}

// close lets go of what is not sent. The link is over.
func (s *shipper) close() {
	for _, n := range s.lanes {
		n.close()
	}
	if s.filter != nil {
		_ = s.filter.Close() // only address space
	}
}

func (s *shipper) send(x shipment) error {
	if !s.open {
		s.open, s.cut, s.now = true, false, shipped{}
	}
	st := replica.Stamp{Generation: s.link.p.generation(), Epoch: uint64(x.epoch)}
	switch {
	case x.batch != nil:
		return s.sendBatch(st, x.batch)
	case x.disk != nil:
		return s.sendDisk(st, x.disk)
	}
	return s.end(st, &x)
}

// end sends what ends an epoch.
func (s *shipper) end(st replica.Stamp, x *shipment) error {
	l := s.link
	if !x.final {
		if err := l.s.Data.Send(l.ctx, st, &replica.Device{Blob: x.device}); err != nil {
			return err
		}
	}
	sent, err := s.sendOutputs(st, x.frames)
	if err != nil {
		return err
	}
	if err := l.allWritten(x); err != nil {
		return err
	}
	end := &replica.EpochEnd{Packets: uint64(len(x.frames)), DiskWrites: x.writes, CapturedUnixNs: time.Now().UnixNano(), Clock: l.p.clock.reading(x.pausedAt)}
	if x.initial {
		end.Flags |= replica.EpochInitial
	}
	if x.final {
		end.Flags |= replica.EpochFinal
	}
	var did laneWork
	for i, n := range s.lanes {
		w, err := n.end(st, i > 0)
		if err != nil {
			return err
		}
		did.add(w)
		if i > 0 && w.pages > 0 {
			end.Streams |= 1 << i
		}
	}
	end.Pages = did.pages
	if err := l.s.Data.Send(l.ctx, st, end); err != nil {
		return err
	}
	s.open = false
	s.now.pages, s.now.packed = did.pages, did.packed > 0
	s.now.bytes += did.bytes + uint64(len(x.device)+sent)
	s.now.at, s.now.sending = time.Now(), did.sending
	s.seen = laneWork{}
	l.shipped(ftengine.Epoch(st.Epoch), s.now, did)
	return nil
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
			select {
			case <-l.ctx.Done(): // nothing more is sent; watchGuest tells why
			case <-l.p.endedInOrder:
				return nil // see sendLastWords
			}
		}
		return fmt.Errorf("epoch %d is not sent: %w", s.epoch, err)
	case <-l.ctx.Done():
		return l.ctx.Err()
	}
}

// sendDisk sends writes to disks, in their order.
func (s *shipper) sendDisk(st replica.Stamp, ws []diskrep.Write) error {
	s.disk, s.data = s.disk[:0], s.data[:0]
	for _, w := range ws {
		run := replica.DiskRun{Disk: uint16(w.Disk), Bytes: uint32(w.Len), Off: uint64(w.Off)}
		if w.Data == nil {
			run.Flags = replica.DiskZero
		} else {
			s.data = append(s.data, w.Data)
			s.now.bytes += uint64(len(w.Data))
		}
		s.disk = append(s.disk, run)
	}
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

// sendBatch finds the pages of b that need not travel, and hands the others to
// the lanes. It owns b.
func (s *shipper) sendBatch(st replica.Stamp, b *capture.Batch) error {
	l := s.link
	u := newUses(l, b)
	defer u.done()
	filter, err := s.filterOf()
	if err != nil {
		return err
	}
	if !s.cut {
		s.cut, s.spread = true, len(b.Data) >= spreadBytesMin
	}
	streams := 1
	if s.spread {
		streams = len(s.lanes)
	}
	for x := range lean.Split(b.Ranges, b.Data, filter, replica.RegionBytes) {
		s.lanes[replica.StreamOf(x.Block, x.Off, streams)].take(x)
		switch x.Kind {
		case lean.Zero:
			s.now.zero += uint64(x.Pages)
		case lean.Same:
			s.now.same += uint64(x.Pages)
		}
	}
	pack := l.packing.Pack()
	for i := len(s.lanes) - 1; i >= 0; i-- { // the first, which this goroutine sends, last
		if err := s.lanes[i].flush(st, u, pack, i > 0); err != nil {
			return err
		}
	}
	// What the first stream carries tells of the others, too.
	first := s.lanes[0].did
	l.packing.Observe(first.since(s.seen).sample(pack))
	s.seen = first
	return nil
}

// filterOf makes the filter when it is needed first: the link knows the guest's
// memory by then.
func (s *shipper) filterOf() (*lean.Filter, error) {
	if s.filter != nil {
		return s.filter, nil
	}
	var err error
	s.filter, err = lean.NewFilter(*s.link.blocks.Load())
	return s.filter, err
}
