package replica

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

const (
	testPeriod = 100 * time.Millisecond
	testLimit  = 500 * time.Millisecond
)

// twoMonitors joins two Monitors by an in-memory control connection with
// receivers running; kill stops b from reading and answering.
func twoMonitors(t *testing.T) (a, b *Monitor, run func(*Monitor) chan error, freezeB func()) {
	t.Helper()
	x, y := net.Pipe()
	ca, cb := newConn(x, x, ControlChannel, testProtection), newConn(y, y, ControlChannel, testProtection)
	t.Cleanup(func() { ca.Close(); cb.Close() })
	o := MonitorOptions{Period: testPeriod, Limit: testLimit, Stamp: func() Stamp { return testStamp }}
	var err error
	if a, err = NewMonitor(ca, o); err != nil {
		t.Fatal(err)
	}
	if b, err = NewMonitor(cb, o); err != nil {
		t.Fatal(err)
	}
	bctx, freeze := context.WithCancel(t.Context())
	t.Cleanup(freeze)
	receive := func(ctx context.Context, c *Conn, m *Monitor) {
		for {
			f, err := c.Recv(ctx)
			if err != nil {
				return
			}
			if handled, err := m.Observe(f); err != nil || handled == (f.Type == TypeAck) || f.Stamp != testStamp {
				return
			}
		}
	}
	go receive(t.Context(), ca, a)
	go receive(bctx, cb, b)
	run = func(m *Monitor) chan error {
		ended := make(chan error, 1)
		ctx := t.Context()
		if m == b {
			ctx = bctx
		}
		go func() { ended <- m.Run(ctx) }()
		return ended
	}
	return a, b, run, freeze
}

func TestMonitorsKeepEachOtherAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, run, freezeB := twoMonitors(t)
		if a.Holds() {
			t.Error("a lease before any answer")
		}
		endA, endB := run(a), run(b)
		for range 100 {
			time.Sleep(testPeriod)
			synctest.Wait()
			if !a.Holds() || !b.Holds() {
				t.Fatal("lease lost on a healthy connection")
			}
			if a.LeaseUntil().After(b.PeerLeaseEnds()) || b.LeaseUntil().After(a.PeerLeaseEnds()) {
				t.Fatal("a lease outlives what the peer believes")
			}
		}
		frozen := time.Now()
		freezeB()
		err := <-endA
		if took := time.Since(frozen); !errors.Is(err, ErrPeerSilent) || took < testLimit-testPeriod || took > testLimit {
			t.Errorf("%v after %v", err, took)
		}
		if a.Holds() {
			t.Error("the lease outlived the silence")
		}
		if err := <-endB; !errors.Is(err, context.Canceled) {
			t.Errorf("b: %v", err)
		}
	})
}

// TestExchanged: two monitors with clocks on the wall that differ learn from each
// heartbeat bounds for the difference, and it lies within.
func TestExchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead, there, back = 5_000_000_000, 30 * time.Millisecond, 10 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var a, b *Monitor
		told := 0
		deliver := func(to **Monitor, after time.Duration) func(context.Context, Stamp, Message) error {
			return func(_ context.Context, _ Stamp, m Message) error {
				go func() {
					time.Sleep(after)
					if _, err := (*to).Observe(Frame{Msg: m}); err != nil {
						t.Error(err)
					}
				}()
				return nil
			}
		}
		a, _ = newMonitor(deliver(&b, there), MonitorOptions{Period: testPeriod, Limit: testLimit, Exchanged: func(sent, came, answered, home int64) {
			told++
			if lo, hi := answered-home, came-sent; lo > ahead || hi < ahead || hi-lo != int64(there+back) {
				t.Errorf("the difference is said to be from %d to %d, it is %d", lo, hi, int64(ahead))
			}
		}})
		b, _ = newMonitor(deliver(&a, back), MonitorOptions{Period: testPeriod, Limit: testLimit, Wall: func() int64 { return time.Now().UnixNano() + ahead }})
		done := make(chan error, 2)
		go func() { done <- a.Run(ctx) }()
		go func() { done <- b.Run(ctx) }()
		time.Sleep(10*testPeriod + testPeriod/2)
		cancel()
		<-done
		<-done
		synctest.Wait()
		if told < 9 {
			t.Errorf("%d exchanges in 10 periods", told)
		}
	})
}

func TestBlockedSendIsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		m, err := newMonitor(func(ctx context.Context, _ Stamp, _ Message) error { <-ctx.Done(); return ctx.Err() },
			MonitorOptions{Period: testPeriod, Limit: testLimit})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Run(t.Context()); !errors.Is(err, ErrPeerSilent) || time.Since(start) != testLimit {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestMonitorStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		m, _ := newMonitor(func(context.Context, Stamp, Message) error { return broken }, MonitorOptions{Period: testPeriod, Limit: testLimit})
		if err := m.Run(t.Context()); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
		m, _ = newMonitor(func(context.Context, Stamp, Message) error { return nil }, MonitorOptions{Period: testPeriod, Limit: testLimit})
		ctx, cancel := context.WithTimeout(t.Context(), testPeriod/2)
		defer cancel()
		if err := m.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	if _, err := newMonitor(nil, MonitorOptions{Period: testLimit, Limit: testLimit}); err == nil {
		t.Error("a limit of one period was accepted")
	}
}

func TestAnswersAreNotBelieved(t *testing.T) {
	now := time.Unix(100, 0)
	p := NewPulse(now, testLimit)
	h := p.Beat(now.Add(time.Millisecond))
	for _, bad := range []HeartbeatAck{{Seq: 2, EchoedNs: h.SentNs}, {Seq: 1, EchoedNs: h.SentNs + 1}} {
		if err := p.Answer(now, &bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%+v: %v", bad, err)
		}
		if !p.LeaseUntil().IsZero() {
			t.Fatal("a lease from a false answer")
		}
	}
	for range 2 * pulseWindow { // the answer to the first comes far too late
		p.Beat(now)
	}
	if err := p.Answer(now, &HeartbeatAck{Seq: 1, EchoedNs: h.SentNs}); err != nil || !p.LeaseUntil().IsZero() {
		t.Errorf("late answer: %v, lease until %v", err, p.LeaseUntil())
	}
}

// TestLeasesNeverOverlap is the property behind failover: whatever is delayed or lost, the
// primary's lease is over when the backup believes so. The two clocks have
// different origins and the same rate.
func TestLeasesNeverOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		skew := time.Duration(rapid.Int64Range(-1e15, 1e15).Draw(t, "skew"))
		at := time.Unix(1e6, 0)
		a, b := NewPulse(at, testLimit), NewPulse(at.Add(skew), testLimit)
		var beats []*Heartbeat
		var acks []*HeartbeatAck
		pop := func(n int, name string) int { return rapid.IntRange(0, n-1).Draw(t, name) }
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.Int64Range(0, int64(testLimit)).Draw(t, "passes")))
			switch op := rapid.IntRange(0, 2).Draw(t, "op"); {
			case op == 0:
				beats = append(beats, a.Beat(at))
			case op == 1 && len(beats) > 0: // one arrives, those before it are lost
				i := pop(len(beats), "beat")
				acks = append(acks, b.Reply(at.Add(skew), beats[i]))
				beats = beats[i+1:]
			case op == 2 && len(acks) > 0:
				i := pop(len(acks), "ack")
				if err := a.Answer(at, acks[i]); err != nil {
					t.Fatal(err)
				}
				acks = acks[i+1:]
			}
			if a.LeaseUntil().Add(skew).After(b.PeerLeaseEnds()) {
				t.Fatalf("primary until %v, backup believes %v", a.LeaseUntil().Add(skew), b.PeerLeaseEnds())
			}
		}
	})
}

func TestBoottimeAdvances(t *testing.T) {
	a := Boottime()
	if b := Boottime(); b.Before(a) || a.Unix() <= 0 {
		t.Errorf("%v then %v", a, b)
	}
}
