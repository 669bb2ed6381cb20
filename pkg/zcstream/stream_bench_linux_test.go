package zcstream

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkStream sends 4 MiB messages over loopback and reports, beside GB/s,
// the ratio to a memcpy of the same bytes measured in the same run, and the
// processor time of both ends for a MiB. The receiver scatters into as many
// buffers as are sent. Loopback copies what was lent, at delivery, and so
// zero-copy costs more here, not less: the numbers say what a wrong choice
// costs, and what ModeAuto makes of it.
func BenchmarkStream(b *testing.B) {
	for _, mode := range []struct {
		name string
		opts Options
	}{{"plain", Options{ZeroCopy: ModeOff}}, {"auto", Options{}}, {"lent", Options{ZeroCopy: ModeForce}}} {
		for _, pieces := range []int{1, 64, 1024} {
			b.Run(fmt.Sprintf("%s/buffers=%d", mode.name, pieces), func(b *testing.B) {
				x, y := tcpPair(b)
				benchmarkStream(b, NewSenderOptions(x, mode.opts), NewReceiver(y), pieces)
			})
		}
	}
}

func benchmarkStream(b *testing.B, s *Sender, r *Receiver, pieces int) {
	const size = 4 << 20
	src, dst := make([]byte, size), make([]byte, size)
	for i := range src { // or src is the kernel's one page of zeros, always in the cache
		src[i], dst[i] = byte(i*i>>8), 1
	}
	cut := func(p []byte) (bufs [][]byte) {
		for i := range pieces {
			bufs = append(bufs, p[i*size/pieces:(i+1)*size/pieces])
		}
		return bufs
	}
	from, to := cut(src), cut(dst)
	failed := make(chan error, 1)
	b.SetBytes(size)
	b.ReportAllocs()
	cpu := cpuTime(b)
	b.ResetTimer()
	go func() {
		for range b.N {
			if err := s.Send(context.Background(), nil, from...); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	for range b.N {
		if _, err := r.ReadVec(context.Background(), to); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-failed; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	cpu = cpuTime(b) - cpu
	streamNs := float64(b.Elapsed().Nanoseconds())
	start := time.Now()
	for range b.N {
		copy(dst, src)
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/streamNs, "x-memcpy")
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N*size>>20), "cpu-ns/MiB")
}

// cpuTime returns the processor time of this process so far.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHead reads heads of 48 bytes: they come out of what was read ahead,
// without a system call or an allocation for each.
func BenchmarkHead(b *testing.B) {
	x, y := tcpPair(b)
	r := NewReceiver(y)
	go feed(x)
	head := make([]byte, 48)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadFull(context.Background(), head); err != nil {
			b.Fatal(err)
		}
	}
	perHead := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
	start := time.Now()
	for range b.N {
		_ = unix.Getppid()
	}
	b.ReportMetric(perHead*float64(b.N)/float64(time.Since(start).Nanoseconds()), "x-syscall")
}

// feed writes until the connection is closed.
func feed(c net.Conn) {
	for block := make([]byte, 64<<10); ; {
		if _, err := c.Write(block); err != nil {
			return
		}
	}
}
