package replica

import (
	"context"
	"fmt"
	"io"
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
	benchLent(b, func(c *Conn, src []byte) error {
		return c.SendPages(context.Background(), testStamp, runs, [][]byte{src}, nil)
	})
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
			})
		})
	}
}

// benchLent moves messages of 4 MiB of lent data over loopback, send to
// RecvPages. Beside MB/s it reports the speed as a part of two floors taken in
// turn with it, in the same run: a memcpy, and a plain Write and io.ReadFull
// of the same bytes over another loopback connection (no format, no checksums).
func benchLent(b *testing.B, send func(c *Conn, src []byte) error) {
	src, arena := make([]byte, MaxPageData), make([]byte, MaxPageData)
	for i := range src {
		src[i] = byte(i)
	}
	sender, receiver := dataPair(b)
	plainOut, plainIn := tcpPair(b)
	alloc := func(n int) []byte { return arena[:n] }
	recv := func() error { _, err := receiver.RecvPages(context.Background(), alloc); return err }

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

// BenchmarkChecksum is the CPU that both sides spend on CRC32C per message.
func BenchmarkChecksum(b *testing.B) {
	c, _ := wireConn(DataChannel)
	src := make([]byte, MaxPageData)
	runs := []Run{{Pages: MaxPageData / PageSize}}
	b.SetBytes(MaxPageData)
	for range b.N {
		head, err := c.runsHead(testStamp, &Pages{runs}, [][]byte{src})
		if err != nil {
			b.Fatal(err)
		}
		c.heads.Put(head)
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
