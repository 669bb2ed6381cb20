package zcstream

import (
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

// TestReceiverBesideLender: one connection, a Sender that lends and a Receiver
// that waits for the peer's word. The peer is slower than the Sender, so that
// reports come in while the socket is not writable.
func TestReceiverBesideLender(t *testing.T) {
	a, b := tcpPair(t)
	must(t, a.(*net.TCPConn).SetWriteBuffer(256<<10))
	s, r := NewSenderOptions(a, eager()), NewReceiver(a)
	needZeroCopy(t, s)
	got := make(chan error, 1)
	go func() {
		_, err := r.ReadFull(t.Context(), make([]byte, 1))
		got <- err
	}()
	const n = 16 << 20
	go func() {
		_, _ = io.CopyN(io.Discard, b, n)
		_, _ = b.Write([]byte{1})
	}()
	buf := make([]byte, 64<<10)
	for range n / len(buf) {
		if err := s.Send(t.Context(), nil, buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.Close()
}

// unpollable returns two ends of a connection, the first of which the runtime
// fails to read plainly: it is not writable, and nobody fetches its reports.
func unpollable(t *testing.T) (a *net.TCPConn, b net.Conn) {
	t.Helper()
	near, b := tcpPair(t)
	a = near.(*net.TCPConn)
	needZeroCopy(t, NewSenderOptions(a, eager())) // which switches SO_ZEROCOPY on
	// What the peer reads at once is far less than what makes a writable again.
	must(t, errors.Join(b.(*net.TCPConn).SetReadBuffer(8<<10), a.SetWriteBuffer(200<<10)))
	must(t, a.SetReadDeadline(time.Now().Add(patience)))
	failed := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		failed <- err
	}()
	for {
		stuff(t, a)
		if _, err := b.Read(make([]byte, 4<<10)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-failed:
			// Should this fail with a newer Go because Read waits: detour can go.
			if err == nil || !strings.HasSuffix(err.Error(), "not pollable") {
				t.Fatalf("plain Read: %v, want it to be refused", err)
			}
			must(t, a.SetReadDeadline(time.Time{}))
			return a, b
		default:
		}
	}
}

// stuff lends until a's buffer is full.
func stuff(t *testing.T, a *net.TCPConn) {
	t.Helper()
	raw, err := a.SyscallConn()
	must(t, err)
	page := make([]byte, 4<<10)
	must(t, raw.Control(func(fd uintptr) {
		for flags := unix.MSG_ZEROCOPY; err == nil; {
			_, err = unix.SendmsgN(int(fd), page, nil, nil, flags|unix.MSG_DONTWAIT)
			if errors.Is(err, unix.ENOBUFS) && flags != 0 {
				flags, err = 0, nil // enough is lent
			}
		}
	}))
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
}

// onDetour waits until r reads without the runtime's poller.
func onDetour(t *testing.T, r *Receiver) {
	t.Helper()
	for end := time.Now().Add(patience); !hasDetour(r); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the Receiver does not take the detour")
		}
	}
}

func hasDetour(r *Receiver) bool {
	r.scatter.detour.mu.Lock()
	defer r.scatter.detour.mu.Unlock()
	return r.scatter.detour.epoll != nil
}

// TestDetour: where plain reads fail, a Receiver waits, and everything that ends
// a wait ends this one.
func TestDetour(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(cancel func(), r *Receiver, a, b net.Conn) error
		want error
		goes bool // the stream goes on
	}{
		"bytes":                  {func(_ func(), _ *Receiver, _, b net.Conn) error { _, err := b.Write([]byte{7}); return err }, nil, true},
		"context":                {func(cancel func(), _ *Receiver, _, _ net.Conn) error { cancel(); return nil }, context.Canceled, true},
		"deadline of connection": {func(_ func(), _ *Receiver, a, _ net.Conn) error { return a.SetReadDeadline(aLongTimeAgo()) }, os.ErrDeadlineExceeded, true},
		"Close":                  {func(_ func(), r *Receiver, _, _ net.Conn) error { return r.Close() }, ErrClosed, false},
		"Close of connection":    {func(_ func(), _ *Receiver, a, _ net.Conn) error { return a.Close() }, ErrClosed, false},
		"end of stream":          {func(_ func(), _ *Receiver, _, b net.Conn) error { return b.(*net.TCPConn).CloseWrite() }, io.EOF, false},
		"reset by the peer": {func(_ func(), _ *Receiver, _, b net.Conn) error {
			return errors.Join(b.(*net.TCPConn).SetLinger(0), b.Close())
		}, unix.ECONNRESET, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			a, b := unpollable(t)
			r := NewReceiver(a)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got, p := make(chan error, 1), make([]byte, 1)
			go func() {
				_, err := r.ReadFull(ctx, p)
				got <- err
			}()
			onDetour(t, r)
			must(t, c.end(cancel, r, a, b))
			if err := settled(t, got); !errors.Is(err, c.want) {
				t.Errorf("ReadFull: %v, want %v", err, c.want)
			}
			if c.goes {
				must(t, a.SetReadDeadline(time.Time{}))
				_, err := b.Write([]byte{7})
				must(t, err)
				if _, err := r.ReadFull(t.Context(), p); err != nil || p[0] != 7 {
					t.Errorf("afterwards: %v, %d", err, p[0])
				}
			}
			if errors.Is(c.want, ErrClosed) && hasDetour(r) {
				t.Error("the detour outlives the connection")
			}
			r.Close()
			b.Close()
			if now := descriptors(t); now > before {
				t.Errorf("%d descriptors, before it were %d", now, before)
			}
		})
	}
}

// TestDetourSpares: writes wait as always where reads are refused, and bytes
// that are there already, and what is usual, need no detour.
func TestDetourSpares(t *testing.T) {
	a, b := unpollable(t)
	much := make([]byte, 1<<20) // more than there is room for
	must(t, a.SetWriteDeadline(time.Now().Add(10*time.Millisecond)))
	if _, err := a.Write(much); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write while nobody reads: %v, want it to wait", err)
	}
	must(t, errors.Join(a.SetWriteDeadline(time.Time{}), b.(*net.TCPConn).SetReadBuffer(1<<20)))
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if _, err := a.Write(much); err != nil {
		t.Errorf("Write: %v", err)
	}
	c, d := tcpPair(t)
	r := NewReceiver(d)
	go func() { _, _ = c.Write([]byte("12")) }()
	for range 2 {
		if _, err := r.ReadFull(t.Context(), make([]byte, 1)); err != nil || hasDetour(r) {
			t.Errorf("%v, detour: %t", err, hasDetour(r))
		}
	}
}
