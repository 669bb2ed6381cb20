package daemon

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/lean"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// laneJobsMax bounds the messages' worth of pages that wait for one stream.
const laneJobsMax = 2

// uses counts who still needs a batch that a link was given.
type uses struct {
	link  *link
	batch *capture.Batch
	bytes int64
	n     atomic.Int32
}

func newUses(l *link, b *capture.Batch) *uses {
	u := &uses{link: l, batch: b, bytes: int64(len(b.Data))}
	u.n.Store(1)
	return u
}

func (u *uses) add() { u.n.Add(1) }

func (u *uses) done() {
	if u.n.Add(-1) == 0 {
		u.batch.Free()
		u.link.lent.Add(-u.bytes)
		select {
		case u.link.paid <- struct{}{}:
		default:
		}
	}
}

// laneWork is what a lane did for an epoch.
type laneWork struct {
	pages   uint64 // sent, zero ones included
	raw     uint64 // bytes of contents before they were packed
	packed  uint64 // of these, bytes that were packed
	bytes   uint64 // of contents as they travelled
	sending time.Duration
	packing time.Duration
}

// add takes in what another lane did at the same time.
func (w *laneWork) add(x laneWork) {
	w.pages, w.raw, w.packed, w.bytes = w.pages+x.pages, w.raw+x.raw, w.packed+x.packed, w.bytes+x.bytes
	w.sending, w.packing = max(w.sending, x.sending), max(w.packing, x.packing)
}

// since is what was done after x.
func (w laneWork) since(x laneWork) laneWork {
	return laneWork{w.pages - x.pages, w.raw - x.raw, w.packed - x.packed, w.bytes - x.bytes, w.sending - x.sending, w.packing - x.packing}
}

// sample is w as the decision whether to pack wants to know it.
func (w laneWork) sample(packed bool) lean.Sample {
	return lean.Sample{RawBytes: int(w.raw), SentBytes: int(w.bytes), SendTime: w.sending, PackTime: w.packing, Packed: packed}
}

// laneJob is what a lane sends in one go: the pages of a batch that are its own,
// or (end set) the end of an epoch.
type laneJob struct {
	st   replica.Stamp
	runs []replica.Run
	data [][]byte
	of   *uses
	pack bool
	end  chan laneWork // gets what was done in the epoch
}

// lane sends the pages of one stream. The first is run by the shipper itself, the
// others by a goroutine each. What is being gathered belongs to the shipper.
type lane struct {
	link *link
	conn *replica.Conn
	jobs chan laneJob // nil for the first
	idle chan laneJob // whose slices may be used again

	next laneJob // being gathered
	used bool    // in the epoch that is open

	packer *replica.Packer
	did    laneWork
}

func newLane(l *link, c *replica.Conn, stream int) *lane {
	n := &lane{link: l, conn: c, idle: make(chan laneJob, laneJobsMax+2)}
	if stream > 0 {
		n.jobs = make(chan laneJob, laneJobsMax)
		l.p.async(n.run)
	}
	return n
}

// take gathers pages of one kind.
func (n *lane) take(x lean.Piece) {
	run := replica.Run{Block: x.Block, Pages: x.Pages, Off: x.Off}
	switch x.Kind {
	case lean.Same:
		return
	case lean.Zero:
		run.Flags = replica.RunZero
	default:
		n.next.data = append(n.next.data, x.Data)
	}
	n.next.runs = append(n.next.runs, run)
}

// flush sends what was gathered of a batch, or has it sent.
func (n *lane) flush(st replica.Stamp, of *uses, pack, elsewhere bool) error {
	if len(n.next.runs) == 0 {
		return nil
	}
	j := n.next
	j.st, j.of, j.pack, n.used = st, of, pack, true
	of.add()
	if !elsewhere {
		err := n.send(&j)
		n.next = laneJob{runs: j.runs[:0], data: j.data[:0]}
		return err
	}
	select {
	case n.next = <-n.idle:
	default:
		n.next = laneJob{}
	}
	select {
	case n.jobs <- j:
		return nil
	case <-n.link.ctx.Done():
		of.done()
		return n.link.ctx.Err()
	}
}

// end ends the epoch on this stream, and returns what was sent of it there.
func (n *lane) end(st replica.Stamp, elsewhere bool) (laneWork, error) {
	if !n.used {
		return laneWork{}, nil
	}
	n.used = false
	if !elsewhere {
		return n.report(), nil
	}
	told := make(chan laneWork, 1)
	select {
	case n.jobs <- laneJob{st: st, end: told}:
	case <-n.link.ctx.Done():
		return laneWork{}, n.link.ctx.Err()
	}
	select {
	case w := <-told:
		return w, nil
	case <-n.link.ctx.Done():
		return laneWork{}, n.link.ctx.Err()
	}
}

// report returns what was done since it was called last.
func (n *lane) report() laneWork {
	w := n.did
	n.did = laneWork{}
	return w
}

// run sends jobs until the link ends.
func (n *lane) run() {
	for {
		select {
		case j := <-n.jobs:
			if err := n.do(&j); err != nil {
				n.link.fail(fmt.Errorf("pages: %w", err))
			}
		case <-n.link.ctx.Done():
			return
		}
	}
}

func (n *lane) do(j *laneJob) error {
	if j.end != nil {
		w := n.report()
		err := n.conn.Send(n.link.ctx, j.st, &replica.StreamEnd{Pages: w.pages})
		j.end <- w
		return err
	}
	err := n.send(j)
	select {
	case n.idle <- laneJob{runs: j.runs[:0], data: j.data[:0]}:
	default:
	}
	return err
}

// close lets go of what is not sent. The link is over, and nobody hands jobs over
// any more.
func (n *lane) close() {
	for n.jobs != nil {
		select {
		case j := <-n.jobs:
			if j.of != nil {
				j.of.done()
			}
		default:
			return
		}
	}
}

// send sends the pages of j in messages that the protocol allows.
func (n *lane) send(j *laneJob) error {
	defer j.of.done()
	for runs, data := j.runs, j.data; len(runs) > 0; {
		r, d, bytes := fit(runs, data)
		for i := range runs[:r] {
			n.did.pages += uint64(runs[i].Pages)
		}
		if err := n.sendMessage(j, runs[:r], data[:d], bytes); err != nil {
			return err
		}
		runs, data = runs[r:], data[d:]
	}
	return nil
}

// sendMessage sends one message, packed if that is asked for and worth it.
func (n *lane) sendMessage(j *laneJob, runs []replica.Run, data [][]byte, bytes int) error {
	n.did.raw += uint64(bytes)
	if j.pack && bytes > 0 {
		packed, err := n.pack(data)
		if err != nil {
			return err
		}
		if packed != nil {
			n.did.packed += uint64(bytes)
			n.did.bytes += uint64(len(packed))
			start := time.Now()
			err := n.conn.SendPacked(n.link.ctx, j.st, runs, bytes, packed)
			n.did.sending += time.Since(start)
			return err
		}
	}
	n.did.bytes += uint64(bytes)
	j.of.add()
	start := time.Now()
	err := n.conn.SendPages(n.link.ctx, j.st, runs, data, func(error) { j.of.done() })
	n.did.sending += time.Since(start)
	return err
}

// pack returns data packed, or nil where that saves too little.
func (n *lane) pack(data [][]byte) ([]byte, error) {
	if n.packer == nil {
		var err error
		if n.packer, err = replica.NewPacker(); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	packed, ok := n.packer.Pack(data)
	n.did.packing += time.Since(start)
	if !ok {
		return nil, nil
	}
	return packed, nil
}

// fit is how many of runs, with how many of data and bytes, make one message.
func fit(runs []replica.Run, data [][]byte) (r, d, bytes int) {
	for ; r < len(runs) && r < replica.MaxRuns; r++ {
		if runs[r].Flags&replica.RunZero != 0 {
			continue
		}
		if bytes+len(data[d]) > replica.MaxPageData {
			return r, d, bytes
		}
		bytes += len(data[d])
		d++
	}
	return r, d, bytes
}
