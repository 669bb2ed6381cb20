package daemon

import (
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// lastWords makes the last epoch of a guest that has ended in order: what it sent
// and wrote to its disks since its last checkpoint. Whatever happens, it posts
// Captured or CaptureFailed exactly once.
func (p *primary) lastWords(l *link, a ftengine.Capture) {
	p.endOnce.Do(func() { close(p.endedInOrder) })
	p.out.guestGone()
	if err := p.sendLastWords(l, a.Epoch); err != nil {
		p.log.Warn("the backup does not get what the guest did last", "err", err)
		p.post(ftengine.CaptureFailed{Epoch: a.Epoch})
		return
	}
	l.post(ftengine.Captured{Epoch: a.Epoch})
}

func (p *primary) sendLastWords(l *link, epoch ftengine.Epoch) error {
	p.capMu.Lock()
	defer p.capMu.Unlock()
	if err := p.mayCapture(l); err != nil {
		return err
	}
	p.out.begin(l, epoch)
	p.disks = l.disks.Load()
	p.disks.begin()
	p.out.atPause()
	p.disks.cutLast()
	last := shipment{epoch: epoch, last: true, final: true}
	err := p.disks.shipped(l.ctx, &last)
	// Nobody can be asked about the mirrors any more. QEMU ended in order, so each
	// write that it told the guest of is here.
	last.whole = nil
	if last.frames = p.out.ended(err == nil); err == nil {
		err = l.enqueue(last)
	}
	p.disks.ended(epoch, err == nil)
	return err
}
