package guestram

import "errors"

// collectFirst arms b and reports what it holds. Stretches that hold nothing
// are not armed: whatever comes to be there is unarmed, and so reported.
func (t *uffdTracker) collectFirst(b *tracked, dst []Range) ([]Range, error) {
	if b.file != nil {
		return t.firstOfFile(b, dst)
	}
	err := t.lanes[0].scan(t.pagemap, b.host, b.host+b.size, scanNew, func(r pageRegion) error {
		b.regions.fill(r.start, r.end)
		dst = add(dst, b.index, r.start-b.host, (r.end-r.start)/PageSize)
		return nil
	})
	if err != nil {
		return dst, err
	}
	b.regions.closeGaps()
	for _, p := range b.regions.pieces(nil, 0) {
		if p.empty {
			continue
		}
		if dst, err = t.settle(b, p.start, p.end, dst); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// firstOfFile is collectFirst for a shared block. The file is the authority: it
// also holds pages that nobody has touched through this mapping.
func (t *uffdTracker) firstOfFile(b *tracked, dst []Range) ([]Range, error) {
	var err error
	if t.scratch, err = b.populated(t.scratch[:0]); err != nil { // fills regions
		return dst, err
	}
	l := &t.lanes[0]
	err = l.scan(t.pagemap, b.host, b.host+b.size, scanNew, func(r pageRegion) error {
		b.regions.fill(r.start, r.end)
		return nil
	})
	if err != nil {
		return dst, err
	}
	b.regions.closeGaps()
	for _, p := range b.regions.pieces(nil, 0) {
		if p.empty {
			continue
		}
		err = l.scan(t.pagemap, p.start, p.end, t.written, func(pageRegion) error { return nil })
		if err != nil {
			return dst, err
		}
	}
	return b.populated(dst)
}

// collectAgain reports all that b holds after a pass that failed may have armed
// pages without reporting them. What was reported before and is gone now is
// found by the scan that follows.
func (t *uffdTracker) collectAgain(b *tracked, dst []Range) ([]Range, error) {
	err := t.lanes[0].scan(t.pagemap, b.host, b.host+b.size, scanThere, func(r pageRegion) error {
		off, pages := r.start-b.host, (r.end-r.start)/PageSize
		b.regions.fill(r.start, r.end)
		if b.file != nil {
			b.known.set(off/PageSize, pages)
		}
		dst = add(dst, b.index, off, pages)
		return nil
	})
	if err == nil && b.file != nil {
		dst, err = b.populated(dst)
	}
	return dst, err
}

// settle arms those pages of [start, end) that are not there, in a stretch of
// memory where nothing was until now and where scanNew has just found
// something, and appends those that came to be meanwhile. The others read as
// zero and were never reported.
func (t *uffdTracker) settle(b *tracked, start, end uint64, dst []Range) ([]Range, error) {
	l := &t.lanes[0]
	t.scratch = t.scratch[:0]
	err := l.scan(t.pagemap, start, end, t.written, func(r pageRegion) error {
		t.scratch = add(t.scratch, b.index, r.start-b.host, (r.end-r.start)/PageSize)
		return nil
	})
	for _, r := range t.scratch {
		var e error
		if dst, e = t.present(b, r, dst); e != nil {
			err = errors.Join(err, e)
		}
	}
	return dst, err
}

// present appends the pages of r that are there, without arming.
func (t *uffdTracker) present(b *tracked, r Range, dst []Range) ([]Range, error) {
	err := t.lanes[0].scan(t.pagemap, b.host+r.Off, b.host+r.End(), scanPresent, func(p pageRegion) error {
		off, pages := p.start-b.host, (p.end-p.start)/PageSize
		if b.file != nil {
			b.known.set(off/PageSize, pages)
		}
		dst = add(dst, b.index, off, pages)
		return nil
	})
	return dst, err
}
