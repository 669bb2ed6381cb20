package zcstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// tcpPair returns two ends of a TCP connection over loopback.
func tcpPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestBytesArriveInOrder(t *testing.T) {
	pairs := map[string]func(testing.TB) (net.Conn, net.Conn){
		"writev":    tcpPair,
		"coalesced": func(testing.TB) (net.Conn, net.Conn) { return net.Pipe() },
	}
	for name, pair := range pairs {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			s, r := NewSender(a), NewReceiver(b)
			defer s.Close()
			defer r.Close()
			rnd := rand.New(rand.NewPCG(1, 2))
			var want []byte
			var msgs [][][]byte
			for range 50 {
				var bufs [][]byte
				for range rnd.IntN(3000) + 1 { // more than IOV_MAX now and then
					buf := make([]byte, rnd.IntN(200))
					for i := range buf {
						buf[i] = byte(rnd.Uint32())
					}
					bufs = append(bufs, buf)
					want = append(want, buf...)
				}
				msgs = append(msgs, bufs)
			}
			var calls atomic.Int64
			go func() {
				for _, bufs := range msgs {
					if err := s.Send(t.Context(), func(error) { calls.Add(1) }, bufs...); err != nil {
						t.Errorf("Send: %v", err)
					}
				}
				s.Close()
			}()
			got := make([]byte, len(want))
			for off := 0; off < len(got); {
				n := min(rnd.IntN(100_000), len(got)-off)
				if _, err := r.ReadFull(t.Context(), got[off:off+n]); err != nil {
					t.Fatalf("ReadFull at %d: %v", off, err)
				}
				off += n
			}
			if !bytes.Equal(got, want) {
				t.Error("bytes differ")
			}
			if _, err := r.ReadFull(t.Context(), make([]byte, 1)); err != io.EOF {
				t.Errorf("after the end: %v, want io.EOF", err)
			}
			if calls.Load() != 50 {
				t.Errorf("done ran %d times, want 50", calls.Load())
			}
		})
	}
}

func TestConcurrentSendsStayWhole(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSender(a), NewReceiver(b)
	const senders, each, size = 8, 50, 3000
	var wg sync.WaitGroup
	for id := range senders {
		wg.Go(func() {
			half := bytes.Repeat([]byte{byte(id)}, size/2)
			for range each {
				if err := s.Send(t.Context(), nil, half, half); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
		})
	}
	msg := make([]byte, size)
	for range senders * each {
		if _, err := r.ReadFull(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(msg, msg[:1]) != size {
			t.Fatal("two messages were mixed")
		}
	}
	wg.Wait()
}

func TestCloseInterrupts(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSender(a), NewReceiver(b)
	sent, read := make(chan error, 1), make(chan error, 1)
	go func() {
		big := make([]byte, 1<<20)
		for { // until the peer's buffers are full and Send blocks, or Close came
			var fromDone error
			err := s.Send(t.Context(), func(e error) { fromDone = e }, big)
			if err != fromDone {
				t.Errorf("done got %v, Send returned %v", fromDone, err)
			}
			if err != nil {
				sent <- err
				return
			}
		}
	}()
	s2r := NewReceiver(a)
	go func() {
		_, err := s2r.ReadFull(t.Context(), make([]byte, 1)) // b never writes
		read <- err
	}()
	s.Close()
	if err := <-sent; !errors.Is(err, ErrClosed) {
		t.Errorf("Send: %v, want ErrClosed", err)
	}
	if err := <-read; !errors.Is(err, ErrClosed) {
		t.Errorf("ReadFull: %v, want ErrClosed", err)
	}
	if err := s.Send(t.Context(), nil, []byte{1}); !errors.Is(err, ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	r.Close()
	r.Close()
}

func TestContextBoundsIO(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		s, r := NewSender(a), NewReceiver(b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := r.ReadFull(ctx, make([]byte, 8)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ReadFull: %d, %v", n, err)
		}
		// A read that took nothing left the stream intact.
		go func() { _ = s.Send(t.Context(), nil, []byte("12345678")) }()
		if _, err := r.ReadFull(t.Context(), make([]byte, 8)); err != nil {
			t.Errorf("ReadFull after an early timeout: %v", err)
		}
		// A context that ended before the first byte leaves the Sender usable.
		if err := s.Send(ctx, nil, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send with an ended context: %v", err)
		}
		go func() { _ = s.Send(t.Context(), nil, []byte("y")) }()
		y := make([]byte, 1)
		if _, err := r.ReadFull(t.Context(), y); err != nil || y[0] != 'y' {
			t.Errorf("got %q, %v", y, err)
		}
		// One that was cut off in the middle does not.
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Second)
		defer cancel2()
		if err := s.Send(ctx2, nil, []byte("nobody reads this")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("blocked Send: %v", err)
		}
		if err := s.Send(t.Context(), nil, []byte("z")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send on a broken stream: %v", err)
		}
	})
}

// BenchmarkStream sends 4 MiB messages over loopback and reports, beside GB/s,
// the ratio to a memcpy of the same bytes measured in the same run.
func BenchmarkStream(b *testing.B) {
	for _, pieces := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("buffers=%d", pieces), func(b *testing.B) {
			const size = 4 << 20
			src, dst := make([]byte, size), make([]byte, size)
			var bufs [][]byte
			for i := range pieces {
				bufs = append(bufs, src[i*size/pieces:(i+1)*size/pieces])
			}
			x, y := tcpPair(b)
			s, r := NewSender(x), NewReceiver(y)
			failed := make(chan error, 1)
			b.SetBytes(size)
			b.ResetTimer()
			go func() {
				for range b.N {
					if err := s.Send(context.Background(), nil, bufs...); err != nil {
						failed <- err
						return
					}
				}
				failed <- nil
			}()
			for range b.N {
				if _, err := r.ReadFull(context.Background(), dst); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-failed; err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			streamNs := float64(b.Elapsed().Nanoseconds())
			start := time.Now()
			for range b.N {
				copy(dst, src)
			}
			b.ReportMetric(float64(time.Since(start).Nanoseconds())/streamNs, "x-memcpy")
		})
	}
}
