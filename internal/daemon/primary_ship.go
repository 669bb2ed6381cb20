package daemon

import (
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// shipment is one thing that the data connection has to send: a batch of
// pages, or (last) the device state that ends an epoch.
type shipment struct {
	epoch   ftengine.Epoch
	batch   *capture.Batch
	device  []byte
	initial bool
	last    bool
}

// enqueue hands s to the shipper, which owns its batch from then on, also
// when enqueue fails. It blocks while the queue is full: that is what slows a
// guest down that dirties more than the connection carries.
func (l *link) enqueue(s shipment) error {
	select {
	case l.ship <- s:
		return nil
	case <-l.ctx.Done():
		if s.batch != nil {
			s.batch.Free()
		}
		return fmt.Errorf("the connection to the backup is gone: %w", l.ctx.Err())
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
					if s.batch != nil {
						s.batch.Free()
					}
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
}

func (s *shipper) send(x shipment) error {
	st := replica.Stamp{Generation: s.link.p.generation(), Epoch: uint64(x.epoch)}
	if x.batch != nil {
		return s.sendBatch(st, x.batch)
	}
	l := s.link
	if err := l.s.Data.Send(l.ctx, st, &replica.Device{Blob: x.device}); err != nil {
		return err
	}
	end := &replica.EpochEnd{Pages: s.pages, CapturedUnixNs: time.Now().UnixNano()}
	if x.initial {
		end.Flags |= replica.EpochInitial
	}
	s.pages = 0
	l.p.stats.sent(len(x.device))
	return l.s.Data.Send(l.ctx, st, end)
}

// sendBatch finds the zero pages of b, which travel without contents, and
// sends it in messages that the protocol allows.
func (s *shipper) sendBatch(st replica.Stamp, b *capture.Batch) error {
	s.cut(b)
	if len(s.runs) == 0 {
		b.Free()
		return nil
	}
	bytes := 0
	for _, d := range s.data {
		bytes += len(d)
	}
	for _, r := range s.runs {
		s.pages += uint64(r.Pages)
	}
	s.link.p.stats.sent(bytes)
	return s.link.s.Data.SendPages(s.link.ctx, st, s.runs, s.data, func(error) { b.Free() })
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
		for j < len(mem) && guestram.IsZero(mem[j:j+page]) == zero {
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
