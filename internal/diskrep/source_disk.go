package diskrep

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// writeBytesMax and zeroBytesMax bound one Write: what the wire and the
	// backup handle in one piece. Both are multiples of BlockBytes.
	writeBytesMax = 1 << 20
	zeroBytesMax  = 1 << 30
	// partsKeptMax bounds the list that a disk keeps for its next request.
	partsKeptMax = 1024
)

// SourceDisk takes what QEMU mirrors of one disk. Its methods are those that an
// NBD server calls, from any goroutine. Requests of one disk are taken one
// after the other. An error of theirs makes the session not whole.
type SourceDisk struct {
	source *Source
	index  int
}

// sessionDisk is what a session knows of a disk.
type sessionDisk struct {
	// turn keeps requests of two connections apart. Hashing happens under it,
	// for what it holds up had to wait anyway.
	turn    sync.Mutex
	parts   []Write // of the request under way
	compare atomic.Pointer[comparer]
	stats   diskCounters
}

// SizeBytes returns the size of the disk.
func (d *SourceDisk) SizeBytes() int64 { return d.disk().SizeBytes }

func (d *SourceDisk) disk() Disk { return d.source.disks[d.index] }

// Read fails: what is written here is on another host. Only a guest that was
// moved over to the copy would want to read it.
func (d *SourceDisk) Read(context.Context, []byte, int64) error {
	return fmt.Errorf("disk %s: its replica cannot be read here; if the guest was moved to it (virsh blockjob --pivot), "+
		"stop the domain, let its disk point to its image again (virsh edit), and start it: %w", d.disk().Name, syscall.EPERM)
}

// Write takes data at off, and owns data until it calls release, which it does
// once. It waits for room in the queue, at most SourceOptions.StallMax or until
// ctx is done; then the session is not whole, and after a stall the answer is
// still nil: the guest has its data on its own disk and must not suffer.
func (d *SourceDisk) Write(ctx context.Context, off int64, data []byte, release func(), _ bool) error {
	w := Write{Disk: d.index, Off: off, Len: int64(len(data)), Data: data, Release: release}
	if len(data) == 0 {
		w.Free()
		return nil
	}
	s, err := d.session(ctx, w)
	if s == nil {
		w.Free()
		return err
	}
	sd := s.disks[d.index]
	sd.turn.Lock()
	defer sd.turn.Unlock()
	sd.stats.took(w.Len)
	parts := sd.parts[:0]
	if c := sd.compare.Load(); c != nil {
		var equal int64
		parts, equal = c.data(parts, w)
		sd.stats.compared(equal, c.newDebt())
	} else {
		for o := int64(0); o < w.Len; o += writeBytesMax {
			parts = join(parts, w, off+o, min(w.Len-o, writeBytesMax), false)
		}
	}
	lend(parts, w)
	return d.put(ctx, s, parts)
}

// Zero takes n bytes of zeros at off, as Write does.
func (d *SourceDisk) Zero(ctx context.Context, off, n int64, _, _ bool) error {
	if n == 0 {
		return nil
	}
	w := Write{Disk: d.index, Off: off, Len: n}
	s, err := d.session(ctx, w)
	if s == nil {
		return err
	}
	sd := s.disks[d.index]
	sd.turn.Lock()
	defer sd.turn.Unlock()
	sd.stats.took(n)
	for end := off + n; off < end; {
		// Steps end at multiples of the bound, so that none cuts a block.
		next := min(end, off-off%zeroBytesMax+zeroBytesMax)
		step := Write{Disk: d.index, Off: off, Len: next - off}
		parts := sd.parts[:0]
		if c := sd.compare.Load(); c != nil {
			var equal int64
			parts, equal = c.zeros(parts, step)
			sd.stats.compared(equal, c.newDebt())
		} else {
			parts = append(parts, step)
		}
		if err := d.put(ctx, s, parts); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// Trim is Zero: the copy is to be equal to what the source reads afterwards,
// and blocks that were freed read as zeros. QEMU 7.2 drops the discards of a
// guest above its mirror (seen), so that they get neither here nor to the
// source.
func (d *SourceDisk) Trim(ctx context.Context, off, n int64, fua bool) error {
	return d.Zero(ctx, off, n, true, fua)
}

// Flush does nothing, and neither does fua: it is the guest's own disk that
// keeps its promise of durability. How durable the backup's copy is belongs to
// the acknowledgement of its epoch.
func (d *SourceDisk) Flush(context.Context) error { return nil }

// session returns the session that is to keep w; none when w is forgotten.
func (d *SourceDisk) session(ctx context.Context, w Write) (*session, error) {
	s := d.source.cur.Load()
	err := w.check(d.source.disks)
	switch {
	case err != nil:
		err = fmt.Errorf("a write that was refused: %w: %w", err, syscall.EINVAL)
	case ctx.Err() != nil:
		// It may be a connection of a session before: what that brings is
		// older than what this one has, and must not get into it.
		err = fmt.Errorf("disk %s: the connection of its mirror was closed: %w", d.disk().Name, context.Cause(ctx))
	}
	switch {
	case s == nil || s.gone.Load():
		return nil, err
	case err != nil:
		s.fail(err, true)
		return nil, err
	}
	return s, nil
}

// put queues parts, and keeps their list for the next request.
func (d *SourceDisk) put(ctx context.Context, s *session, parts []Write) error {
	var err error
	if len(parts) > 0 {
		err = s.put(ctx, d.disk().Name, parts)
	}
	clear(parts)
	sd := s.disks[d.index]
	if sd.parts = parts[:0]; cap(parts) > partsKeptMax {
		sd.parts = nil
	}
	return err
}

// join appends n bytes of w at off to parts, or makes the last of them longer.
func join(parts []Write, w Write, off, n int64, zero bool) []Write {
	bytesMax := int64(writeBytesMax)
	if zero {
		bytesMax = zeroBytesMax
	}
	if len(parts) > 0 {
		last := &parts[len(parts)-1]
		if last.Off+last.Len == off && (last.Data == nil) == zero && last.Len+n <= bytesMax {
			off, n = last.Off, last.Len+n
			parts = parts[:len(parts)-1]
		}
	}
	p := Write{Disk: w.Disk, Off: off, Len: n}
	if !zero {
		i := off - w.Off
		p.Data = w.Data[i : i+n : i+n]
	}
	return append(parts, p)
}

// lend gives each part of w that has data a share of w's release.
func lend(parts []Write, w Write) {
	shares := 0
	for i := range parts {
		if parts[i].Data != nil {
			shares++
		}
	}
	release := w.Release
	switch {
	case release == nil:
		return
	case shares == 0:
		release()
		return
	case shares > 1:
		release = shared(release, shares)
	}
	for i := range parts {
		if parts[i].Data != nil {
			parts[i].Release = release
		}
	}
}

// shared returns a function that calls release when it is called for the last
// of so many times.
func shared(release func(), times int) func() {
	left := new(atomic.Int64)
	left.Store(int64(times))
	return func() {
		if left.Add(-1) == 0 {
			release()
		}
	}
}

// diskCounters are DiskStats that several goroutines count.
type diskCounters struct{ writes, written, shipped, zero, equal atomic.Uint64 }

func (c *diskCounters) took(n int64) {
	c.writes.Add(1)
	c.written.Add(uint64(n))
}

// compared counts what is not shipped: what the backup has, and what it will be
// sent later, if at all, which counts as written then.
func (c *diskCounters) compared(equal, debt int64) {
	c.equal.Add(uint64(equal))
	c.written.Add(uint64(-debt))
}

func (c *diskCounters) ships(w *Write) {
	if w.Data == nil {
		c.zero.Add(uint64(w.Len))
	} else {
		c.shipped.Add(uint64(w.Len))
	}
}

func (c *diskCounters) load() DiskStats {
	return DiskStats{Writes: c.writes.Load(), WrittenBytes: c.written.Load(), ShippedBytes: c.shipped.Load(), ZeroBytes: c.zero.Load(), EqualBytes: c.equal.Load()}
}
