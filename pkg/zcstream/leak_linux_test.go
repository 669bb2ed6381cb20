package zcstream

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"
)

var leakPages = flag.Int("pages", 0, "pages that the leak test sends; 0 is 1,000,000, or 30,000 under the race detector or -short")

const (
	leakPageBytes = 4096
	leakBatch     = 64 // pages in a Send
	leakPool      = 40 // batches that take turns
)

// leakSource fills pages: a number, noise that depends on it, a checksum.
type leakSource struct {
	noise [64 << 10]byte
	table *crc32.Table
}

func newLeakSource() *leakSource {
	src := &leakSource{table: crc32.MakeTable(crc32.Castagnoli)}
	rnd := rand.New(rand.NewPCG(3, 5))
	for i := 0; i < len(src.noise); i += 8 {
		binary.LittleEndian.PutUint64(src.noise[i:], rnd.Uint64())
	}
	return src
}

func (src *leakSource) fill(page []byte, number uint64) {
	from := int(number * 2654435761 % (uint64(len(src.noise)) - leakPageBytes))
	copy(page, src.noise[from:from+leakPageBytes])
	binary.LittleEndian.PutUint64(page, number)
	binary.LittleEndian.PutUint32(page[leakPageBytes-4:], crc32.Checksum(page[:leakPageBytes-4], src.table))
}

func (src *leakSource) whole(page []byte, number uint64) bool {
	return binary.LittleEndian.Uint64(page) == number &&
		binary.LittleEndian.Uint32(page[leakPageBytes-4:]) == crc32.Checksum(page[:leakPageBytes-4], src.table)
}

// leak sends pages through send, each batch reused as soon as done says so, and
// overwritten with garbage before that. It returns how many pages arrived
// spoilt.
func leak(t *testing.T, pages int, r *Receiver, send func(done func(error), bufs ...[]byte) error) (spoilt int) {
	t.Helper()
	batches := pages / leakBatch
	free := make(chan [][]byte, leakPool)
	for range leakPool {
		memory, batch := make([]byte, leakBatch*leakPageBytes), [][]byte(nil)
		for i := range leakBatch {
			batch = append(batch, memory[i*leakPageBytes:(i+1)*leakPageBytes])
		}
		free <- batch
	}
	sent := make(chan error, 1)
	go func() {
		src, garbage := newLeakSource(), make([]byte, leakPageBytes)
		for i := range garbage {
			garbage[i] = 0xdb
		}
		for n := range batches {
			var batch [][]byte
			select {
			case batch = <-free:
			case <-time.After(patience):
				sent <- fmt.Errorf("batch %d: no memory came back for %v", n, patience)
				return
			}
			for i, page := range batch {
				copy(page, garbage)
				src.fill(page, uint64(n*leakBatch+i))
			}
			err := send(func(error) {
				for _, page := range batch {
					copy(page, garbage)
				}
				free <- batch
			}, batch...)
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	src, page := newLeakSource(), make([]byte, leakPageBytes)
	for n := range uint64(batches * leakBatch) {
		if _, err := r.ReadFull(t.Context(), page); err != nil {
			t.Fatalf("page %d: %v", n, err)
		}
		if !src.whole(page, n) {
			spoilt++
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return spoilt
}

// TestNoBufferIsReusedEarly is the proof of the ownership rule. Over loopback
// the kernel borrows pages until it delivers them, as long as the receiver is
// slower than the sender: an early reuse would be seen.
func TestNoBufferIsReusedEarly(t *testing.T) {
	pages := *leakPages
	if pages == 0 {
		pages = 1_000_000
		if raceEnabled || testing.Short() {
			pages = 30_000
		}
	}
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	needZeroCopy(t, s)
	start := time.Now()
	spoilt := leak(t, pages, r, func(done func(error), bufs ...[]byte) error { return s.Send(t.Context(), done, bufs...) })
	if spoilt > 0 {
		t.Errorf("%d of %d pages were overwritten while the kernel had them", spoilt, pages)
	}
	drain(t, s)
	st := s.Stats()
	if st.ZeroCopyBytes < st.Bytes/2 {
		t.Errorf("too little was lent to prove anything: %+v", st)
	}
	t.Logf("%d pages in %v, %.1f%% lent, %d completions", pages, time.Since(start).Round(time.Millisecond), 100*float64(st.ZeroCopyBytes)/float64(st.Bytes), st.Completions)
}

// TestLeakTestFindsEarlyDone runs the same with a sender that is wrong: it says
// done when Send returns. If that went unnoticed, the test above would prove
// nothing.
func TestLeakTestFindsEarlyDone(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	needZeroCopy(t, s)
	const pages = 20_000
	spoilt := leak(t, pages, r, func(done func(error), bufs ...[]byte) error {
		err := s.Send(t.Context(), nil, bufs...)
		done(err)
		return err
	})
	if spoilt == 0 {
		t.Error("a sender that calls done early passes")
	}
	t.Logf("%d of %d pages spoilt", spoilt, pages)
}
