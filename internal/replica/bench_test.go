package replica

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
)

const benchRuns = 256 // runs of 4 pages: 4 MiB a message

// BenchmarkPages moves 4 MiB Pages messages, see benchLent.
func BenchmarkPages(b *testing.B) {
	runs := make([]Run, benchRuns)
	for i := range runs {
		runs[i] = Run{Pages: MaxPageData / PageSize / benchRuns, Off: uint64(i) << 20}
	}
	send := func(c *Conn, src []byte) error {
		return c.SendPages(context.Background(), testStamp, runs, [][]byte{src}, nil)
	}
	b.Run("one-piece", func(b *testing.B) { benchLent(b, send, recvPages) })
	// Where each run has a place of its own, as in the memory of a guest.
	b.Run("in-place", func(b *testing.B) { benchLent(b, send, recvInPlace) })
}

// recvPages receives into arena as one piece, recvInPlace into benchRuns pieces.
func recvPages(c *Conn, arena []byte) error {
	_, err := c.RecvPages(context.Background(), func(n int) []byte { return arena[:n] })
	return err
}

func recvInPlace(c *Conn, arena []byte) error {
	_, err := c.RecvInto(context.Background(), func(f Frame, n int) ([][]byte, error) {
		pieces := make([][]byte, benchRuns)
		for i := range pieces {
			pieces[i] = arena[i*n/benchRuns:][:n/benchRuns]
		}
		return pieces, nil
	})
	return err
}

// BenchmarkPacked moves 4 MiB of pages that pack well, as Pages do: packing and
// unpacking are part of it, and the share that travelled is reported too.
func BenchmarkPacked(b *testing.B) {
	runs := make([]Run, benchRuns)
	for i := range runs {
		runs[i] = Run{Pages: MaxPageData / PageSize / benchRuns, Off: uint64(i) << 20}
	}
	p, words := newPacker(b), [][]byte{text(1, MaxPageData, false)}
	var packed []byte
	benchLent(b, func(c *Conn, _ []byte) error {
		var ok bool
		if packed, ok = p.Pack(words); !ok {
			return fmt.Errorf("%d bytes do not pack", MaxPageData)
		}
		return c.SendPacked(context.Background(), testStamp, runs, MaxPageData, packed)
	}, recvPages)
	b.ReportMetric(float64(len(packed))/MaxPageData, "packed/raw")
}

// BenchmarkDiskWrites moves 4 MiB DiskWrites messages, see benchLent: as a guest
// makes them that writes 4 KiB at a time, each lent by itself, and 1 MiB.
func BenchmarkDiskWrites(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			runs, data := make([]DiskRun, MaxPageData/size), make([][]byte, MaxPageData/size)
			for i := range runs {
				runs[i] = DiskRun{Bytes: uint32(size), Off: uint64(i) << 21}
			}
			benchLent(b, func(c *Conn, src []byte) error {
				for i := range data {
					data[i] = src[i*size:][:size]
				}
				return c.SendDiskWrites(context.Background(), testStamp, runs, data, nil)
			}, recvPages)
		})
	}
}

// benchLent moves messages of 4 MiB of lent data over loopback, send to
// receive. Beside MB/s it reports the speed as a part of two floors taken in
// turn with it, in the same run: a memcpy, and a plain Write and io.ReadFull
// of the same bytes over another loopback connection (no format, no checksums).
func benchLent(b *testing.B, send, receive func(c *Conn, memory []byte) error) {
	src, arena := make([]byte, MaxPageData), make([]byte, MaxPageData)
	for i := range src {
		src[i] = byte(i)
	}
	sender, receiver := dataPair(b)
	plainOut, plainIn := tcpPair(b)
	recv := func() error { return receive(receiver, arena) }

	// The two sides take turns message by message, each in its own goroutine.
	oursNs := newTurns(b, func() error { return send(sender, src) }, recv)
	plainNs := newTurns(b, func() error { _, err := plainOut.Write(src); return err },
		func() error { _, err := io.ReadFull(plainIn, arena); return err })
	b.SetBytes(MaxPageData)
	var ours, plain, memcpy time.Duration
	b.ResetTimer()
	for done := 0; done < b.N; {
		n := min(64, b.N-done) // long enough to pipeline, short enough to share the weather
		ours += oursNs(n)
		b.StopTimer()
		plain += plainNs(n)
		start := time.Now()
		for range n {
			copy(arena, src)
		}
		memcpy += time.Since(start)
		b.StartTimer()
		done += n
	}
	b.StopTimer()
	b.ReportMetric(float64(memcpy)/float64(ours), "x-memcpy")
	b.ReportMetric(float64(plain)/float64(ours), "x-plain-tcp")
}

// newTurns returns a function that moves n messages and tells how long it took.
func newTurns(b *testing.B, send, recv func() error) func(n int) time.Duration {
	return func(n int) time.Duration {
		failed := make(chan error, 1)
		start := time.Now()
		go func() {
			for range n {
				if err := send(); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
		for range n {
			if err := recv(); err != nil {
				b.Fatal(err)
			}
		}
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
}

// BenchmarkChecksum is the CPU that each side spends on CRC32C per message, as a
// part of what copying the same bytes takes, in turn with it: of memory that
// is far away, and of memory that is in the cache, as it is after being received.
func BenchmarkChecksum(b *testing.B) {
	for name, arena := range map[string]int{"cold": 256 << 20, "warm": 256 << 10} {
		b.Run(name, func(b *testing.B) {
			c, _ := wireConn(DataChannel)
			src, dst := text(1, arena, true), make([]byte, arena)
			piece := min(arena, MaxPageData)
			runs := []Run{{Pages: uint32(piece / PageSize)}}
			b.SetBytes(int64(piece))
			var memcpy time.Duration
			b.ResetTimer()
			for i := range b.N {
				at := i * piece % arena
				head, err := c.runsHead(testStamp, &Pages{runs}, [][]byte{src[at:][:piece]})
				if err != nil {
					b.Fatal(err)
				}
				c.heads.Put(head)
				b.StopTimer()
				if arena > piece {
					at = (at + arena/2) % arena // not what is in the cache now
				}
				start := time.Now()
				copy(dst[at:][:piece], src[at:][:piece])
				memcpy += time.Since(start)
				b.StartTimer()
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed())/float64(memcpy), "memcpys")
		})
	}
}

// BenchmarkStreams moves 4 MiB Pages messages over several connections at once.
func BenchmarkStreams(b *testing.B) {
	src := make([]byte, MaxPageData)
	runs := []Run{{Pages: MaxPageData / PageSize}}
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var moves []func(int) time.Duration
			for range n {
				x, y := dataPair(b)
				arena := make([]byte, MaxPageData)
				moves = append(moves, newTurns(b, func() error { return x.SendPages(context.Background(), testStamp, runs, [][]byte{src}, nil) },
					func() error { return recvPages(y, arena) }))
			}
			b.SetBytes(MaxPageData)
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, move := range moves {
				wg.Go(func() { move((b.N + i) / n) })
			}
			wg.Wait()
		})
	}
}

// BenchmarkControlRoundTrip is an Ack there and back over loopback.
func BenchmarkControlRoundTrip(b *testing.B) {
	x, y := tcpPair(b)
	a, z := newConn(x, x, ControlChannel, testProtection), newConn(y, y, ControlChannel, testProtection)
	go func() {
		for {
			f, err := z.Recv(context.Background())
			if err != nil || z.Send(context.Background(), f.Stamp, f.Msg) != nil {
				return
			}
		}
	}()
	defer a.Close()
	for range b.N {
		if err := a.Send(context.Background(), testStamp, &Ack{}); err != nil {
			b.Fatal(err)
		}
		if _, err := a.Recv(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
