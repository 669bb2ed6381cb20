package guestram

import (
	"errors"
	"time"
	"unsafe"
)

// scanVec is how many regions one PAGEMAP_SCAN may return; 24 bytes each.
const scanVec = 8192

// laneRanges is the room for a lane's output to begin with.
const laneRanges = 16384

// lane is what one thread needs to scan. The kernel writes to arg and vec by
// address; Go does not move heap objects.
type lane struct {
	arg   *pmScanArg
	vec   []pageRegion
	dirty int // entries of vec that the last scan filled
	out   []Range
	ns    int64
}

func newLane() lane {
	return lane{arg: new(pmScanArg), vec: make([]pageRegion, scanVec), out: make([]Range, 0, laneRanges)}
}

// scan gives to take what q asks for in [start, end). Regions that were armed
// before a failure are given to it as well.
func (l *lane) scan(pagemap int, start, end uint64, q query, take func(pageRegion) error) error {
	for at := start; at < end; {
		n, err := l.step(pagemap, at, end, q)
		for _, r := range l.vec[:n] {
			err = errors.Join(err, take(r))
		}
		if err != nil {
			return err
		}
		at = l.arg.walkEnd
	}
	return nil
}

// step fills vec with the first regions of [start, end), n of them, which is
// right beside an error too, and leaves in arg.walkEnd how far it came.
func (l *lane) step(pagemap int, start, end uint64, q query) (n int, err error) {
	clear(l.vec[:l.dirty])
	*l.arg = scanArg(start, end, l.vec, q)
	n, err = ioctl(pagemap, pagemapScan, unsafe.Pointer(l.arg))
	if err != nil {
		// The regions before the failure are re-armed already.
		for n = 0; n < len(l.vec) && l.vec[n].end != 0; n++ {
		}
	} else if l.arg.walkEnd <= start {
		err = errStuck
	}
	l.dirty = n
	return n, err
}

// work scans pieces until none is left. It implements task.
func (t *uffdTracker) work(n int) {
	l := &t.lanes[n]
	start := time.Now()
	for {
		i := int(t.next.Add(1)) - 1
		if i >= len(t.pieces) {
			break
		}
		p := &t.pieces[i]
		p.lane, p.from = n, len(l.out)
		p.err = l.piece(t, p)
		p.to = len(l.out)
	}
	l.ns = time.Since(start).Nanoseconds()
}

func (l *lane) piece(t *uffdTracker, p *piece) error {
	b := &t.blocks[p.block]
	q := t.written
	if p.empty {
		q = scanNew
	}
	first := len(l.out)
	for at := p.start; at < p.end; {
		n, err := l.step(t.pagemap, at, p.end, q)
		for _, r := range l.vec[:n] {
			l.out = addBehind(first, l.out, b.index, r.start-b.host, (r.end-r.start)/PageSize)
		}
		if err != nil {
			return err
		}
		at = l.arg.walkEnd
	}
	return nil
}

// collectArmed appends what was written since the last Collect.
func (t *uffdTracker) collectArmed(dst []Range) ([]Range, error) {
	if t.stale {
		t.pieces = t.pieces[:0]
		for i := range t.blocks {
			t.pieces = t.blocks[i].regions.pieces(t.pieces, i)
		}
		t.stale = false
	}
	for i := range t.lanes {
		t.lanes[i].out, t.lanes[i].ns = t.lanes[i].out[:0], 0
	}
	t.next.Store(0)
	t.crew.run(t, t.busyNs >= t.parallelNs)
	t.busyNs = 0
	for i := range t.lanes {
		t.busyNs += t.lanes[i].ns
	}
	var errs error
	for i := range t.pieces {
		var err error
		if dst, err = t.gather(&t.pieces[i], dst); err != nil {
			errs = errors.Join(errs, t.blocks[t.pieces[i].block].explain(err))
		}
	}
	for i := range t.blocks {
		if errs != nil {
			break
		}
		b := &t.blocks[i]
		var err error
		if dst, err = t.discarded(b, dst); err != nil {
			errs = b.explain(err)
		}
	}
	return dst, errs
}

// gather appends what was found in p.
func (t *uffdTracker) gather(p *piece, dst []Range) ([]Range, error) {
	b := &t.blocks[p.block]
	found := t.lanes[p.lane].out[p.from:p.to]
	for _, r := range found {
		if b.file != nil {
			b.known.set(r.Off/PageSize, uint64(r.Pages))
		}
		dst = add(dst, r.Block, r.Off, uint64(r.Pages))
	}
	if !p.empty || len(found) == 0 {
		return dst, p.err
	}
	t.stale = true
	err := p.err
	for _, r := range found {
		from, to := b.regions.index(b.host+r.Off), b.regions.index(b.host+r.End()-1)
		for ; from <= to; from++ {
			start, end := b.regions.bounds(from)
			if !b.regions.fill(start, end) {
				continue
			}
			var e error
			if dst, e = t.settle(b, start, end, dst); e != nil {
				b.pass = firstFailed
				err = errors.Join(err, e)
			}
		}
	}
	return dst, err
}

// discarded appends the pages whose content was thrown away and that a scan for
// written pages does not report.
func (t *uffdTracker) discarded(b *tracked, dst []Range) ([]Range, error) {
	if b.file != nil {
		changed, err := b.touched.changed(b.file, time.Now())
		if err != nil || !changed {
			return dst, err
		}
		return t.unmapped(b, dst)
	}
	if t.holesWritten {
		return dst, nil
	}
	l := &t.lanes[0]
	err := t.filled(b, func(start, end uint64) error {
		return l.scan(t.pagemap, start, end, scanHoles, func(r pageRegion) error {
			dst = add(dst, b.index, r.start-b.host, (r.end-r.start)/PageSize)
			// The scan did not arm all of these. Arming after the scan loses
			// no write: contents are read later.
			return uffdProtect(t.uffd, r.start, r.end-r.start)
		})
	})
	return dst, err
}

// unmapped looks up in the file of b what is not in the page tables.
func (t *uffdTracker) unmapped(b *tracked, dst []Range) ([]Range, error) {
	l := &t.lanes[0]
	err := t.filled(b, func(start, end uint64) error {
		return l.scan(t.pagemap, start, end, scanAll, func(r pageRegion) (err error) {
			off, pages := r.start-b.host, (r.end-r.start)/PageSize
			if r.categories&pageIsWritten != 0 {
				b.known.set(off/PageSize, pages)
				dst = add(dst, b.index, off, pages)
				return nil
			}
			dst, err = b.punched(off, pages, dst)
			return err
		})
	})
	return dst, err
}

// filled calls f for each stretch of b that may hold anything.
func (t *uffdTracker) filled(b *tracked, f func(start, end uint64) error) error {
	for i := range t.pieces {
		p := &t.pieces[i]
		if p.empty || &t.blocks[p.block] != b {
			continue
		}
		if err := f(p.start, p.end); err != nil {
			return err
		}
	}
	return nil
}
