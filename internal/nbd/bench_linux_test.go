package nbd

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// sink takes writes and forgets them.
type sink struct{ size int64 }

func (s sink) SizeBytes() int64                                     { return s.size }
func (s sink) Read(context.Context, []byte, int64) error            { return nil }
func (s sink) Zero(context.Context, int64, int64, bool, bool) error { return nil }
func (s sink) Trim(context.Context, int64, int64, bool) error       { return nil }
func (s sink) Flush(context.Context) error                          { return nil }
func (s sink) Write(_ context.Context, _ int64, _ []byte, release func(), _ bool) error {
	release()
	return nil
}

// echo reads requests of n bytes and answers each with the bytes of a reply, as
// a server would that looks at nothing.
func echo(b *testing.B, n int) net.Conn {
	ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "echo"))
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		defer ln.Close()
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		for buf := make([]byte, n); ; {
			if _, err := io.ReadFull(nc, buf); err != nil {
				return
			}
			if _, err := nc.Write(buf[:simpleReplyBytes]); err != nil {
				return
			}
		}
	}()
	nc, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close() })
	return nc
}

// connect chooses an export of a server that takes everything.
func connect(b *testing.B) net.Conn {
	s := NewServer(Options{})
	if err := s.Add("vda", sink{1 << 30}); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(b.TempDir(), "nbd"))
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(ln)
	b.Cleanup(func() { s.Close() })
	nc, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close() })
	hello := append(u32(3), optionBytes(optExportName, []byte("vda"))...)
	if _, err := nc.Write(hello); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, 18+10)); err != nil {
		b.Fatal(err)
	}
	return nc
}

// exchange sends requests, depth of them before it waits for a reply, and
// returns how long all took.
func exchange(b *testing.B, nc net.Conn, request []byte, times, depth int) time.Duration {
	reply := make([]byte, simpleReplyBytes*depth)
	began := time.Now()
	for left := times; left > 0; {
		n := min(left, depth)
		for range n {
			if _, err := nc.Write(request); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := io.ReadFull(nc, reply[:n*simpleReplyBytes]); err != nil {
			b.Fatal(err)
		}
		left -= n
	}
	return time.Since(began)
}

// BenchmarkWrite compares writes with the same bytes sent to a server that only
// reads them and answers as many bytes. The two take turns, so that what else
// the machine does meets both.
func BenchmarkWrite(b *testing.B) {
	for _, kind := range []struct {
		name         string
		bytes, depth int
		turn         int
	}{{"4KiB", 4096, 1, 200}, {"4KiB-depth16", 4096, 16, 200}, {"1MiB", 1 << 20, 1, 20}} {
		b.Run(kind.name, func(b *testing.B) {
			request := append(requestHead(request{kind: cmdWrite, length: uint32(kind.bytes)}), make([]byte, kind.bytes)...)
			ours, bare := connect(b), echo(b, len(request))
			b.ReportAllocs()
			b.ResetTimer()
			var served, floor time.Duration
			for left := b.N; left > 0; left -= kind.turn {
				n := min(left, kind.turn)
				served += exchange(b, ours, request, n, kind.depth)
				floor += exchange(b, bare, request, n, kind.depth)
			}
			b.ReportMetric(float64(served.Nanoseconds())/float64(b.N), "nbd-ns/op")
			b.ReportMetric(float64(floor.Nanoseconds())/float64(b.N), "echo-ns/op")
			b.ReportMetric(float64(served)/float64(floor), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
