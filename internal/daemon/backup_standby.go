package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// standbyTimeout bounds making a standby: libvirtd may probe QEMU first.
	standbyTimeout = 120 * time.Second
	// loadTimeout bounds the loading of device state and streamed memory.
	loadTimeout = 30 * time.Second
	// standbyTriesMax bounds how often a standby is made whose QEMU ends at
	// once, or that libvirt refuses: its hook may not hear our word in time.
	standbyTriesMax = 6
	// awayPoll is how often is looked whether libvirtd is back.
	awayPoll = 200 * time.Millisecond
)

// The methods of this file run on the work goroutine.

// stood tells whether this protection had a standby here before.
func (b *backup) stood() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mark.Phase == marker.PhaseStandby
}

var errNoSession = errors.New("the primary is gone")

func (b *backup) makeStandby() {
	in := b.current()
	err := errNoSession
	if in != nil {
		err = b.openDisks(in)
	}
	if err != nil {
		b.log.Error("the guest's disks cannot be copied to this host", "err", err)
		if in != nil && in.ctx.Err() != nil {
			in.fail(err) // at least waits until the machine was told that the session is over
		}
		if in != nil && b.stood() {
			// It could be done once, so it may be possible again: the primary
			// goes on alone, and comes back.
			in.complain(err)
			in.fail(err)
		}
		b.post(ftengine.StandbyMade{Err: text(err)})
		return
	}
	var st *virt.Standby
	var img *image
	if err = b.reserveMemory(); err == nil {
		st, img, err = b.newStandby(b.connected, b.isStandby, asIs)
	}
	if err == nil {
		b.standby = st
		b.setImage(img)
		b.watchStandby(st)
		err = b.openGate(st)
		if pid, err := st.PID(); err == nil {
			xml := b.setup.SourceXML
			b.async(func() { b.learnLayout(pid, xml) })
		}
	}
	if err != nil {
		b.log.Error("the standby cannot be made", "err", err)
		if b.img == nil {
			b.closeImage() // its memory is not needed
		}
	}
	b.post(ftengine.StandbyMade{Err: text(err)})
}

// asIs is for the standby itself, and rehearsalName for the scratch domain that
// rehearses for it.
func asIs(xml string) (string, error) { return xml, nil }

func (b *backup) rehearsalName() string { return b.name + "-virt-ft-rehearsal" }

// isStandby and isRehearsal tell which leftover is in the way of which domain. One
// must never be taken for the other: there may be a standby while one rehearses.
func (b *backup) isStandby(dom *virt.Domain) bool { return dom.UUID() == b.uuid }

func (b *backup) isRehearsal(dom *virt.Domain) bool {
	return dom.Name() == b.rehearsalName() && dom.UUID() != b.uuid
}

// newStandby starts a domain that waits for a stream, with its memory mapped.
// change may alter its XML; stray tells which leftovers may be destroyed for it.
// While libvirtd is away and somebody still wants the standby, it tries on.
func (b *backup) newStandby(wanted func() bool, stray func(*virt.Domain) bool, change func(string) (string, error)) (*virt.Standby, *image, error) {
	b.mu.Lock()
	opts := virt.StandbyOptions{Protection: b.mark.Protection, Generation: b.mark.Generation, PrimaryHost: b.mark.PeerName, LiveXML: b.setup.LiveXML, Disks: b.disks.Load().standbyDisks()}
	b.mu.Unlock()
	xml, err := virt.StandbyXML(b.setup.SourceXML, opts)
	if err == nil {
		xml, err = change(xml)
	}
	if err != nil {
		return nil, nil, err
	}
	told := ""
	for tries, end := 1, time.Now().Add(standbyTimeout); ; {
		ctx, cancel := context.WithDeadline(b.ctx, end)
		st, img, err := b.tryStandby(ctx, xml)
		again := err != nil && ctx.Err() == nil && wanted()
		switch {
		case errors.Is(err, virt.ErrActive):
			// Ours, perhaps, of a call whose end we did not see.
			again = again && b.endStray(ctx, stray)
		case errors.Is(err, virt.ErrDisconnected):
			end = time.Now().Add(standbyTimeout) // begins when libvirtd is back
		default:
			tries++
			again = again && tries <= standbyTriesMax
		}
		cancel()
		if !again {
			return st, img, err
		}
		if now := err.Error(); now != told {
			b.log.Warn("the standby could not be made; trying on", "err", err)
			told = now
		}
		afterOrDone(b.ctx, awayPoll)
	}
}

func (b *backup) tryStandby(ctx context.Context, xml string) (*virt.Standby, *image, error) {
	leave := func() {}
	if !b.takesOver() { // who does waits for nobody
		var err error
		if leave, err = b.d.starts.enter(ctx); err != nil {
			return nil, nil, err
		}
	}
	made := b.d.making(b.uuid) // not while it waits: the hook lets the guest itself pass, too
	st, err := b.d.virt.StartStandby(ctx, xml)
	made()
	leave()
	if err != nil {
		return nil, nil, err
	}
	img, err := b.mapStandby(ctx, st)
	if err != nil {
		b.end(st)
		return nil, nil, err
	}
	return st, img, nil
}

// endStray destroys a standby, or a rehearsal, of this guest that nobody holds. It
// reports whether there may have been one.
func (b *backup) endStray(ctx context.Context, stray func(*virt.Domain) bool) bool {
	doms, err := b.d.virt.Leftovers(ctx)
	if err != nil {
		return errors.Is(err, virt.ErrDisconnected)
	}
	for _, dom := range doms {
		if stray(dom) {
			b.log.Warn("a stray standby is destroyed", "stray", dom.Name(), "err", destroyAway(ctx, dom))
			return true
		}
	}
	return false
}

func (b *backup) mapStandby(ctx context.Context, st *virt.Standby) (*image, error) {
	pid, err := st.PID()
	if err != nil {
		return nil, err
	}
	have, err := guestram.Blocks(ctx, pid, st.HMP)
	if err != nil {
		return nil, err
	}
	img, err := newImage(b.setup.Blocks, pid, have)
	if err != nil {
		return nil, err
	}
	img.in = vmstate.NewIncoming(st.Incoming, b.setup.Machine, img.streamed())
	return img, nil
}

// endStandby ends the standby that is there, if any.
func (b *backup) endStandby() {
	if b.standby != nil {
		b.end(b.standby)
		b.standby = nil
		b.loaded.Store(false)
	}
}

// end destroys a standby that is of no use any more. While libvirtd is away it
// waits, so that the next one does not meet it; for too long, and the rest is
// done in the background, for as long as this daemon lives.
func (b *backup) end(st *virt.Standby) {
	st.Incoming.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), guestCallTimeout)
	defer cancel()
	err := destroyAway(ctx, st.Domain)
	if err == nil {
		return
	}
	b.log.Warn("a standby could not be destroyed yet", "name", st.Name(), "err", err)
	go func() {
		if err := destroyAway(b.d.ctx, st.Domain); err != nil {
			b.log.Error("a standby stays behind", "name", st.Name(), "err", err)
		}
	}()
}

// destroyAway destroys dom and waits for libvirtd when that is away. libvirt
// kills QEMU at once when it is told to; a call that was cut off is repeated.
func destroyAway(ctx context.Context, dom *virt.Domain) error {
	pid, unknown := dom.PID()
	for {
		call, cancel := context.WithTimeout(ctx, guestCallTimeout)
		err := dom.Destroy(call)
		cancel()
		if err == nil || errors.Is(err, virt.ErrNoDomain) {
			return nil
		}
		if ctx.Err() != nil || !errors.Is(err, virt.ErrDisconnected) && !errors.Is(err, virt.ErrOutcomeUnknown) {
			return err
		}
		if unknown == nil && processGone(pid) {
			return nil // a domain of this name that is there by now is another one
		}
		afterOrDone(ctx, awayPoll)
	}
}

func (b *backup) destroyStandby() {
	b.closeGate()
	b.endStandby()
	b.closeImage()
	b.device = nil
	b.takeover.close()
	b.closeDisks()
}

// remakeStandby replaces a standby whose QEMU died. Its memory did not: we
// hold the memfd.
func (b *backup) remakeStandby() {
	old := b.img
	b.endStandby()
	if old == nil {
		b.post(ftengine.StandbyMade{Err: "its memory is gone"})
		return
	}
	old.in = nil
	b.takeover.close()
	st, img, err := b.newStandby(func() bool { return true }, b.isStandby, asIs)
	if err == nil {
		if err = b.replaceImage(img); err != nil {
			img.close()
			b.end(st)
		}
	}
	if err == nil {
		b.standby = st
		b.watchStandby(st)
		err = b.openGate(st)
		b.log.Info("the standby was made again from the memory that was kept", "err", err)
	}
	b.post(ftengine.StandbyMade{Err: text(err)})
}

// watchStandby posts StandbyDied when its QEMU ends before we end it.
func (b *backup) watchStandby(st *virt.Standby) {
	pid, err := st.PID()
	if err != nil {
		b.log.Error("the standby cannot be watched", "err", err)
		return
	}
	b.async(func() {
		if _, err := waitExit(b.ctx, pid); err != nil {
			return
		}
		b.later(func() {
			if b.standby == st {
				b.post(ftengine.StandbyDied{Reason: "QEMU ended"})
			}
		})
	})
}

// rehearse loads the committed checkpoint into a scratch QEMU made from the
// same XML: a stream that QEMU does not accept would otherwise be noticed
// only when it is too late.
func (b *backup) rehearse() {
	start, asked := time.Now(), b.destroys.Load()
	// Also when the primary is gone by now: this may be the last copy.
	wanted := func() bool { return b.destroys.Load() == asked }
	err := b.rehearseScratch(wanted)
	if err != nil {
		b.log.Error("the rehearsal failed", "err", err)
	} else {
		b.log.Info("rehearsed", "took", time.Since(start))
	}
	if wanted() {
		b.post(ftengine.RehearseDone{OK: err == nil, Reason: text(err)})
	}
}

// rehearsalsMax bounds how often a rehearsal is begun again that ended without
// QEMU's word on the checkpoint: libvirtd may have been away.
const rehearsalsMax = 3

func (b *backup) rehearseScratch(wanted func() bool) (err error) {
	leave, err := b.d.rehearsals.enter(b.ctx)
	if err != nil {
		return err
	}
	defer leave()
	for range rehearsalsMax {
		err = b.rehearseOnce(wanted)
		var refused *virt.LoadError
		if err == nil || errors.As(err, &refused) || !wanted() {
			break
		}
		b.log.Warn("the rehearsal was cut short; beginning again", "err", err)
	}
	return err
}

func (b *backup) rehearseOnce(wanted func() bool) error {
	if b.img == nil {
		return errors.New("the standby is gone")
	}
	uuid := randomUUID()
	disks, remove, err := b.scratchDisks()
	if err != nil {
		return err
	}
	defer remove()
	st, img, err := b.newStandby(wanted, b.isRehearsal, func(xml string) (string, error) { return virt.ScratchXML(xml, b.rehearsalName(), uuid, disks) })
	if err != nil {
		return err
	}
	defer b.end(st)
	defer img.close()
	if err := img.copyFrom(b.img); err != nil {
		return err
	}
	if err := img.streamAll(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, guestCallTimeout)
	defer cancel()
	if err := st.StayPaused(ctx); err != nil {
		return err
	}
	return b.finishLoad(st, img, b.device)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// randomUUID returns a version 4 UUID.
func randomUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
