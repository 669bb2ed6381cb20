package zcstream

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernel stands between a Sender and the system call.
type kernel struct {
	sendmsg func(call int, fd int, iov []unix.Iovec, flags int) (int, error)
	calls   int
}

func (k *kernel) put(s *Sender) {
	s.zc.sendmsg = func(fd int, iov []unix.Iovec, flags int) (int, error) {
		k.calls++
		return k.sendmsg(k.calls, fd, iov, flags)
	}
}

// refusal is a kernel that does not do as it is asked, and what holds then.
type refusal struct {
	sendmsg func(call, fd int, iov []unix.Iovec, flags int) (int, error)
	holds   func(Stats) bool
}

func refusals() map[string]refusal {
	short := func(fd int, iov []unix.Iovec, flags int) (int, error) {
		one := iov[:1]
		if one[0].Len > 1000 {
			one[0].SetLen(1000)
		}
		return sendmsg(fd, one, flags)
	}
	lends := func(flags int) bool { return flags&unix.MSG_ZEROCOPY != 0 }
	return map[string]refusal{
		"no buffers now and then": {func(call, fd int, iov []unix.Iovec, flags int) (int, error) {
			if lends(flags) && call%3 != 0 {
				return 0, unix.ENOBUFS
			}
			return sendmsg(fd, iov, flags)
		}, func(st Stats) bool {
			return st.NoBuffers > 0 && st.ZeroCopyBytes > 0 && st.ZeroCopyBytes < st.Bytes && st.Mode == "zero-copy"
		}},
		"no buffers ever": {func(_, fd int, iov []unix.Iovec, flags int) (int, error) {
			if lends(flags) {
				return 0, unix.ENOBUFS
			}
			return sendmsg(fd, iov, flags)
		}, func(st Stats) bool { return st.NoBuffers > 0 && st.ZeroCopyBytes == 0 }},
		"not supported": {func(_, fd int, iov []unix.Iovec, flags int) (int, error) {
			if lends(flags) {
				return 0, unix.EOPNOTSUPP
			}
			return sendmsg(fd, iov, flags)
		}, func(st Stats) bool {
			return st.ZeroCopyBytes == 0 && st.NoBuffers == 0 && strings.HasPrefix(st.Mode, "plain: the socket does not take")
		}},
		"short": {func(_, fd int, iov []unix.Iovec, flags int) (int, error) {
			return short(fd, iov, flags)
		}, func(st Stats) bool { return st.Completions > 1000 }},
		"interrupted": {func(call, fd int, iov []unix.Iovec, flags int) (int, error) {
			if call%2 == 0 {
				return 0, unix.EINTR
			}
			return short(fd, iov, flags)
		}, func(st Stats) bool { return st.ZeroCopyBytes > 0 }},
	}
}

// TestRefusals lets the system call be refused, interrupted and cut short, and
// looks whether every byte arrives all the same, and every done is called.
func TestRefusals(t *testing.T) {
	for name, c := range refusals() {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			s, r := NewSenderOptions(a, eager()), NewReceiver(b)
			needZeroCopy(t, s)
			(&kernel{sendmsg: c.sendmsg}).put(s)
			msg := make([]byte, 1<<20)
			for i := range msg {
				msg[i] = byte(i * i >> 8)
			}
			const rounds = 4
			dones := make(chan error, 2*rounds)
			go func() {
				for range rounds {
					err := s.Send(t.Context(), func(err error) { dones <- err }, msg[:100_000], msg[100_000:100_003], msg[100_003:])
					if err != nil {
						t.Error(err)
					}
				}
			}()
			got := make([]byte, len(msg))
			for range rounds {
				if _, err := r.ReadFull(t.Context(), got); err != nil || !bytes.Equal(got, msg) {
					t.Fatalf("%v, equal: %t", err, bytes.Equal(got, msg))
				}
			}
			for range rounds {
				if err := settled(t, dones); err != nil {
					t.Error(err)
				}
			}
			drain(t, s)
			st := s.Stats()
			if st.Bytes != rounds*uint64(len(msg)) || st.Sends != rounds || !c.holds(st) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestForeignReport: somebody else lends memory through our socket. The kernel's
// numbers mean nothing then: nothing may come back for them.
func TestForeignReport(t *testing.T) {
	a, b := tcpPair(t)
	s, r := NewSenderOptions(a, eager()), NewReceiver(b)
	needZeroCopy(t, s)
	msg := make([]byte, 100_000)
	if err := s.Send(t.Context(), nil, msg); err != nil {
		t.Fatal(err)
	}
	var foreign error
	err := s.zc.raw.Control(func(fd uintptr) {
		foreign = unix.Sendto(int(fd), make([]byte, 50_000), unix.MSG_ZEROCOPY, nil)
	})
	if err := errors.Join(err, foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadFull(t.Context(), make([]byte, 150_000)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; {
		if st := s.Stats(); strings.HasPrefix(st.Mode, "plain: a report of the socket makes no sense") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not noticed: %+v", s.Stats())
		}
		if err := s.Send(t.Context(), nil, msg); err != nil { // keeps the watch awake
			t.Fatal(err)
		}
		if _, err := r.ReadFull(t.Context(), make([]byte, len(msg))); err != nil {
			t.Fatal(err)
		}
	}
}
