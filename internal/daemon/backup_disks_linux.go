package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// epochDiskBytesMax bounds what a guest may write to its disks in one epoch.
const epochDiskBytesMax = 1 << 30

// journalDir is where the epochs of a guest's disks wait for their commit.
func (d *Daemon) journalDir(uuid string) string {
	return filepath.Join(d.cfg.StateDir, "journal", uuid)
}

// durability is what this host's configuration asks for.
func (d *Daemon) durability() replica.Durability {
	if d.cfg.Disks.Durability == diskrep.DurabilityFsync.String() {
		return replica.DurabilityFsync
	}
	return replica.DurabilityMemory
}

// backupDisks is what a backup has of its guest's disks. It is replaced, not
// changed.
type backupDisks struct {
	target *diskrep.Target
	paths  []string
	disks  []replica.Disk
}

// The methods of this file run on the work goroutine, unless they say otherwise.

// openDisks makes, or finds, the images that the guest's disks are copied to,
// and tells the primary what is in them already.
func (b *backup) openDisks(in *inbound) error {
	b.closeDisks()
	wanted := b.setup.Disks
	if len(wanted) == 0 {
		return b.noteElsewhere()
	}
	bd := &backupDisks{disks: wanted}
	rec, err := b.d.disks.Get(b.uuid)
	if err != nil {
		return err
	}
	b.d.lookUpStale(in.ctx, b.arb, b.uuid, &rec)
	for _, disk := range wanted {
		path, err := b.d.placeDisk(b.uuid, b.name, rec, disk)
		if err != nil {
			return fmt.Errorf("disk %s: %w", disk.Name, err)
		}
		if slices.Contains(bd.paths, path) {
			return fmt.Errorf("disk %s: %s is where another disk of this guest goes: each needs a place of its own (--disk; {disk} in disks.place)", disk.Name, path)
		}
		bd.paths = append(bd.paths, path)
	}
	if err := b.checkSpace(bd); err != nil {
		return err
	}
	if err := b.noteCopies(bd, marker.ImagePart); err != nil {
		return err
	}
	opts := b.targetOptions(bd)
	bd.target, err = diskrep.OpenTarget(in.ctx, opts)
	if errors.Is(err, diskrep.ErrForeignJournal) {
		// Of a protection to other places; all of these images is compared anyway.
		b.log.Warn("the journal of earlier copies of the guest's disks is dropped", "err", err)
		if err = diskrep.RemoveJournal(opts.JournalDir); err == nil {
			bd.target, err = diskrep.OpenTarget(in.ctx, opts)
		}
	}
	if err != nil {
		return err
	}
	b.disks.Store(bd)
	return b.sendSums(in, bd)
}

func (b *backup) targetOptions(bd *backupDisks) diskrep.TargetOptions {
	o := diskrep.TargetOptions{JournalDir: b.d.journalDir(b.uuid), Paths: bd.paths, Durability: diskrep.DurabilityMemory,
		JournalBytesMax: b.d.cfg.Disks.JournalBytesMax, Log: b.log, Failed: b.diskFailed}
	if max(b.setup.Durability, b.d.durability()) == replica.DurabilityFsync {
		o.Durability = diskrep.DurabilityFsync
	}
	for _, disk := range bd.disks {
		o.Disks = append(o.Disks, diskrep.Disk{Name: disk.Name, SizeBytes: int64(disk.SizeBytes)})
	}
	return o
}

// lookUpStale finds out that the images on which the guest ran here once are
// stale: it runs at the peer, by the arbiter's word.
func (d *Daemon) lookUpStale(ctx context.Context, arb arbiter.Arbiter, uuid string, rec *marker.DiskRecord) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	r, err := arb.Inspect(ctx, uuid)
	if err == nil && r.Step == arbiter.StepRunning && r.Host != d.cfg.Host && r.Generation >= rec.Since {
		for name, img := range rec.Disks {
			if img.Kind == marker.ImageSource {
				img.Kind = marker.ImageStale
				rec.Disks[name] = img
			}
		}
	}
}

// checkSpace refuses what cannot fit, and warns of what may not fit one day.
func (b *backup) checkSpace(bd *backupDisks) error {
	warnings, err := roomFor(bd.disks, bd.paths)
	for _, w := range warnings {
		b.warn(w)
	}
	return err
}

// noteCopies writes down what the images are.
func (b *backup) noteCopies(bd *backupDisks, kind marker.ImageKind) error {
	return b.d.disks.Change(b.uuid, b.name, func(rec *marker.DiskRecord) {
		clear(rec.Disks)
		for i, disk := range bd.disks {
			rec.Disks[disk.Name] = marker.DiskImage{Path: bd.paths[i], Kind: kind, Raw: true, SizeBytes: disk.SizeBytes, Index: i}
		}
		rec.Active, rec.Since = b.peerName(), 0
	})
}

// noteElsewhere writes down that a guest without disks runs on the primary: it must
// not be started here.
func (b *backup) noteElsewhere() error {
	return b.d.disks.Change(b.uuid, b.name, func(rec *marker.DiskRecord) { rec.Active = b.peerName() })
}

// noteNotRun is for images that a guest was about to run on, and did not, when who
// wrote that down is not there any more. What is in them is compared when they are
// copied to next.
func (b *backup) noteNotRun() error {
	return b.d.disks.Change(b.uuid, b.name, func(rec *marker.DiskRecord) {
		rec.Active = b.peerName()
		for name, img := range rec.Disks {
			if img.Kind == marker.ImageSource {
				img.Kind = marker.ImagePart
				rec.Disks[name] = img
			}
		}
	})
}

// sendSums tells the primary what the images hold, so that it need not send it.
func (b *backup) sendSums(in *inbound, bd *backupDisks) error {
	for i := range bd.disks {
		if bd.target.Fresh(i) {
			continue
		}
		err := bd.target.Sums(in.ctx, i, func(first uint64, sums []byte) error {
			st := replica.Stamp{Generation: in.generation}
			return in.s.Control.Send(in.ctx, st, &replica.DiskSums{Disk: uint16(i), FirstBlock: first, Sums: sums})
		})
		if err != nil {
			return fmt.Errorf("disk %s: checksums of %s: %w", bd.disks[i].Name, bd.paths[i], err)
		}
	}
	return nil
}

// diskReady is what Ready says of the disks; of any goroutine.
func (b *backup) diskReady() []replica.DiskReady {
	bd := b.disks.Load()
	if bd == nil {
		return nil
	}
	var rs []replica.DiskReady
	for i, path := range bd.paths {
		rs = append(rs, replica.DiskReady{Path: path, Fresh: bd.target.Fresh(i)})
	}
	return rs
}

// standbyDisks says which images the standby is to use.
func (bd *backupDisks) standbyDisks() map[string]virt.StandbyDisk {
	if bd == nil {
		return nil
	}
	m := map[string]virt.StandbyDisk{}
	for i, disk := range bd.disks {
		info, err := os.Stat(bd.paths[i])
		m[disk.Name] = virt.StandbyDisk{Path: bd.paths[i], Block: err == nil && info.Mode()&os.ModeDevice != 0}
	}
	return m
}

// closeDisks leaves the images as of the last committed epoch.
func (b *backup) closeDisks() {
	bd := b.disks.Swap(nil)
	if bd == nil {
		return
	}
	if err := bd.target.Close(); err != nil {
		b.log.Error("the copies of the guest's disks may be older than their last checkpoint; the journal has the rest", "err", err)
	}
}

// settleDisks makes the images those of the committed checkpoint, for a guest
// that is about to run on them.
func (b *backup) settleDisks(ctx context.Context) error {
	bd := b.disks.Load()
	if bd == nil {
		return nil
	}
	return bd.target.Settle(ctx, b.applied.Load())
}

// noteRuns writes down that the guest is about to run on the images: from its
// first instruction on they are no copies. Should it not come to that, the
// arbiter says where it runs.
func (b *backup) noteRuns() <-chan error {
	done := make(chan error, 1)
	b.async(func() {
		done <- b.d.disks.Change(b.uuid, b.name, func(rec *marker.DiskRecord) {
			rec.Become(marker.ImageSource)
			rec.Active = ""
		})
	})
	return done
}

// noteIdle takes noteRuns back: nothing was executed here. Of any goroutine.
func (b *backup) noteIdle() {
	bd := b.disks.Load()
	b.async(func() {
		err := error(nil)
		if bd != nil {
			err = b.noteCopies(bd, marker.ImageCopy)
		} else {
			err = b.noteNotRun()
		}
		if err != nil {
			b.log.Error("the record of the guest's disks could not be written", "err", err)
		}
	})
}

// keepDisks leaves the images to the guest that runs on them.
func (b *backup) keepDisks() {
	bd := b.disks.Swap(nil)
	if bd == nil {
		return
	}
	b.runsOn.Store(bd)
	if err := errors.Join(bd.target.Sync(b.ctx), bd.target.Close()); err != nil {
		b.log.Error("the images of the guest's disks could not be synced", "err", err)
	}
}

// recoverDisks finishes what a killed daemon of this host was at, so that its
// copies are those of the last epoch that was acknowledged. Nothing runs on them.
func (d *Daemon) recoverDisks(m marker.Marker) {
	if _, err := os.Stat(d.journalDir(m.UUID)); err != nil {
		return
	}
	rec, err := d.disks.Get(m.UUID)
	o := diskrep.TargetOptions{JournalDir: d.journalDir(m.UUID), Durability: diskrep.DurabilityFsync, JournalBytesMax: d.cfg.Disks.JournalBytesMax, Log: d.log}
	// In the order of the guest's XML, which the journal counts in.
	names := slices.SortedFunc(maps.Keys(rec.Disks), func(x, y string) int { return cmp.Compare(rec.Disks[x].Index, rec.Disks[y].Index) })
	for _, name := range names {
		img := rec.Disks[name]
		if img.Kind != marker.ImageCopy {
			return // it was never whole, or a guest runs, or ran, on it
		}
		err = errors.Join(err, unused(img.Path))
		o.Disks = append(o.Disks, diskrep.Disk{Name: name, SizeBytes: int64(img.SizeBytes)})
		o.Paths = append(o.Paths, img.Path)
	}
	if err == nil && len(o.Disks) > 0 {
		err = diskrep.Recover(d.ctx, o)
	}
	if err != nil {
		d.log.Error("the copies of a guest's disks are not those of its last checkpoint: their journal cannot be applied", "domain", m.Domain, "err", err)
	}
}

// diskFailed ends the session when the copies cannot follow any more; of any
// goroutine.
func (b *backup) diskFailed(err error) {
	b.setError(err)
	b.tell(control.EventDisk, err.Error())
	if in := b.current(); in != nil {
		in.complain(err)
		in.fail(err)
	}
}

// complain tells the primary why the session ends; of any goroutine.
func (in *inbound) complain(err error) {
	ctx, cancel := context.WithTimeout(in.ctx, in.b.d.limits().Detect)
	defer cancel()
	_ = in.s.Control.Send(ctx, replica.Stamp{Generation: in.b.generation()}, &replica.Error{Code: replica.CodeInternal, Text: err.Error()})
}

// stageDisk takes writes of an open epoch; of the reader.
func (in *inbound) stageDisk(epoch ftengine.Epoch, cur *stagedEpoch, m *replica.DiskWrites, data []byte) error {
	b, bd := in.b, in.disks
	if bd == nil {
		return fmt.Errorf("writes to disks, of which the guest has none: %w", replica.ErrMalformed)
	}
	if err := replica.CheckDiskRuns(m.Runs, bd.disks); err != nil {
		return err
	}
	cur.writes += uint64(len(m.Runs))
	cur.diskBytes += len(data)
	if cur.diskBytes > epochDiskBytesMax && epoch > 1 {
		return fmt.Errorf("epoch %d writes more than %d bytes to disks", epoch, epochDiskBytesMax)
	}
	lent := data
	release := func() { b.d.pool.put(lent) }
	if cap(lent) > 2*len(lent) {
		// A few kilobytes that wait must not keep a large buffer.
		data = bytes.Clone(lent)
		release()
		release = func() {}
	}
	ws := writesOf(m.Runs, data, release)
	if epoch == 1 {
		return in.diskError(bd.target.WriteInitial(ws))
	}
	// It does not count for what the backup holds of epochs: beyond a bound of
	// its own the journal alone has it.
	return in.diskError(bd.target.Stage(uint64(epoch), ws))
}

// endDisk makes the epoch's writes as safe as was agreed on; of the reader.
func (in *inbound) endDisk(epoch ftengine.Epoch) error {
	b, bd := in.b, in.disks
	switch {
	case bd == nil:
		return nil
	case epoch > 1:
		return in.diskError(bd.target.EndEpoch(uint64(epoch)))
	}
	if err := bd.target.EndInitial(); err != nil {
		return in.diskError(err)
	}
	return b.noteCopies(bd, marker.ImageCopy)
}

// diskError tells the primary, too, unless the session is over anyway.
func (in *inbound) diskError(err error) error {
	if err != nil && in.ctx.Err() == nil && !in.dropped.Load() {
		err = fmt.Errorf("the copies of the guest's disks on %s cannot follow: %w", in.b.d.cfg.Host, err)
		in.b.setError(err)
		in.complain(err)
	}
	return err
}

// writesOf are runs as diskrep calls them. release is called once, when nobody
// needs data any more.
func writesOf(runs []replica.DiskRun, data []byte, release func()) []diskrep.Write {
	var left atomic.Int32
	left.Store(int32(len(runs)))
	done := func() {
		if left.Add(-1) == 0 {
			release()
		}
	}
	ws := make([]diskrep.Write, len(runs))
	for i, r := range runs {
		ws[i] = diskrep.Write{Disk: int(r.Disk), Off: int64(r.Off), Len: int64(r.Bytes), Release: done}
		if r.Flags&replica.DiskZero == 0 {
			ws[i].Data, data = data[:r.Bytes:r.Bytes], data[r.Bytes:]
		}
	}
	return ws
}

// scratchDisks makes empty images for a rehearsal, and returns what removes them.
func (b *backup) scratchDisks() (paths map[string]string, remove func(), err error) {
	bd := b.disks.Load()
	if bd == nil {
		return nil, func() {}, nil
	}
	dir, err := os.MkdirTemp(b.d.cfg.RunDir, "rehearsal-")
	if err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		return nil, nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	paths = map[string]string{}
	for _, disk := range bd.disks {
		path := filepath.Join(dir, disk.Name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err == nil {
			err = errors.Join(f.Truncate(int64(disk.SizeBytes)), f.Close())
		}
		if err != nil {
			remove()
			return nil, nil, err
		}
		paths[disk.Name] = path
	}
	return paths, remove, nil
}

// report adds what status shows of the copies.
func (bd *backupDisks) report(s *control.Status) {
	if bd == nil {
		return
	}
	for i, disk := range bd.disks {
		s.Disks = append(s.Disks, control.DiskStatus{Name: disk.Name, Path: bd.paths[i], SizeBytes: disk.SizeBytes})
	}
}
