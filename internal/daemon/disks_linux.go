package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/internal/diskrep"
	"github.com/virt-ft/virt-ft/internal/nbd"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// mirrorPoll is how often is looked whether the copies of all disks are
	// complete.
	mirrorPoll = 200 * time.Millisecond
	// mirrorTimeout bounds asking libvirt whether the mirrors are whole, and
	// ending them.
	mirrorTimeout = 10 * time.Second
	// mirrorStallMax is how long the first copy of the disks may stand still.
	mirrorStallMax = time.Minute
	// mirrorTriesMax bounds how often, in a row, mirrors are begun in vain.
	mirrorTriesMax = 3
)

// disks mirrors the writable disks of a primary's guest to the backup, for one
// session. QEMU writes what the guest writes to our server a second time, before
// the guest hears that it is written; a stop of the guest waits for all of that,
// so that the writes before a pause are exactly those of the epoch. The methods
// of a nil *disks do nothing: the guest has none.
type disks struct {
	l      *link
	list   []virt.Disk
	sizes  []virt.DiskSize
	src    *diskrep.Source
	srv    *nbd.Server
	socket string
	eyes   *virt.Conn   // of our own: a call beside a checkpoint's, on one connection, may wait for that one's answer
	seen   *virt.Domain // the guest, through eyes
	good   string       // the live XML in which all mirrors were complete; of who calls mirrored

	epoch   atomic.Uint64   // that the writes belong to which are shipped now
	asks    chan chan error // of the checker
	verdict chan error      // of the checkpoint that is taken; of capMu's holder
	cut     bool            // the pause came; of capMu's holder
	begun   atomic.Bool     // there may be mirrors
	copied  atomic.Bool     // all mirrors were complete once
	done    chan struct{}   // closed when nothing of it is left
}

// nbdDir is where QEMU finds our servers.
func (d *Daemon) nbdDir() string { return filepath.Join(d.cfg.RunDir, "nbd") }

// openDisks gets ready for a session: it ends what an earlier one left, and
// starts the server that the mirrors will write to.
// setupMu is held.
func (p *primary) openDisks(l *link, live string) error {
	if p.disksDone != nil {
		// It would end our mirrors for its own.
		select {
		case <-p.disksDone:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
	all, err := virt.Disks(live)
	if err != nil {
		return err
	}
	if err := p.endCopies(l.ctx, live); err != nil {
		return err
	}
	d := &disks{l: l, asks: make(chan chan error, 1), done: make(chan struct{})}
	var list []diskrep.Disk
	for _, disk := range all {
		if !disk.Replicated() {
			continue
		}
		size, err := p.dom.DiskSize(l.ctx, disk.Target)
		if err != nil {
			return fmt.Errorf("disk %s: %w", disk.Target, err)
		}
		d.list, d.sizes = append(d.list, disk), append(d.sizes, size)
		list = append(list, diskrep.Disk{Name: disk.Target, SizeBytes: int64(size.SizeBytes)})
	}
	p.noteSources(d.list)
	if len(list) == 0 {
		return nil
	}
	cfg := p.d.cfg.Disks
	d.src = diskrep.NewSource(list, diskrep.SourceOptions{QueueBytesMax: int64(cfg.QueueBytesMax), StallMax: cfg.StallMax, Broken: d.broken, Log: p.log})
	d.epoch.Store(1)
	if err := d.look(); err != nil {
		return err
	}
	if err := d.serve(list); err != nil {
		return errors.Join(err, d.eyes.Close())
	}
	d.src.Begin(l.ctx, d.ship)
	l.disks.Store(d)
	p.disksDone = d.done
	p.async(d.check)
	p.async(func() {
		<-l.ctx.Done()
		d.end()
	})
	return nil
}

// look opens a connection to libvirt on which nothing else waits.
func (d *disks) look() (err error) {
	p := d.l.p
	if d.eyes, err = virt.Open(d.l.ctx, p.d.cfg.LibvirtURI, p.log); err != nil {
		return err
	}
	if d.seen, err = d.eyes.Lookup(d.l.ctx, p.uuid); err != nil {
		return errors.Join(err, d.eyes.Close())
	}
	return nil
}

// serve opens the socket for this guest's QEMU, and for nobody else.
func (d *disks) serve(list []diskrep.Disk) error {
	p := d.l.p
	if err := os.MkdirAll(p.d.nbdDir(), 0o755); err != nil {
		return err
	}
	d.socket = filepath.Join(p.d.nbdDir(), fmt.Sprintf("%s.%d", p.uuid, p.d.diskSessions.Add(1)))
	if err := os.Remove(d.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		return fmt.Errorf("the server of the guest's mirrored disks: %w", err)
	}
	if err := giveTo(d.socket, p.pid); err != nil {
		ln.Close()
		return err
	}
	d.srv = nbd.NewServer(nbd.Options{Log: p.log, Guard: p.d.guard, Closed: func(export string, err error) {
		d.srv.Remove(export) // QEMU may come back with its next write, having left some out
		// No epoch is whole from here on, see check; but if QEMU ends, what it told
		// the guest to be written is here.
		if !p.dying(d.l.ctx) {
			d.src.Mark(fmt.Errorf("QEMU does not mirror disk %s any more: %w", export, errors.Join(errMirrorClosed, err)))
		}
	}})
	for i, disk := range list {
		if err := d.srv.Add(disk.Name, d.src.Backend(i)); err != nil {
			return errors.Join(err, ln.Close(), d.srv.Close())
		}
	}
	p.async(func() {
		if err := d.srv.Serve(onlyFrom{ln.(*net.UnixListener), p.pid, p.log}); err != nil && d.l.ctx.Err() == nil {
			d.l.fail(fmt.Errorf("the server of the guest's mirrored disks: %w", err))
		}
	})
	return nil
}

var errMirrorClosed = errors.New("it closed the connection")

// giveTo makes path usable for the user that process pid runs as, only.
func giveTo(path string, pid int) error {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err == nil {
		st := info.Sys().(*syscall.Stat_t)
		err = errors.Join(os.Chmod(path, 0o600), os.Chown(path, int(st.Uid), int(st.Gid)))
	}
	if err != nil {
		return fmt.Errorf("%s cannot be given to QEMU: %w", path, err)
	}
	return nil
}

// wire is what the backup is told of the disks.
func (d *disks) wire(places map[string]string) []replica.Disk {
	if d == nil {
		return nil
	}
	var ds []replica.Disk
	for i, disk := range d.list {
		ds = append(ds, replica.Disk{Name: disk.Target, SizeBytes: d.sizes[i].SizeBytes, UsedBytes: d.sizes[i].AllocatedBytes,
			Source: disk.Path, Format: disk.Format, Path: places[disk.Target]})
	}
	return ds
}

// sums takes note of what the backup's image holds.
func (d *disks) sums(m *replica.DiskSums) error {
	if d == nil || int(m.Disk) >= len(d.list) {
		return fmt.Errorf("checksums of disk %d: %w", m.Disk, replica.ErrMalformed)
	}
	return d.src.AddSums(int(m.Disk), m.FirstBlock, m.Sums)
}

// ready takes note of where the backup has its images.
func (d *disks) ready(m *replica.Ready) error {
	n := 0
	if d != nil {
		n = len(d.list)
	}
	if len(m.Disks) != n {
		return fmt.Errorf("the backup is ready for %d disks of %d: %w", len(m.Disks), n, replica.ErrMalformed)
	}
	for i, r := range m.Disks {
		if r.Fresh {
			if err := d.src.Fresh(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyAll has QEMU copy every disk to us, and returns when only what the guest
// writes is still to come.
func (d *disks) copyAll(ctx context.Context) error {
	if d == nil || d.copied.Load() {
		return nil
	}
	p, began := d.l.p, time.Now()
	moved, last := began, uint64(0)
	d.src.Copying()
	if err := d.beginMirrors(ctx); err != nil {
		return err
	}
	for {
		if err := d.src.Whole(); err != nil {
			return err
		}
		ready, err := d.mirrored(ctx)
		if err != nil {
			return err
		}
		p.sync.disks.Store(d.copiedBytes())
		p.changed()
		if ready {
			if err := d.src.Copied(ctx); err != nil {
				return err
			}
			d.copied.Store(true)
			p.log.Info("disks are mirrored", "after", time.Since(began), "disks", d.src.Stats())
			return nil
		}
		if n := d.taken(); n != last {
			moved, last = time.Now(), n
		} else if time.Since(moved) > mirrorStallMax {
			return fmt.Errorf("QEMU has copied nothing for %v, after %d bytes: is the storage of the guest's disks stuck?", mirrorStallMax, n)
		}
		afterOrDone(ctx, mirrorPoll)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// taken is how much QEMU has written to us, over and over.
func (d *disks) taken() (n uint64) {
	for _, s := range d.src.Stats() {
		n += s.WrittenBytes + s.Writes
	}
	return n
}

// copiedBytes is how far the first pass over all disks is, about.
func (d *disks) copiedBytes() (n uint64) {
	for i, s := range d.src.Stats() {
		n += min(uint64(s.WrittenBytes), d.sizes[i].SizeBytes)
	}
	return n
}

// mirrored asks libvirt whether all mirrors are there, and complete. When libvirt
// tells QEMU to end one it notes that in the same job, and our checkpoint's
// command is a job of its own: what the XML says is complete from a pause on was
// whole until that pause. One goroutine at a time calls it.
func (d *disks) mirrored(ctx context.Context) (complete bool, err error) {
	live, err := d.seen.LiveXML(ctx)
	if err != nil {
		return false, err
	}
	if live == d.good {
		return true, nil // parsing takes longer than asking
	}
	copies, err := virt.Copies(live)
	if err != nil {
		return false, err
	}
	complete = true
	for _, disk := range d.list {
		state := "gone"
		for _, c := range copies {
			if c.Target == disk.Target && c.Socket == d.socket {
				state = c.Ready
			}
		}
		switch state {
		case "yes":
		case "":
			complete = false
		default:
			return false, fmt.Errorf("the mirror of disk %s is not whole any more (%s): did somebody end its block job? It is begun anew", disk.Target, state)
		}
	}
	if complete {
		d.good = live
	}
	return complete, nil
}

// check answers, for each pause, whether the mirrors were whole until then.
func (d *disks) check() {
	for {
		select {
		case answer := <-d.asks:
			ctx, cancel := context.WithTimeout(d.l.ctx, mirrorTimeout)
			complete, err := d.mirrored(ctx)
			cancel()
			if err == nil && !complete {
				err = errors.New("the mirrors of the guest's disks are not complete any more")
			}
			// A connection that ended while we were frozen may not have been
			// noticed by its reader yet.
			for _, disk := range d.list {
				err = errors.Join(err, d.srv.Connected(disk.Target))
			}
			answer <- errors.Join(err, d.src.Whole())
		case <-d.l.ctx.Done():
			return
		}
	}
}

// begin says that a checkpoint comes; capMu is held until it ended.
func (d *disks) begin() {
	if d != nil {
		d.verdict, d.cut = make(chan error, 1), false
	}
}

// atPause closes the epoch's writes. The guest stands still.
func (d *disks) atPause() {
	if d == nil || d.cut {
		return
	}
	d.cut = true
	d.src.Cut()
	select {
	case d.asks <- d.verdict:
	default: // the checker is still at an older one, which did not come about
		d.verdict <- errors.New("libvirt did not say in time whether the mirrors of the guest's disks are whole")
	}
}

// cutLast closes the last epoch's writes: the guest is gone.
func (d *disks) cutLast() {
	if d != nil {
		d.cut = true
		d.src.Cut()
	}
}

// shipped waits until all writes of the epoch are queued, adds what the epoch's
// end has to say of them to s, and reports whether that came about.
func (d *disks) shipped(ctx context.Context, s *shipment) error {
	if d == nil {
		return nil
	}
	n, err := d.src.Shipped(ctx)
	if err != nil {
		return err
	}
	s.writes, s.whole = n, d.verdict
	return nil
}

// closed is shipped for one who must not wait.
func (d *disks) closed(s *shipment) bool {
	if d == nil {
		return true
	}
	ctx, cancel := context.WithCancel(d.l.ctx)
	cancel()
	return d.shipped(ctx, s) == nil
}

// ended says whether the end of the epoch was queued: what was written since the
// pause is of the next one then, and of the same one otherwise.
func (d *disks) ended(epoch ftengine.Epoch, ok bool) {
	switch {
	case d == nil || !d.cut:
	case !ok:
		d.src.Uncut()
	default:
		if epoch == 1 {
			d.src.Compared()
		}
		d.epoch.Store(uint64(epoch) + 1)
		d.src.Advance()
	}
	if d != nil {
		d.cut = false
	}
}

// broken ends the session: a write of the guest may have been missed. A QEMU that
// ends closes its connections before it is seen to have ended; the backup must
// hear of that, on this session, and not of a lost one.
func (d *disks) broken(err error) {
	if !d.l.p.dying(d.l.ctx) {
		d.l.fail(err)
	}
}

// ship queues writes for the backup.
func (d *disks) ship(_ context.Context, ws []diskrep.Write) error {
	return d.l.enqueue(shipment{epoch: ftengine.Epoch(d.epoch.Load()), disk: ws})
}

// end lets the guest write to its own disks only. First nothing waits for us any
// more, then the mirrors go, and the server last: QEMU never meets an error that
// is not needed.
func (d *disks) end() {
	defer close(d.done)
	d.src.End()
	p := d.l.p
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), mirrorTimeout)
	defer cancel()
	if !processGone(p.pid) {
		d.endMirrors(ctx)
	}
	if err := d.srv.Close(); err != nil {
		p.log.Warn("the server of the guest's mirrored disks", "err", err)
	}
	if err := d.eyes.Close(); err != nil {
		p.log.Debug("the connection to libvirt that looked after mirrors", "err", err)
	}
	_ = os.Remove(d.socket) // usually the listener did
}

// lost takes libvirt's word that a mirror ended. Those of a QEMU that ends are no
// loss: what it told the guest to be written is here.
func (d *disks) lost(detail string) {
	// Until all are copied it may be said of a mirror before ours.
	if d != nil && d.copied.Load() && d.l.ctx.Err() == nil && !d.l.p.dying(d.l.ctx) {
		d.src.Mark(fmt.Errorf("libvirt says that a mirrored disk's block job ended: %s", detail))
	}
}
