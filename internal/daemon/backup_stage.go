package daemon

import (
	"context"
	"fmt"
	"sync"

	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// stagedEpoch is an epoch on its way: what arrived of it and is not applied.
// Until it is whole, batches, pages, bytes and ends are guarded by staging.mu,
// and the rest belongs to the reader of the first stream.
type stagedEpoch struct {
	batches []stagedBatch
	pages   uint64
	bytes   uint64
	ends    uint8 // bit i: stream i ended it

	final   bool // the guest was shut down in it
	device  []byte
	clock   replica.GuestClock
	outputs []replica.Packet

	writes    uint64 // to disks
	diskBytes int
}

// staged is how many bytes of pages wait to be applied.
func (s *stagedEpoch) staged() (n uint64) {
	for _, x := range s.batches {
		n += uint64(len(x.data))
	}
	return n
}

type stagedBatch struct {
	runs []replica.Run
	data []byte
}

// staging puts the epochs of a session together, of which pages come on several
// streams. The reader of the first stream ends an epoch when the others have; they
// may be ahead of it. Safe for concurrent use.
type staging struct {
	mu      sync.Mutex
	open    map[ftengine.Epoch]*stagedEpoch
	next    ftengine.Epoch // the oldest that is not whole
	bytes   uint64         // of pages, in all that are open
	changed chan struct{}  // closed and replaced when a stream ended an epoch
}

func newStaging() *staging {
	return &staging{open: map[ftengine.Epoch]*stagedEpoch{}, next: 1, changed: make(chan struct{})}
}

// epoch returns what arrived of epoch k. It is an error if k is whole already, or
// not one that may be open yet.
func (g *staging) epoch(k ftengine.Epoch) (*stagedEpoch, error) {
	if k < g.next || k > g.next+stagedEpochsMax {
		return nil, fmt.Errorf("a part of epoch %d while %d is open: %w", k, g.next, replica.ErrMalformed)
	}
	e := g.open[k]
	if e == nil {
		e = &stagedEpoch{}
		g.open[k] = e
	}
	return e, nil
}

// of is epoch for callers that do not hold mu.
func (g *staging) of(k ftengine.Epoch) (*stagedEpoch, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.epoch(k)
}

// isOpen tells whether epoch k is not whole yet.
func (g *staging) isOpen(k ftengine.Epoch) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return k >= g.next
}

// add takes pages of epoch k, which have arrived. An epoch may have limit bytes.
func (g *staging) add(k ftengine.Epoch, pages uint64, x stagedBatch, limit uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	e, err := g.epoch(k)
	if err != nil {
		return err
	}
	e.pages += pages
	e.bytes += uint64(len(x.data))
	g.bytes += uint64(len(x.data))
	if len(x.data) == 0 {
		return nil // they are in their place, and take none of what is bounded here
	}
	if e.bytes > limit {
		return fmt.Errorf("epoch %d is over %d bytes, which is all of the guest's memory three times", k, limit)
	}
	if g.bytes > 2*limit {
		return fmt.Errorf("%d bytes of epochs from %d on are here, and none of them is whole: %w", g.bytes, g.next, replica.ErrMalformed)
	}
	if x.runs != nil { // else they are applied already
		e.batches = append(e.batches, x)
	}
	return nil
}

// ended notes that stream i ended epoch k.
func (g *staging) ended(k ftengine.Epoch, i int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	e, err := g.epoch(k)
	if err != nil {
		return err
	}
	e.ends |= 1 << i
	close(g.changed)
	g.changed = make(chan struct{})
	return nil
}

// whole waits until all streams of the set ended epoch k, and takes it.
func (g *staging) whole(ctx context.Context, k ftengine.Epoch, streams uint8) (*stagedEpoch, error) {
	for {
		g.mu.Lock()
		e, err := g.epoch(k)
		all := err == nil && e.ends&streams == streams
		if all {
			delete(g.open, k)
			g.next = k + 1
			g.bytes -= e.bytes
		}
		changed := g.changed
		g.mu.Unlock()
		if all || err != nil {
			return e, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// readData stages what comes on stream i until the session ends, or what it
// brings counts no more.
func (in *inbound) readData(i int, c *replica.Conn) error {
	select {
	case <-in.ready:
	case <-in.ctx.Done():
		return in.ctx.Err()
	}
	var err error
	if i == 0 {
		err = in.stageEpochs()
	} else {
		err = in.stageMore(i, c)
	}
	if in.dropped.Load() {
		<-in.ctx.Done() // the rest of an epoch is no epoch
		return in.ctx.Err()
	}
	return err
}

// stageEpochs stages what comes on the first stream. The first epoch goes into the
// fresh standby's memory as it comes, because it may be as large as the guest and
// nothing older is there to be kept; the later ones wait until they are whole.
func (in *inbound) stageEpochs() error {
	if in.disks = in.b.disks.Load(); in.disks == nil && len(in.setup.Disks) > 0 {
		return errNoSession // the images are closed again
	}
	for next := ftengine.Epoch(1); ; next++ {
		if err := in.b.kept.waitRoom(in.ctx); err != nil {
			return err
		}
		for ended := false; !ended; {
			f, err := in.receive(in.s.Data)
			if err != nil {
				return err
			}
			if in.dropped.Load() {
				return nil
			}
			if ftengine.Epoch(f.Epoch) != next {
				return fmt.Errorf("a part of epoch %d while %d is open: %w", f.Epoch, next, replica.ErrMalformed)
			}
			if ended, err = in.stage(next, f); err != nil {
				return err
			}
		}
	}
}

// stage takes one message of epoch k from the first stream, and tells whether it
// was the last.
func (in *inbound) stage(k ftengine.Epoch, f replica.Frame) (ended bool, err error) {
	cur, err := in.staging.of(k)
	if err != nil {
		return false, err
	}
	switch m := f.Msg.(type) {
	case *replica.Pages:
		return false, in.stagePages(k, m, f.Data)
	case *replica.DiskWrites:
		return false, in.stageDisk(k, cur, m, f.Data)
	case *replica.Device:
		if !vmstate.Complete(m.Blob) {
			return false, fmt.Errorf("the device state of epoch %d is cut off: %w", k, replica.ErrMalformed)
		}
		cur.device = m.Blob
	case *replica.Output:
		cur.outputs = append(cur.outputs, m.Packets...)
		if n, limit := len(cur.outputs), in.b.d.cfg.Output.QueueFramesMax+netgate.NICsMax; n > limit {
			return false, fmt.Errorf("epoch %d has more than %d frames of output, which is output.queue_frames_max of this host: set it as on the primary", k, limit)
		}
	case *replica.EpochEnd:
		return true, in.endEpoch(k, m)
	default:
		return false, fmt.Errorf("%s on the data connection: %w", m.Type(), replica.ErrMalformed)
	}
	return false, nil
}

// stageMore stages the pages that come on a further stream.
func (in *inbound) stageMore(i int, c *replica.Conn) error {
	last, pages := ftengine.Epoch(0), uint64(0) // the epoch that came last, and of that
	for open := false; ; {
		if !open {
			if err := in.b.kept.waitRoom(in.ctx); err != nil {
				return err
			}
		}
		f, err := in.receive(c)
		if err != nil {
			return err
		}
		if in.dropped.Load() {
			return nil
		}
		k := ftengine.Epoch(f.Epoch)
		if open && k != last || !open && k <= last {
			return fmt.Errorf("a part of epoch %d after %d on data connection %d: %w", k, last, i, replica.ErrMalformed)
		}
		last = k
		switch m := f.Msg.(type) {
		case *replica.Pages:
			pages += m.Count()
			open, err = true, in.stagePages(k, m, f.Data)
		case *replica.StreamEnd:
			if m.Pages != pages {
				return fmt.Errorf("epoch %d ends on data connection %d with %d pages of %d: %w", k, i, pages, m.Pages, replica.ErrMalformed)
			}
			pages = 0
			open, err = false, in.staging.ended(k, i)
		default:
			err = fmt.Errorf("%s on data connection %d: %w", m.Type(), i, replica.ErrMalformed)
		}
		if err != nil {
			return err
		}
	}
}

// endEpoch checks that all of an epoch arrived, and says so when it is safe.
func (in *inbound) endEpoch(epoch ftengine.Epoch, m *replica.EpochEnd) error {
	if m.Streams&1 != 0 || int(m.Streams)>>len(in.s.Streams) != 0 {
		return fmt.Errorf("epoch %d ends on data connections %#b, there are %d: %w", epoch, m.Streams, len(in.s.Streams), replica.ErrMalformed)
	}
	cur, err := in.staging.whole(in.ctx, epoch, m.Streams)
	if err != nil {
		return err
	}
	cur.final = m.Flags&replica.EpochFinal != 0
	if cur.pages != m.Pages || (cur.device == nil) != cur.final || uint64(len(cur.outputs)) != m.Packets || cur.writes != m.DiskWrites {
		return fmt.Errorf("epoch %d ends with %d pages of %d, %d frames of %d, %d writes to disks of %d, device state %v: %w", epoch,
			cur.pages, m.Pages, len(cur.outputs), m.Packets, cur.writes, m.DiskWrites, cur.device != nil, replica.ErrMalformed)
	}
	cur.clock = m.Clock
	if err := in.endDisk(epoch); err != nil {
		return err
	}
	if err := in.keep(epoch, cur); err != nil {
		return err
	}
	in.post(ftengine.Staged{Epoch: epoch, Final: cur.final})
	return nil
}

// keep puts a whole epoch where the machine finds it, unless what this session
// brought was dropped, or is in a moment.
func (in *inbound) keep(epoch ftengine.Epoch, cur *stagedEpoch) error {
	b := in.b
	b.stageMu.Lock()
	defer b.stageMu.Unlock()
	if err := in.ctx.Err(); err != nil {
		return err
	}
	b.stage[epoch] = cur
	b.kept.stage(epoch, cur.staged(), cur.outputs)
	return nil
}

func (in *inbound) stagePages(epoch ftengine.Epoch, m *replica.Pages, data []byte) error {
	if err := replica.CheckRuns(m.Runs, in.setup.Blocks); err != nil {
		return err
	}
	if epoch > 1 {
		return in.staging.add(epoch, m.Count(), stagedBatch{m.Runs, data}, in.stageMax())
	}
	if err := in.settleNow(m.Runs); err != nil {
		return err
	}
	return in.staging.add(epoch, m.Count(), stagedBatch{}, 0)
}

// receive receives the next message of a data connection. Pages of the first
// epoch go straight to their place in the fresh standby's memory, which is of no use before that
// epoch is whole; everything else into memory of the pool.
func (in *inbound) receive(c *replica.Conn) (replica.Frame, error) {
	b, placing := in.b, false
	var given []byte
	f, err := c.RecvInto(in.ctx, func(f replica.Frame, n int) ([][]byte, error) {
		m, pages := f.Msg.(*replica.Pages)
		if !pages || f.Epoch != 1 {
			given = b.d.pool.get(n)
			return [][]byte{given}, nil
		}
		if err := replica.CheckRuns(m.Runs, in.setup.Blocks); err != nil {
			return nil, err
		}
		if !in.staging.isOpen(1) {
			return nil, fmt.Errorf("a part of the first epoch after its end: %w", replica.ErrMalformed)
		}
		b.imgMu.RLock()
		placing = true
		if b.img == nil || in.ctx.Err() != nil {
			return nil, errStandbyGone
		}
		return b.img.places(m.Runs), nil
	})
	if placing {
		b.imgMu.RUnlock()
	}
	f.Data = given
	return f, err
}

// stageMax bounds one staged epoch: the last of its live passes and the final one
// may each hold every page once, and those before a quarter of them.
func (in *inbound) stageMax() uint64 {
	var n uint64
	for _, b := range in.setup.Blocks {
		n += b.UsedBytes
	}
	return 3*n + replica.MaxPageData
}

// settleNow has the work goroutine do what is left to do for runs of the first
// epoch, and waits for it.
func (in *inbound) settleNow(runs []replica.Run) error {
	done := make(chan error, 1)
	b := in.b
	select {
	case b.work <- func() { done <- b.settleInitial(in, runs) }:
	case <-in.ctx.Done():
		return in.ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// dropStaged forgets epochs after keep.
func (b *backup) dropStaged(keep ftengine.Epoch) {
	b.stageMu.Lock()
	defer b.stageMu.Unlock()
	for e, s := range b.stage {
		if e > keep {
			b.free(s)
			delete(b.stage, e)
		}
	}
}

func (b *backup) free(s *stagedEpoch) {
	b.kept.applied(s.staged())
	for _, x := range s.batches {
		b.d.pool.put(x.data)
	}
	s.batches = nil
}
