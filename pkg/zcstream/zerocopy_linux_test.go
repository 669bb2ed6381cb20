package zcstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for what happens within milliseconds unless something is wrong.
const patience = 20 * time.Second

// eager lends everything, so that small tests do.
func eager() Options { return Options{ZeroCopy: ModeForce, MinZeroCopyBytes: 1} }

// pairOn returns two ends of a TCP connection over a loopback address, the
// dialing one first.
func pairOn(tb testing.TB, address string) (a, b net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		tb.Skipf("cannot listen on %s: %v", address, err)
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

// settled waits for done, and returns what it was told.
func settled(tb testing.TB, done <-chan error) error {
	tb.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		tb.Fatal("done was not called")
		return nil
	}
}

func drain(tb testing.TB, s *Sender) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Drain(ctx); err != nil {
		tb.Fatalf("Drain: %v; %+v", err, s.Stats())
	}
	if st := s.Stats(); st.PendingBytes != 0 {
		tb.Errorf("drained, and %d bytes are lent", st.PendingBytes)
	}
}

// needZeroCopy skips on kernels without SO_ZEROCOPY for TCP (before 4.14).
func needZeroCopy(tb testing.TB, s *Sender) {
	tb.Helper()
	if s.zc == nil {
		tb.Skipf("this kernel's TCP cannot lend memory: %s", s.plain)
	}
}

// TestDoneWithoutAnotherSend: the kernel's report is seen though nobody sends
// or reads, in both directions of one connection, and a Receiver that waits on
// the same connection is not disturbed.
func TestDoneWithoutAnotherSend(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			a, b := pairOn(t, address)
			for _, dir := range [][2]net.Conn{{a, b}, {b, a}} {
				s, r, back := NewSenderOptions(dir[0], eager()), NewReceiver(dir[1]), NewReceiver(dir[0])
				needZeroCopy(t, s)
				waiting := make(chan error, 1)
				go func() {
					_, err := back.ReadFull(t.Context(), make([]byte, 4))
					waiting <- err
				}()
				msg := bytes.Repeat([]byte("page"), 64<<10)
				done := make(chan error, 2)
				if err := s.Send(t.Context(), func(err error) { done <- err }, msg[:5], nil, msg[5:]); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(msg))
				if _, err := r.ReadFull(t.Context(), got); err != nil || !bytes.Equal(got, msg) {
					t.Fatalf("%v, equal: %t", err, bytes.Equal(got, msg))
				}
				if err := settled(t, done); err != nil {
					t.Errorf("done: %v", err)
				}
				if _, err := dir[1].Write([]byte("ping")); err != nil {
					t.Fatal(err)
				}
				if err := <-waiting; err != nil {
					t.Errorf("the Receiver beside: %v", err)
				}
				st := s.Stats()
				if st.ZeroCopyBytes != uint64(len(msg)) || st.Bytes != st.ZeroCopyBytes || st.Sends != 1 || st.Completions == 0 || st.CopiedCompletions != st.Completions || st.PendingBytes != 0 || st.Mode != "zero-copy" {
					t.Errorf("%+v", st)
				}
			}
		})
	}
}

// TestDowngradeAndReprobe: loopback copies, so zero-copy is given up after one
// probe, and tried again later.
func TestDowngradeAndReprobe(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, Options{ReprobeAfter: time.Hour}), NewReceiver(b)
	needZeroCopy(t, s)
	msg := make([]byte, 1<<20)
	round := func() Stats {
		t.Helper()
		go func() { _ = s.Send(t.Context(), nil, msg) }()
		if _, err := r.ReadFull(t.Context(), make([]byte, len(msg))); err != nil {
			t.Fatal(err)
		}
		drain(t, s)
		return s.Stats()
	}
	if st := s.Stats(); st.Mode != "probing" {
		t.Errorf("at first: %q", st.Mode)
	}
	first := round()
	if first.Completions != 1 || first.CopiedCompletions != 1 || first.ZeroCopyBytes > probeBytes || !strings.HasPrefix(first.Mode, "plain: the kernel copies") {
		t.Errorf("after the probe: %+v", first)
	}
	if st := round(); st.ZeroCopyBytes != first.ZeroCopyBytes {
		t.Errorf("lent although it does not pay: %+v", st)
	}
	s.zc.mu.Lock()
	s.zc.policy.until = time.Now() // an hour later
	s.zc.mu.Unlock()
	if st := round(); st.Completions != 2 || st.ZeroCopyBytes <= first.ZeroCopyBytes {
		t.Errorf("not probed again: %+v", st)
	}
}

func TestSmallSendsAreCopied(t *testing.T) {
	a, b := tcpPair(t)
	s := NewSenderOptions(a, Options{ZeroCopy: ModeForce})
	needZeroCopy(t, s)
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if err := s.Send(t.Context(), nil, make([]byte, minZeroCopyBytes-1)); err != nil {
		t.Fatal(err)
	}
	crumbs := make([][]byte, 1000) // more than the least, but scattered
	for i := range crumbs {
		crumbs[i] = make([]byte, averageMinBytes-1)
	}
	if err := s.Send(t.Context(), nil, crumbs...); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.ZeroCopyBytes != 0 {
		t.Errorf("lent %d bytes", st.ZeroCopyBytes)
	}
	if err := s.Send(t.Context(), nil, make([]byte, minZeroCopyBytes)); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.ZeroCopyBytes != minZeroCopyBytes {
		t.Errorf("lent %d bytes, want %d", st.ZeroCopyBytes, minZeroCopyBytes)
	}
}

func TestWhoCannotLendIsPlain(t *testing.T) {
	a, _ := tcpPair(t)
	first := NewSenderOptions(a, eager())
	needZeroCopy(t, first)
	u, _ := unixPair(t)
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	closed, _ := tcpPair(t)
	closed.Close()
	off, _ := tcpPair(t)
	for want, s := range map[string]*Sender{
		"plain: somebody else switched SO_ZEROCOPY on": NewSenderOptions(a, eager()),
		"plain: *net.UnixConn is not":                  NewSenderOptions(u, eager()),
		"plain: *net.pipe is not":                      NewSenderOptions(p, eager()),
		"plain: switched off":                          NewSenderOptions(off, Options{ZeroCopy: ModeOff}),
		"plain: raw-control":                           NewSenderOptions(closed, eager()),
	} {
		if got := s.Stats().Mode; !strings.HasPrefix(got, want) {
			t.Errorf("mode %q, want %q", got, want)
		}
		if err := s.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestMultipathTCPIsPlain: there the kernel would not report what it borrowed.
func TestMultipathTCPIsPlain(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	a, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if multi, err := a.(*net.TCPConn).MultipathTCP(); err != nil || !multi {
		t.Skipf("this kernel speaks no Multipath TCP (CONFIG_MPTCP, net.mptcp.enabled): %v", err)
	}
	s := NewSenderOptions(a, eager())
	go func() { _ = s.Send(t.Context(), nil, make([]byte, 1<<20)) }()
	if _, err := NewReceiver(b).ReadFull(t.Context(), make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); !strings.HasPrefix(st.Mode, "plain: ") || st.ZeroCopyBytes != 0 {
		t.Errorf("%+v", st)
	}
}

// TestPendingIsBounded looks, at each system call, how much is lent: never more
// than the bound, and what would exceed it is copied.
func TestPendingIsBounded(t *testing.T) {
	const bound, size = 100_000, 32 << 20
	a, b := tcpPair(t)
	opts := eager()
	opts.PendingMaxBytes = bound
	s, r := NewSenderOptions(a, opts), NewReceiver(b)
	needZeroCopy(t, s)
	most := uint64(0)
	(&kernel{sendmsg: func(_, fd int, iov []unix.Iovec, flags int) (int, error) {
		n, err := sendmsg(fd, iov, flags)
		if flags&unix.MSG_ZEROCOPY != 0 {
			most = max(most, s.Stats().PendingBytes+uint64(n))
		}
		return n, err
	}}).put(s)
	sent := make(chan error, 1)
	go func() { sent <- s.Send(t.Context(), nil, make([]byte, size)) }()
	if _, err := r.ReadFull(t.Context(), make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	drain(t, s)
	if st := s.Stats(); most == 0 || most > bound || st.ZeroCopyBytes == st.Bytes || st.Bytes != size {
		t.Errorf("at most %d were lent, the bound is %d; %+v", most, bound, st)
	}
}

// TestCloseWithLentMemory closes, in several ways, while the peer reads nothing.
// done must come, and not before the connection is reset.
func TestCloseWithLentMemory(t *testing.T) {
	for name, c := range map[string]struct {
		linger time.Duration
		close  func(*Sender, net.Conn)
	}{
		"Sender, at once":         {-1, func(s *Sender, _ net.Conn) { s.Close() }},
		"Sender, after a while":   {time.Millisecond, func(s *Sender, _ net.Conn) { s.Close() }},
		"connection, from behind": {-1, func(_ *Sender, c net.Conn) { c.Close() }},
		"Receiver on it":          {-1, func(_ *Sender, c net.Conn) { NewReceiver(c).Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			opts := eager()
			opts.LingerMax = c.linger
			s := NewSenderOptions(a, opts)
			needZeroCopy(t, s)
			full := fill(t, s)
			c.close(s, a)
			drain(t, s)
			for _, done := range full {
				if err := settled(t, done); err != nil {
					t.Errorf("done: %v for a Send that returned nil", err)
				}
			}
			if _, err := io.Copy(io.Discard, b); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the peer sees %v, want a reset: it did not get all", err)
			}
			if err := s.Send(t.Context(), nil, []byte{1}); !errors.Is(err, ErrClosed) {
				t.Errorf("Send after it: %v", err)
			}
		})
	}
}

// fill sends until one more Send would have to wait.
func fill(tb testing.TB, s *Sender) (dones []chan error) {
	tb.Helper()
	for s.Stats().PendingBytes < 300<<10 {
		done := make(chan error, 2)
		if err := s.Send(tb.Context(), func(err error) { done <- err }, make([]byte, 64<<10)); err != nil {
			tb.Fatal(err)
		}
		dones = append(dones, done)
	}
	return dones
}

// TestDeadlinesHold: a deadline of the connection bounds calls whose context
// has none.
func TestDeadlinesHold(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	past := time.Unix(1, 0)
	if err := errors.Join(a.SetWriteDeadline(past), b.SetReadDeadline(past)); err != nil {
		t.Fatal(err)
	}
	if err := s.Send(context.Background(), nil, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send: %v", err)
	}
	if n, err := r.ReadVec(context.Background(), [][]byte{make([]byte, 1)}); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadVec: %d, %v", n, err)
	}
}

// TestCutOffSend: a Send that ctx ended has lent memory; it comes back with the
// reset that Close makes, at once, because half a message is worth nothing.
func TestCutOffSend(t *testing.T) {
	a, _ := tcpPair(t)
	opts := eager()
	opts.LingerMax = time.Hour
	s := NewSenderOptions(a, opts)
	needZeroCopy(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 2)
	if err := s.Send(ctx, func(err error) { done <- err }, make([]byte, 64<<20)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if st := s.Stats(); st.PendingBytes == 0 {
		t.Errorf("nothing is lent: %+v", st)
	}
	select {
	case <-done:
		t.Error("done, and the kernel has the memory still")
	default:
	}
	if err := s.Send(t.Context(), nil, []byte{1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Send on a broken stream: %v", err)
	}
	s.Close()
	if err := settled(t, done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("done got %v", err)
	}
}

// TestNothingIsLeft: descriptors and goroutines of the watch are gone after
// Close, however often.
func TestNothingIsLeft(t *testing.T) {
	before := descriptors(t)
	for i := range 12 {
		a, b := tcpPair(t)
		s, r := NewSenderOptions(a, eager()), NewReceiver(b)
		needZeroCopy(t, s)
		if err := s.Send(t.Context(), nil, make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadFull(t.Context(), make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		drain(t, s)
		if i%3 != 0 {
			s.Close()
		} else {
			a.Close()
		}
		if _, err := r.ReadFull(t.Context(), make([]byte, 1)); err != io.EOF {
			t.Errorf("the peer sees %v, want io.EOF", err)
		}
		r.Close()
		for end := time.Now().Add(patience); watched(s); {
			if time.Now().After(end) {
				t.Fatal("the watch goes on")
			}
		}
	}
	for end := time.Now().Add(patience); descriptors(t) > before; {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, before it were %d", descriptors(t), before)
		}
	}
}

// TestWatchEndsWhenIdle: a connection that lends nothing any more costs nothing
// any more, and begins again.
func TestWatchEndsWhenIdle(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	needZeroCopy(t, s)
	for range 2 {
		if err := s.Send(t.Context(), nil, make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		if !watched(s) {
			t.Fatal("memory is lent, and nobody watches")
		}
		if _, err := r.ReadFull(t.Context(), make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		drain(t, s)
		for end := time.Now().Add(patience); watched(s); time.Sleep(watchTick / 10) {
			if time.Now().After(end) {
				t.Fatal("the watch goes on")
			}
		}
	}
}

func watched(s *Sender) bool {
	s.zc.mu.Lock()
	defer s.zc.mu.Unlock()
	return s.zc.watch != nil
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	n := 0
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}
