package lab

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestClientJudgesAGuest lets a client work with a guest that keeps its word,
// and then with another that has taken its place.
func TestClientJudgesAGuest(t *testing.T) {
	l, boot := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := NewObserver(l, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	boot.NIC, boot.Cmdline = true, "ft.tick_ms=0"
	g, err := l.A.StartGuest(ctx, boot)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	c, err := l.StartClient(ctx, ClientOptions{ID: 1, Seed: 7, TCP: 4, UDP: 4, IPv6: true, Pace: 5 * time.Millisecond, Jitter: 5 * time.Millisecond, AnswerMax: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	acked := func(n uint64) Verdict {
		for c.Verdict().Acked < n && c.Verdict().Err() == nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		v, err := c.Check(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := acked(500)
	if v.Err() != nil || v.Acked < 500 {
		t.Fatalf("an honest guest: %+v, %v", v, ctx.Err())
	}
	checkQuiet(t, c)
	lat := c.Latencies(start, time.Now())
	t.Logf("%d answers, p50 %v, p99 %v", v.Acked, Quantile(lat, .5), Quantile(lat, .99))
	if s, err := out.Speeches(start); err != nil || len(s) != 1 || s[0].Host != l.A.Name || s[0].Answers < v.Acked {
		t.Errorf("%d answers; on the wire were %+v, %v", v.Acked, s, err)
	}
	if n := out.Count(); n > 0 {
		t.Errorf("%d ticks though they are off", n)
	}
	if _, err := l.Command(ctx, "tick 2"); err != nil {
		t.Fatal(err)
	}
	if tick, err := out.WaitTick(ctx, func(o Observation) bool { return o.Passes > 0 }); err != nil || tick.MemErrors != 0 {
		t.Errorf("%+v, %v", tick, err)
	}
	// The same domain again is another guest: it knows nothing.
	if _, err := l.A.Virsh(ctx, "destroy", g.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := l.A.StartGuest(ctx, boot); err != nil {
		t.Fatal(err)
	}
	struck := time.Now()
	v, err = c.Check(ctx)
	t.Logf("another guest, %v later: %+v, %v", time.Since(struck).Round(time.Millisecond), v, err)
	if err != nil || v.AckedLost < 500 || v.TCPReset < 4 || v.Contradictions == 0 {
		t.Errorf("another guest passes for the first: %+v, %v", v, err)
	}
	if e, ok := c.FirstAnswerAfter(struck); ok {
		t.Errorf("an answer from a guest that knows no session: %+v", e)
	}
}

// checkQuiet fails if a request is under way while the client is quiet.
func checkQuiet(t *testing.T, c *Client) {
	err := c.Quiet(func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for id, es := range c.Journal.sessions {
			if n := len(es); n > 0 && es[n-1].At.IsZero() {
				return fmt.Errorf("session %#x has a request under way", id)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
