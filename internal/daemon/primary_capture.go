package daemon

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/pace"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// captureRetry is the pause before a capture session is opened again.
	captureRetry = 500 * time.Millisecond
	// captureTriesMax bounds how often, in a row, that is done while libvirtd
	// can be reached.
	captureTriesMax = 20
	// gateTriesMax bounds how often it is tried to hold the guest's output.
	gateTriesMax = 5
	// shipQueueMax bounds the batches that wait for the data connection.
	shipQueueMax = 16
)

// syncProgress is what an initial sync has done; safe for concurrent use.
type syncProgress struct {
	total, done atomic.Uint64 // bytes: of memory and disks together; of memory
	disks       atomic.Uint64 // bytes of disks that are done
	memory      atomic.Uint64 // bytes of memory among total
	startNs     atomic.Int64  // unix
}

// sendSetup opens the capture session and describes the guest to the backup.
func (p *primary) sendSetup(l *link) {
	p.setupMu.Lock()
	defer p.setupMu.Unlock()
	if capture.Ending(p.pid) {
		return // the backup keeps what it has, and hears of it: watchGuest tells
	}
	blocks, err := p.openCapture(l.ctx)
	if err != nil {
		p.noCapture(l, err)
		return
	}
	xml, err := p.dom.XML(l.ctx)
	if err != nil {
		p.noCapture(l, err)
		return
	}
	live, err := p.dom.LiveXML(l.ctx)
	if err != nil {
		p.noCapture(l, err)
		return
	}
	shape, err := shapeOf(xml)
	if err != nil {
		p.noCapture(l, err)
		return
	}
	if err := p.openDisks(l, live); err != nil {
		p.noCapture(l, err)
		return
	}
	switch err := p.dom.BlockMigration(l.ctx); {
	case err == nil || l.ctx.Err() != nil:
	case strings.Contains(err.Error(), "in progress"): // QEMU's words for a migration that is under way
		p.noCapture(l, fmt.Errorf("the guest is being migrated, saved or dumped: %w", err))
		return
	default:
		p.log.Warn("nothing keeps the guest from being migrated away while it is protected", "err", err)
		p.warn("it can be migrated away: " + err.Error())
	}
	p.described.Store(&xml)
	p.captureTries = 0
	pacing := p.pacing.Load()
	s := &replica.Setup{SourceXML: xml, LiveXML: live, Machine: shape.machine, VCPUs: shape.vcpus, Arbiter: p.arb.Name(), ArbiterIdentity: identityOf(p.arb),
		Epochs:     replica.EpochConfig{MinNs: pacing.MinNs, IdleNs: pacing.IdleNs, InFlightMax: uint32(p.d.limits().InFlight)},
		Durability: p.d.durability(), Disks: l.disks.Load().wire(p.diskPlaces())}
	var total uint64
	sizes := make([]uint64, 0, len(blocks))
	for _, b := range blocks {
		sizes = append(sizes, b.Used)
		s.Blocks = append(s.Blocks, replica.Block{Name: b.Name, UsedBytes: b.Used})
		total += b.Used
	}
	l.blocks.Store(&sizes)
	p.sync.memory.Store(total)
	for _, disk := range s.Disks {
		total += disk.SizeBytes
	}
	p.sync.total.Store(total)
	p.sync.done.Store(0)
	p.sync.disks.Store(0)
	p.sync.startNs.Store(time.Now().UnixNano())
	if capture.Ending(p.pid) { // by now; from the setup on the backup has nothing older
		return
	}
	l.send(0, s)
}

// noCapture decides what follows when no capture session could be opened. Only
// a host or a guest that cannot be captured at all ends the protection.
func (p *primary) noCapture(l *link, err error) {
	switch {
	case l.ctx.Err() != nil:
		return // the session ended meanwhile; the next one tries again
	case errors.Is(err, capture.ErrGuestGone), p.dying(l.ctx):
		return // watchGuest tells
	}
	p.setError(err)
	p.log.Error("capture cannot be opened", "err", err)
	if !errors.Is(err, virt.ErrDisconnected) {
		p.captureTries++
	}
	if errors.Is(err, guestram.ErrUnsupported) || p.captureTries >= captureTriesMax {
		p.post(ftengine.Unprotect{Reason: err.Error()})
		return
	}
	// libvirtd or QEMU's monitor may be away for a while.
	afterOrDone(l.ctx, captureRetry)
	l.fail(fmt.Errorf("the guest cannot be captured now: %w", err))
}

// openCapture starts tracking afresh: every page counts as written.
func (p *primary) openCapture(ctx context.Context) ([]guestram.Block, error) {
	p.closeCapture()
	p.capMu.Lock()
	defer p.capMu.Unlock()
	live, err := p.dom.LiveXML(ctx)
	if err != nil {
		return nil, err
	}
	p.clock.open(ctx)
	s, err := capture.Open(ctx, p.pid, p.dom, capture.Options{PauseMax: p.d.cfg.Epoch.PauseMax, Logger: p.log, PinnedIO: virt.PinsMemory(live), AtPause: p.atPause, Clock: p.clock})
	if err != nil {
		return nil, err
	}
	p.cap = s
	return s.Blocks(), nil
}

// checkLayout begins a new session when the guest's RAM blocks are not those
// that are tracked: a reset may resize them.
func (p *primary) checkLayout() {
	p.capMu.Lock()
	var err error
	if p.cap != nil {
		err = p.cap.CheckLayout(p.ctx)
	}
	p.capMu.Unlock()
	if errors.Is(err, capture.ErrLayoutChanged) {
		p.withLink(func(l *link) { l.fail(err) })
	}
}

// capture takes one checkpoint for l and hands it to the shipper. Whatever
// happens, it posts Captured or CaptureFailed exactly once.
func (p *primary) capture(l *link, a ftengine.Capture) {
	if a.Initial && l != nil {
		if err := p.copyDisks(l); err != nil {
			p.captureFailed(l, a, err)
			return
		}
	}
	told, err := p.captureTo(l, a)
	if told || err == nil && l.post(ftengine.Captured{Epoch: a.Epoch}) {
		p.pace()
		return
	}
	p.captureFailed(l, a, err)
}

// copyDisks copies the guest's disks before its memory: that takes long, and
// what is written meanwhile comes along.
func (p *primary) copyDisks(l *link) error {
	err := l.disks.Load().copyAll(l.ctx)
	if err == nil {
		p.mirrorTries.Store(0)
		return nil
	}
	if l.ctx.Err() != nil || p.dying(l.ctx) {
		return err
	}
	l.fail(err) // its mirrors are of no use; the next session makes new ones
	if p.mirrorTries.Add(1) >= mirrorTriesMax && !errors.Is(err, virt.ErrDisconnected) {
		p.post(ftengine.Unprotect{Reason: err.Error()})
	}
	return err
}

func (p *primary) captureFailed(l *link, a ftengine.Capture, err error) {
	// A QEMU that ended has lost our pipe too, but another session is of no
	// use then: watchGuest tells.
	fatal := (errors.Is(err, capture.ErrLostPipe) || errors.Is(err, errNoCapture)) && !errors.Is(err, capture.ErrGuestGone)
	if err != nil && p.ctx.Err() == nil && l != nil && l.ctx.Err() == nil {
		p.log.Warn("checkpoint failed", "epoch", a.Epoch, "err", err)
		p.setError(fmt.Errorf("epoch %d: %w", a.Epoch, err))
	}
	p.post(ftengine.CaptureFailed{Epoch: a.Epoch, Fatal: fatal})
	p.pace()
}

var (
	errNoCapture = errors.New("no capture session")
	errNotSetUp  = errors.New("the session with the backup is not set up yet")
)

// mayCapture waits until there is room for another checkpoint for l, and tells
// why there is none to be taken.
func (p *primary) mayCapture(l *link) error {
	switch {
	case p.cap == nil || l == nil:
		return errNoCapture
	case l.ctx.Err() != nil: // the tracker may be the next session's already
		return l.ctx.Err()
	case l.blocks.Load() == nil: // it was meant for the session before
		return errNotSetUp
	}
	return l.waitRoom()
}

// captureTo reports whether the machine was told Captured already: the epoch was
// on its way before the monitor had said its last word.
func (p *primary) captureTo(l *link, a ftengine.Capture) (told bool, err error) {
	p.capMu.Lock()
	defer p.capMu.Unlock()
	if err := p.mayCapture(l); err != nil {
		return false, err
	}
	p.pacer.begin()
	pages, err := p.beforePause(l, a)
	if err != nil {
		return false, err
	}
	p.out.begin(l, a.Epoch)
	p.disks = l.disks.Load()
	p.disks.begin()
	last := shipment{epoch: a.Epoch, initial: a.Initial, last: true}
	var late *capture.Batch // that the shipper had no room for
	shipped := false
	// Not l.ctx: a checkpoint that began is bounded by PauseMax and leaves
	// the guest running; it is not to be cut short.
	c, err := p.cap.Checkpoint(context.WithoutCancel(p.ctx), capture.CheckpointOptions{Hold: p.pacer.hold(), Early: func(b *capture.Batch) {
		if !l.tryEnqueue(shipment{epoch: a.Epoch, batch: b}) {
			late = b
		}
	}, Whole: func(device []byte) {
		if late == nil && p.disks.closed(&last) {
			last.device, last.frames, last.pausedAt = device, p.out.sent(), p.pausedAt()
			if shipped = l.tryEnqueue(last); shipped {
				p.disks.ended(a.Epoch, true)
			}
			told = shipped && l.post(ftengine.Captured{Epoch: a.Epoch})
		}
	}})
	ended := time.Now()
	frames := p.out.ended(err == nil || shipped)
	if late != nil {
		if lerr := l.enqueue(shipment{epoch: a.Epoch, batch: late}); err == nil {
			err = lerr
		}
	}
	if err == nil && !shipped {
		err = p.disks.shipped(l.ctx, &last)
	}
	if err != nil {
		p.disks.ended(a.Epoch, false)
		if shipped && !errors.Is(err, capture.ErrGuestGone) {
			// The backup must not go on from it. (It may if QEMU ended after
			// it had written all: watchGuest tells.)
			l.fail(err)
		}
		return told, err
	}
	p.captured(l, a.Epoch, pages, c, ended)
	if c.Batch != nil {
		c.Batch.Free() // empty
	}
	if shipped {
		return told, nil
	}
	last.device, last.frames, last.pausedAt = c.Device, frames, p.pausedAt()
	err = l.enqueue(last)
	p.disks.ended(a.Epoch, err == nil)
	return false, err
}

// captured notes a checkpoint, of which livePages were copied before the pause.
func (p *primary) captured(l *link, k ftengine.Epoch, livePages int, c *capture.Checkpoint, now time.Time) {
	ph := c.Phases
	p.pacer.captured(l, now, pace.Epoch{Pause: time.Duration(ph.PausedNs + ph.LivePausedNs), Hold: time.Duration(ph.HoldNs), Pages: livePages + ph.Pages, InPausePages: ph.Pages})
	p.stats.captured(l, k, taken{generation: p.generation(), pausedAt: p.pausedAt(), endedAt: now, phases: ph, livePages: livePages, clockErrNs: p.clock.lastErrNs()})
	p.lookAtClock(c.Device)
}

// atPause closes what belongs to the epoch that ends. The guest stands still,
// and capMu is held.
func (p *primary) atPause() {
	p.pausedNs.Store(int64(time.Since(p.born)))
	p.out.atPause()
	p.disks.atPause()
}

// pausedAt is when the last pause began.
func (p *primary) pausedAt() time.Time { return p.born.Add(time.Duration(p.pausedNs.Load())) }

// beforePause does what the guest need not be stopped for, and returns how many
// pages it copied.
func (p *primary) beforePause(l *link, a ftengine.Capture) (pages int, err error) {
	if a.Initial {
		if err := p.attachGate(l.ctx); err != nil {
			return 0, p.noGate(l, err)
		}
	}
	pages, err = p.livePasses(l, a)
	if err == nil && a.Initial {
		// From here on the backup may go on from what it has.
		err = p.out.hold(l)
	}
	return pages, err
}

// attachGate puts the gate before the interfaces that the guest has now.
func (p *primary) attachGate(ctx context.Context) error {
	live, err := p.dom.LiveXML(ctx)
	if err == nil {
		err = p.out.attach(live)
	}
	return err
}

// noGate decides what follows when output cannot be held. It returns err.
func (p *primary) noGate(l *link, err error) error {
	if l.ctx.Err() != nil || errors.Is(err, virt.ErrDisconnected) || errors.Is(err, capture.ErrGuestGone) {
		return err
	}
	if p.gateTries++; p.gateTries >= gateTriesMax || errors.Is(err, netgate.ErrUnsupported) || errors.Is(err, virt.ErrNotHeld) {
		p.post(ftengine.Unprotect{Reason: err.Error()})
	}
	return err
}

// livePasses copies dirty pages while the guest runs, so that few are left
// for the pause. What it sends is part of the epoch that is still open.
func (p *primary) livePasses(l *link, a ftengine.Capture) (total int, err error) {
	if !a.Initial && p.pacer.linkBound() {
		return 0, nil
	}
	emit := func(b *capture.Batch) error {
		if a.Initial {
			p.sync.done.Add(uint64(len(b.Data)))
			p.changed()
		}
		return l.enqueue(shipment{epoch: a.Epoch, batch: b})
	}
	return p.cap.Converge(l.ctx, capture.PassesMax, emit)
}

// pace asks for the next epoch: as soon as the guest sends something, or when
// the idle interval is over; never sooner than the shortest interval after the
// start of this one, and not before the guest had its share of time.
func (p *primary) pace() {
	earliest, idle := p.pacer.next()
	p.async(func() {
		p.out.waitPace(p.ctx, earliest, idle)
		p.post(ftengine.PaceDue{})
	})
}

// shape is what a domain's XML says of its machine.
type shape struct {
	machine string
	vcpus   uint32
}

// shapeOf reads what a migration stream must say of the machine.
func shapeOf(domainXML string) (shape, error) {
	var x struct {
		VCPU uint32 `xml:"vcpu"`
		OS   struct {
			Type struct {
				Machine string `xml:"machine,attr"`
			} `xml:"type"`
		} `xml:"os"`
	}
	if err := xml.Unmarshal([]byte(domainXML), &x); err != nil {
		return shape{}, fmt.Errorf("domain XML: %w", err)
	}
	if x.OS.Type.Machine == "" {
		return shape{}, errors.New("domain XML names no machine type")
	}
	return shape{x.OS.Type.Machine, x.VCPU}, nil
}
