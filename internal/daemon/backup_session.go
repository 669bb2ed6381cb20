package daemon

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// statMark is when something last happened; safe for concurrent use.
type statMark struct {
	mu   sync.Mutex
	last time.Time
}

func (s *statMark) now() { s.mu.Lock(); s.last = time.Now(); s.mu.Unlock() }

func (s *statMark) age() (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.last), !s.last.IsZero()
}

// stagedEpoch is an epoch on its way: what arrived of it and is not applied.
type stagedEpoch struct {
	batches []stagedBatch
	device  []byte
	pages   uint64
	bytes   uint64
	outputs []replica.Packet

	writes    uint64 // to disks
	diskBytes int
}

// empty tells that nothing of the epoch arrived yet.
func (s *stagedEpoch) empty() bool {
	return s.pages == 0 && s.writes == 0 && s.device == nil && len(s.outputs) == 0
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

// inbound is one session with the primary, seen from the backup.
type inbound struct {
	b      *backup
	s      *replica.Session
	ctx    context.Context
	cancel context.CancelFunc
	setup  *replica.Setup
	beat   *replica.Monitor
	ready  chan struct{} // closed, by begun, when the standby takes pages
	begun  sync.Once

	generation uint64       // of the primary, as of Setup
	disks      *backupDisks // nil: the guest has none; of the reader of the data connection
	dropped    atomic.Bool  // what is not acknowledged was forgotten: no epoch of this session can be whole any more
	wg         sync.WaitGroup

	mu   sync.Mutex
	dead bool
}

func (in *inbound) post(e ftengine.Event) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.dead {
		in.b.post(e)
	}
}

// fail ends the session; the machine hears of it once.
func (in *inbound) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.dead {
		return
	}
	in.dead = true
	in.close()
	if in.b.ctx.Err() == nil {
		in.b.log.Warn("connection to the primary lost", "err", err)
	}
	in.b.post(ftengine.SessionDown{How: lossOf(err)})
}

// serve takes over a session that Admit let in. An older one ends first.
func (b *backup) serve(s *replica.Session) {
	in := &inbound{b: b, s: s, ready: make(chan struct{})}
	in.ctx, in.cancel = context.WithCancel(b.ctx)
	var err error
	in.beat, err = replica.NewMonitor(s.Control, heartbeat(s.Welcome, func() replica.Stamp {
		return replica.Stamp{Generation: b.generation()}
	}))
	if err != nil {
		b.log.Error("heartbeats", "err", err)
		s.Close()
		return
	}
	b.sessMu.Lock()
	old := b.sess
	b.sess = in
	b.sessMu.Unlock()
	if b.closed.Load() {
		b.dropSession()
		return
	}
	if old != nil {
		old.fail(fmt.Errorf("the primary began a new session: %w", replica.ErrPeerClosed))
		old.wg.Wait()
	}
	in.spawn(func() { in.fail(in.beat.Run(in.ctx)) })
	in.spawn(func() { in.fail(in.readControl()) })
}

func (in *inbound) spawn(f func()) {
	in.wg.Add(1)
	in.b.async(func() {
		defer in.wg.Done()
		f()
	})
}

// dropSession ends the session without an event: the machine asked for it.
func (b *backup) dropSession() {
	b.sessMu.Lock()
	in := b.sess
	b.sess = nil
	b.sessMu.Unlock()
	if in == nil {
		return
	}
	in.mu.Lock()
	in.dead = true
	in.mu.Unlock()
	in.close()
}

// close ends the connections and notes until when the primary may think that
// it holds its lease: from here on none of its heartbeats is answered.
func (in *inbound) close() {
	in.cancel()
	in.s.Close()
	ends := in.beat.PeerLeaseEnds()
	in.b.leaseEnds.Store(&ends)
}

func (b *backup) current() *inbound {
	b.sessMu.Lock()
	defer b.sessMu.Unlock()
	return b.sess
}

// send sends a control message in order with the other actions. Control
// messages are small: the kernel takes them at once, or the peer is stuck and
// the session's heartbeats end it.
func (b *backup) send(epoch ftengine.Epoch, m replica.Message) {
	in := b.current()
	if in == nil {
		return
	}
	if _, ok := m.(*replica.Ready); ok {
		in.begun.Do(func() { close(in.ready) })
	}
	ctx, cancel := context.WithTimeout(in.ctx, b.d.limits().Detect)
	defer cancel()
	st := replica.Stamp{Generation: uint64(b.m.Generation()), Epoch: uint64(epoch)}
	if err := in.s.Control.Send(ctx, st, m); err != nil {
		b.async(func() { in.fail(err) })
	}
}

func (in *inbound) readControl() error {
	for {
		f, err := in.s.Control.Recv(in.ctx)
		if err != nil {
			return err
		}
		if handled, err := in.beat.Observe(f); err != nil {
			return err
		} else if handled {
			continue
		}
		switch m := f.Msg.(type) {
		case *replica.Setup:
			if in.setup != nil {
				return fmt.Errorf("a second Setup: %w", replica.ErrMalformed)
			}
			if err := in.begin(m, f.Generation); err != nil {
				return err
			}
		case *replica.Input:
			in.b.kept.log(ftengine.Epoch(f.Epoch), m.Packets)
		case *replica.Released:
			in.b.kept.released(ftengine.Epoch(f.Epoch))
			in.post(ftengine.ReleasedTo{Epoch: ftengine.Epoch(f.Epoch)})
		case *replica.GuestDead:
			in.post(ftengine.GuestDead{Reason: m.Reason})
		case *replica.StandDown:
			in.post(ftengine.StandDown{Reason: m.Reason})
		case *replica.Bye:
			return fmt.Errorf("the primary said goodbye: %s: %w", m.Reason, replica.ErrPeerClosed)
		case *replica.Error:
			return fmt.Errorf("the primary reports: %s (%s)", m.Text, m.Code)
		default:
			return fmt.Errorf("%s is not for a backup: %w", m.Type(), replica.ErrMalformed)
		}
	}
}

// begin starts the initial sync that m describes.
func (in *inbound) begin(m *replica.Setup, gen uint64) error {
	arb, err := in.b.d.arbiterFor(in.ctx, m.Arbiter, m.ArbiterIdentity)
	if err != nil {
		_ = in.s.Control.Send(in.ctx, replica.Stamp{Generation: gen}, &replica.Rehearsed{Reason: err.Error()})
		return err
	}
	in.setup, in.generation = m, gen
	b := in.b
	b.mu.Lock()
	b.arb = arb
	b.mark.Arbiter, b.mark.ArbiterID = m.Arbiter, m.ArbiterIdentity
	b.mu.Unlock()
	b.later(func() { b.setup = m })
	in.post(ftengine.SessionUp{Generation: ftengine.Generation(gen)})
	in.spawn(func() { in.fail(in.readData()) })
	return nil
}

// readData stages epochs until the session ends, or what it brings counts no more.
func (in *inbound) readData() error {
	err := in.stageEpochs()
	if in.dropped.Load() {
		<-in.ctx.Done() // the rest of an epoch is no epoch
		return in.ctx.Err()
	}
	return err
}

// stageEpochs stages what comes. The first epoch goes into the fresh standby's memory
// as it comes, because it may be as large as the guest and nothing older is
// there to be kept; the later ones wait until they are whole.
func (in *inbound) stageEpochs() error {
	select {
	case <-in.ready:
	case <-in.ctx.Done():
		return in.ctx.Err()
	}
	if in.disks = in.b.disks.Load(); in.disks == nil && len(in.setup.Disks) > 0 {
		return errNoSession // the images are closed again
	}
	next, cur := ftengine.Epoch(1), &stagedEpoch{}
	for {
		if cur.empty() {
			if err := in.b.kept.waitRoom(in.ctx); err != nil {
				return err
			}
		}
		f, err := in.s.Data.RecvPages(in.ctx, in.b.d.pool.get)
		if err != nil {
			return err
		}
		if in.dropped.Load() {
			return nil
		}
		if ftengine.Epoch(f.Epoch) != next {
			return fmt.Errorf("a part of epoch %d while %d is open: %w", f.Epoch, next, replica.ErrMalformed)
		}
		switch m := f.Msg.(type) {
		case *replica.Pages:
			if err := in.stagePages(next, cur, m, f.Data); err != nil {
				return err
			}
		case *replica.DiskWrites:
			if err := in.stageDisk(next, cur, m, f.Data); err != nil {
				return err
			}
		case *replica.Device:
			if !vmstate.Complete(m.Blob) {
				return fmt.Errorf("the device state of epoch %d is cut off: %w", next, replica.ErrMalformed)
			}
			cur.device = m.Blob
		case *replica.Output:
			cur.outputs = append(cur.outputs, m.Packets...)
			if n, limit := len(cur.outputs), in.b.d.cfg.Output.QueueFramesMax+netgate.NICsMax; n > limit {
				return fmt.Errorf("epoch %d has more than %d frames of output, which is output.queue_frames_max of this host: set it as on the primary", next, limit)
			}
		case *replica.EpochEnd:
			if err := in.endEpoch(next, cur, m); err != nil {
				return err
			}
			next, cur = next+1, &stagedEpoch{}
		default:
			return fmt.Errorf("%s on the data connection: %w", m.Type(), replica.ErrMalformed)
		}
	}
}

// endEpoch checks that all of an epoch arrived, and says so when it is safe.
func (in *inbound) endEpoch(epoch ftengine.Epoch, cur *stagedEpoch, m *replica.EpochEnd) error {
	if cur.pages != m.Pages || cur.device == nil || uint64(len(cur.outputs)) != m.Packets || cur.writes != m.DiskWrites {
		return fmt.Errorf("epoch %d ends with %d pages of %d, %d frames of %d, %d writes to disks of %d, device state %v: %w", epoch,
			cur.pages, m.Pages, len(cur.outputs), m.Packets, cur.writes, m.DiskWrites, cur.device != nil, replica.ErrMalformed)
	}
	if err := in.endDisk(epoch); err != nil {
		return err
	}
	b := in.b
	b.stageMu.Lock()
	b.stage[epoch] = cur
	b.stageMu.Unlock()
	b.kept.stage(epoch, cur.staged(), cur.outputs)
	in.post(ftengine.Staged{Epoch: epoch})
	return nil
}

func (in *inbound) stagePages(epoch ftengine.Epoch, cur *stagedEpoch, m *replica.Pages, data []byte) error {
	if err := replica.CheckRuns(m.Runs, in.setup.Blocks); err != nil {
		return err
	}
	cur.pages += m.Count()
	cur.bytes += uint64(len(data))
	if epoch == 1 {
		return in.applyNow(stagedBatch{m.Runs, data})
	}
	if limit := in.stageMax(); cur.bytes > limit {
		return fmt.Errorf("epoch %d is over %d bytes, which is all of the guest's memory twice", epoch, limit)
	}
	cur.batches = append(cur.batches, stagedBatch{m.Runs, data})
	return nil
}

// stageMax bounds one staged epoch: a live pass and a final one may each hold
// every page once.
func (in *inbound) stageMax() uint64 {
	var n uint64
	for _, b := range in.setup.Blocks {
		n += b.UsedBytes
	}
	return 2*n + replica.MaxPageData
}

// applyNow has the work goroutine write x, and waits for it.
func (in *inbound) applyNow(x stagedBatch) error {
	done := make(chan error, 1)
	b := in.b
	select {
	case b.work <- func() { done <- b.applyInitial(in, x) }:
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

// connected tells whether the primary is talking to us.
func (b *backup) connected() bool {
	in := b.current()
	if in == nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.dead
}
