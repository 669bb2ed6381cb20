package main

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

func TestMain(m *testing.M) {
	lab.MaybeHost()
	os.Exit(m.Run())
}

// What the guest sends in each way of the test, and at a time.
const (
	testMiB   = 64
	testChunk = 256 << 10
)

// TestGuestSendsWithoutCopying has a guest send 64 MiB from memory that it
// writes to as soon as it comes back. All of it must arrive as it was, and its
// kernel must say that it copied next to none.
func TestGuestSendsWithoutCopying(t *testing.T) {
	s, err := newSender(t.Context(), "")
	var missing *lab.MissingError
	if errors.As(err, &missing) {
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	whole := func(c *net.TCPConn, n int64) error { return check(c, n) }

	a, err := s.send(t.Context(), testMiB, "zerocopy", testChunk, whole, "numbered")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("zero-copy: %+v", a)
	if why := a.NIC.lacks(); why != "" {
		t.Skip(why)
	}
	if a.Bytes != testMiB<<20 {
		t.Errorf("%d bytes were sent", a.Bytes)
	}
	if a.ZeroCopyBytes < uint64(a.Bytes)*9/10 {
		t.Errorf("only %d of %d bytes were lent to the kernel (%d times for want of buffers); %s", a.ZeroCopyBytes, a.Bytes, a.NoBuffers, a.Mode)
	}
	if a.Completions == 0 || float64(a.Completions-a.Copied) <= .9*float64(a.Completions) {
		t.Errorf("the guest's kernel copied what %d of %d completions were about", a.Copied, a.Completions)
	}

	// By itself the stream finds out that it pays here.
	a, err = s.send(t.Context(), testMiB, "auto", testChunk, whole, "numbered")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("auto: %+v", a)
	if a.ZeroCopyBytes < uint64(a.Bytes)/2 {
		t.Errorf("on its own it lent only %d of %d bytes; %s", a.ZeroCopyBytes, a.Bytes, a.Mode)
	}

	// And the same report, of a stream that lends nothing.
	a, err = s.send(t.Context(), testMiB/8, "plain", testChunk, whole, "numbered")
	if err != nil {
		t.Fatal(err)
	}
	if a.ZeroCopyBytes != 0 || a.Completions != 0 {
		t.Errorf("a plain stream lent memory: %+v", a)
	}
	if _, err := s.send(t.Context(), 1, "plain", testChunk, whole); err == nil {
		t.Error("memory without numbers passes for numbered")
	}
}

// TestLoopbackCopies shows that the figure of the test above can be another
// one: over loopback the kernel copies, and says so.
func TestLoopbackCopies(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	from, to, err := loopback(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := zcstream.NewSenderOptions(from, zcstream.Options{ZeroCopy: zcstream.ModeForce, MinZeroCopyBytes: 1})
	received := make(chan error, 1)
	const messages = 16
	go func() { received <- discard(to.(*net.TCPConn), messages*receiveBytes) }()
	back := make(chan error, messages)
	for range messages {
		if err := s.Send(ctx, func(err error) { back <- err }, make([]byte, receiveBytes)); err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		if err := <-back; err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(<-received, s.Close(), to.Close()); err != nil {
		t.Error(err)
	}
	a := s.Stats()
	t.Logf("%+v", a)
	if a.ZeroCopyBytes == 0 {
		t.Skipf("this kernel borrows nothing: %s", a.Mode)
	}
	if a.Completions == 0 || a.CopiedCompletions < a.Completions*9/10 {
		t.Errorf("only %d of %d completions say that the kernel copied", a.CopiedCompletions, a.Completions)
	}
}
