package diskrep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// lender lends buffers as an NBD server does, and takes offence at one that is
// given back twice or used afterwards.
type lender struct{ lent, returned, twice atomic.Int64 }

func (l *lender) lend(data []byte) (b []byte, release func()) {
	b = bytes.Clone(data)
	l.lent.Add(1)
	var back atomic.Bool
	return b, func() {
		if back.Swap(true) {
			l.twice.Add(1)
		}
		l.returned.Add(1)
		fill(b, 0xee)
	}
}

func (l *lender) check(t interface{ Fatalf(string, ...any) }) {
	if lent, returned, twice := l.lent.Load(), l.returned.Load(), l.twice.Load(); lent != returned || twice != 0 {
		t.Fatalf("%d buffers were lent, %d were given back, %d of them twice", lent, returned, twice)
	}
}

func fill(p []byte, with byte) {
	copy(p, bytes.Repeat([]byte{with}, len(p)))
}

// modelBackup applies what is shipped, at once and in order.
type modelBackup struct {
	mu        sync.Mutex
	disks     []Disk
	images    [][]byte // with all that was shipped
	committed [][]byte // at the end of the last epoch; nil before the first
	writes    uint64   // of the epoch that is being shipped
	keep      int      // writes that are freed later
	kept      []Write
	failAfter int // calls of ship until it fails; negative: never
	sealed    bool
	wrong     error
	gate      chan struct{} // ship waits until it is closed
}

func (b *modelBackup) ship(ctx context.Context, ws []Write) error {
	b.mu.Lock()
	gate := b.gate
	b.mu.Unlock()
	select {
	case <-gate:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sealed && b.wrong == nil {
		b.wrong = fmt.Errorf("%d writes were shipped between Shipped and Advance", len(ws))
	}
	bytesSum := 0
	for i := range ws {
		w := &ws[i]
		if err := b.apply(w); err != nil && b.wrong == nil {
			b.wrong = err
		}
		bytesSum += len(w.Data)
		if b.keep > len(b.kept) {
			b.kept = append(b.kept, *w)
		} else {
			w.Free()
		}
	}
	if (len(ws) == 0 || len(ws) > 1024 || bytesSum > 4<<20) && b.wrong == nil {
		b.wrong = fmt.Errorf("%d writes, %d bytes in one call", len(ws), bytesSum)
	}
	if b.failAfter == 0 {
		return errors.New("the model's connection broke")
	}
	b.failAfter--
	return ctx.Err()
}

func (b *modelBackup) apply(w *Write) error {
	if err := w.check(b.disks); err != nil {
		return err
	}
	if len(w.Data) > 1<<20 || w.Len > 1<<30 {
		return fmt.Errorf("a write of %d bytes", w.Len)
	}
	b.writes++
	to := b.images[w.Disk][w.Off : w.Off+w.Len]
	if w.Data == nil {
		clear(to)
	} else {
		copy(to, w.Data)
	}
	return nil
}

func (b *modelBackup) do(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func cloneAll(images [][]byte) [][]byte {
	c := make([][]byte, len(images))
	for i := range images {
		c[i] = bytes.Clone(images[i])
	}
	return c
}

// modelOp is what a guest, or the mirror's own copying, does to a disk.
type modelOp struct {
	kind   string // "write", "zero", "trim", "again" (what is there), "copy" (the same, zeros by Zero), "clear" (zeros for the copy alone)
	off, n int64
	fill   byte // of each 512 bytes, counted up if it is odd
}

func drawOp(t *rapid.T, d Disk) modelOp {
	op := modelOp{kind: rapid.SampledFrom([]string{"write", "write", "write", "zero", "trim", "again"}).Draw(t, "op")}
	unit := rapid.SampledFrom([]int64{512, 4096, BlockBytes}).Draw(t, "unit")
	op.off = rapid.Int64Range(0, (d.SizeBytes-1)/unit).Draw(t, "at") * unit
	op.n = rapid.Int64Range(1, 4).Draw(t, "units") * unit
	if rapid.IntRange(0, 9).Draw(t, "large") == 0 {
		op.n = d.SizeBytes
	}
	op.n = min(op.n, d.SizeBytes-op.off)
	op.fill = rapid.Byte().Draw(t, "fill") & 3
	return op
}

// modelHost is QEMU: a write is on its own disk before the mirror has it.
type modelHost struct {
	source *Source
	images [][]byte
	pool   lender
	busy   sync.WaitGroup
	failed atomic.Value // error
}

func (h *modelHost) do(ctx context.Context, disk int, op modelOp) {
	at := h.images[disk][op.off : op.off+op.n]
	b := h.source.Backend(disk)
	zero := false
	switch op.kind {
	case "clear": // of the copy alone
		zero = true
	case "write":
		for i := 0; i < len(at); i += 512 {
			fill(at[i:i+512], op.fill+byte(i/512)*(op.fill&1))
		}
	case "zero", "trim":
		clear(at)
		zero = true
	case "copy":
		zero = onlyZeros(at)
	}
	var err error
	switch {
	case op.kind == "trim":
		err = b.Trim(ctx, op.off, op.n, false)
	case zero:
		err = b.Zero(ctx, op.off, op.n, true, false)
	default:
		data, release := h.pool.lend(at)
		err = b.Write(ctx, op.off, data, release, false)
	}
	if err != nil {
		h.failed.Store(fmt.Errorf("disk %d, %+v: %w", disk, op, err))
	}
}

// run does the operations of each disk on a goroutine of its own, when those
// before are done.
func (h *modelHost) run(ctx context.Context, ops [][]modelOp) {
	h.busy.Wait()
	for disk := range ops {
		h.busy.Go(func() {
			for _, op := range ops[disk] {
				h.do(ctx, disk, op)
			}
		})
	}
}

type sourceModel struct {
	t      *rapid.T
	disks  []Disk
	roomy  bool // the queue holds all that a burst writes
	host   *modelHost
	backup *modelBackup
	broken chan error
}

// TestSourceModel: whatever is written, cut, given up and begun again, the
// backup has at the end of each epoch what the source's disks held at its cut.
func TestSourceModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &sourceModel{t: t, broken: make(chan error, 10)}
		m.disks = []Disk{{"vda", 5*BlockBytes + 1536}, {"vdb", 17*BlockBytes + 512}}
		if rapid.Bool().Draw(t, "whole blocks") {
			m.disks[0].SizeBytes = 5 * BlockBytes
		}
		o := SourceOptions{QueueBytesMax: rapid.SampledFrom([]int64{1, 300 << 10, 1 << 30}).Draw(t, "queue"), StallMax: time.Hour}
		m.roomy = o.QueueBytesMax == 1<<30
		o.Broken = func(err error) { m.broken <- err }
		m.host = &modelHost{source: NewSource(m.disks, o)}
		open := make(chan struct{})
		close(open)
		m.backup = &modelBackup{disks: m.disks, gate: open}
		for _, d := range m.disks {
			m.host.images = append(m.host.images, make([]byte, d.SizeBytes))
			m.backup.images = append(m.backup.images, make([]byte, d.SizeBytes))
		}
		for range rapid.IntRange(1, 2).Draw(t, "sessions") {
			m.host.run(t.Context(), m.draw("before")) // nobody keeps it
			m.host.busy.Wait()
			m.session()
		}
	})
}

func (m *sourceModel) draw(label string) [][]modelOp {
	ops := make([][]modelOp, len(m.disks))
	for i, d := range m.disks {
		for range rapid.IntRange(0, 5).Draw(m.t, label) {
			ops[i] = append(ops[i], drawOp(m.t, d))
		}
	}
	return ops
}

// drawSync is what a mirror does first: it copies all of each disk while the
// guest writes.
func (m *sourceModel) drawSync(zeroed bool) [][]modelOp {
	ops := m.draw("meanwhile")
	for i, d := range m.disks {
		step := rapid.SampledFrom([]int64{BlockBytes, 1 << 20, 3 << 20}).Draw(m.t, "step")
		guest := ops[i]
		ops[i] = nil
		for off := int64(0); off < d.SizeBytes; off += step {
			if len(guest) > 0 && rapid.Bool().Draw(m.t, "guest first") {
				ops[i], guest = append(ops[i], guest[0]), guest[1:]
			}
			ops[i] = append(ops[i], modelOp{kind: "copy", off: off, n: min(step, d.SizeBytes-off)})
		}
		if zeroed {
			ops[i] = append([]modelOp{{kind: "clear", n: d.SizeBytes}}, ops[i]...)
		}
		ops[i] = append(ops[i], guest...)
	}
	return ops
}

// describe tells the source about the backup's images.
func (m *sourceModel) describe() {
	for i, d := range m.disks {
		image := m.backup.images[i]
		blocks := int((d.SizeBytes + BlockBytes - 1) / BlockBytes)
		switch how := rapid.SampledFrom([]string{"sums", "sums", "some sums", "fresh", "nothing"}).Draw(m.t, "known"); {
		case how == "nothing" || how == "fresh" && !onlyZeros(image):
		case how == "fresh":
			if err := m.host.source.Fresh(i); err != nil {
				m.t.Fatal(err)
			}
		default:
			first := 0
			if how == "some sums" {
				first = rapid.IntRange(0, blocks-1).Draw(m.t, "first sum")
			}
			var sums []byte
			for off := int64(first) * BlockBytes; off < d.SizeBytes; off += BlockBytes {
				sum := SumOf(image[off:min(off+BlockBytes, d.SizeBytes)])
				sums = append(sums, sum[:]...)
			}
			if err := m.host.source.AddSums(i, uint64(first), sums); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// session runs one until something ends it.
func (m *sourceModel) session() {
	t, src := m.t, m.host.source
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.backup.do(func() {
		m.backup.failAfter, m.backup.writes, m.backup.committed = -1, 0, nil
		m.backup.keep = rapid.SampledFrom([]int{0, 5}).Draw(t, "freed late")
	})
	src.Begin(ctx, m.backup.ship)
	m.describe()
	copying := rapid.Bool().Draw(t, "copying")
	if copying {
		src.Copying()
	}
	m.host.run(t.Context(), m.drawSync(copying && rapid.Bool().Draw(t, "zeroed first")))
	if copying {
		m.host.busy.Wait()
		if _, err := src.Shipped(t.Context()); !errors.Is(err, errCopying) {
			t.Fatalf("an epoch may end while zeros are owed: %v", err)
		}
		if err := src.Copied(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "epochs") {
		m.epoch()
	}
	m.host.run(t.Context(), m.draw("last"))
	fault := rapid.SampledFrom([]string{"end", "end", "mark", "ship fails", "context"}).Draw(t, "fault")
	switch fault {
	case "mark":
		src.Mark(errors.New("marked"))
	case "context":
		cancel()
	case "ship fails":
		m.backup.do(func() { m.backup.failAfter = 0 })
		m.host.busy.Wait()
		for src.Whole() == nil { // something has to be shipped for that
			m.host.do(t.Context(), 0, modelOp{kind: "write", off: 0, n: 512, fill: 1})
		}
	}
	if fault != "end" {
		m.host.busy.Wait()
		if src.Whole() == nil {
			t.Fatalf("after %q all is whole", fault)
		}
	}
	src.End()
	m.host.busy.Wait()
	m.over(fault)
}

// over checks what is left of a session, and lets the backup forget what is not
// committed.
func (m *sourceModel) over(fault string) {
	if fault == "mark" || fault == "ship fails" {
		<-m.broken
	}
	if n := len(m.broken); n > 0 {
		m.t.Fatalf("after %q: Broken was told %v", fault, <-m.broken)
	}
	if err, _ := m.host.failed.Load().(error); err != nil {
		m.t.Fatal(err)
	}
	b := m.backup
	b.do(func() {
		for i := range b.kept {
			b.kept[i].Free()
		}
		b.kept = nil
		if b.wrong != nil {
			m.t.Fatal(b.wrong)
		}
		if b.committed != nil {
			b.images = cloneAll(b.committed)
		}
	})
	m.host.pool.check(m.t)
	for i, st := range m.host.source.Stats() {
		if st.ShippedBytes+st.ZeroBytes+st.EqualBytes > st.WrittenBytes {
			m.t.Fatalf("disk %d: %+v", i, st)
		}
	}
}

// epoch ends one, with or without checkpoints that fail before.
func (m *sourceModel) epoch() {
	t, src, b := m.t, m.host.source, m.backup
	m.host.run(t.Context(), m.draw("burst"))
	gate := make(chan struct{})
	if m.roomy && rapid.Bool().Draw(t, "shut") {
		b.do(func() { b.gate = gate })
	} else {
		close(gate)
	}
	m.host.busy.Wait() // the guest stands still
	if err := src.Whole(); err != nil {
		t.Fatal(err)
	}
	want := cloneAll(m.host.images)
	src.Cut()
	m.host.run(t.Context(), m.draw("after the cut"))
	select {
	case <-gate:
	default:
		close(gate)
	}
	if rapid.IntRange(0, 3).Draw(t, "checkpoint fails") == 0 {
		src.Uncut()
		return
	}
	writes, err := src.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.do(func() { b.sealed = true })
	if m.roomy {
		m.host.busy.Wait() // so that there is something that must not be shipped
	}
	b.do(func() {
		b.sealed = false
		if writes != b.writes || b.wrong != nil {
			t.Fatalf("%d writes are said to be shipped, %d were: %v", writes, b.writes, b.wrong)
		}
		for i := range want {
			if !bytes.Equal(b.images[i], want[i]) {
				at := 0
				for b.images[i][at] == want[i][at] {
					at++
				}
				t.Fatalf("disk %d differs from byte %d on", i, at)
			}
		}
		b.committed, b.writes = want, 0
	})
	src.Advance()
	if rapid.Bool().Draw(t, "compared") {
		src.Compared()
	}
}
