package virt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFlyReturnsWhenContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		undone := make(chan int, 1)
		_, err := fly(ctx, func() (int, error) { time.Sleep(time.Hour); return 7, nil }, func(v int) { undone <- v })
		if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error: %v", err)
		}
		if v := <-undone; v != 7 {
			t.Fatalf("undo got %d", v)
		}
	})
}

func TestFlyFailureAfterContextIsNotUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := fly(ctx, func() (int, error) { time.Sleep(time.Hour); return 7, errors.New("late") }, func(int) {
			t.Error("a failure was undone")
		})
		if !errors.Is(err, ErrOutcomeUnknown) {
			t.Fatalf("error: %v", err)
		}
		time.Sleep(2 * time.Hour)
	})
}

// subscriptionsOnly has subscriptions, but no libvirt.
func subscriptionsOnly() *Conn {
	c := &Conn{subs: map[*subscription]struct{}{}}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

func TestSlowSubscriberLosesOldestAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := subscriptionsOnly()
		events, stop := c.Subscribe()
		const extra = 10
		c.publish(Event{Kind: Started, Detail: "first"})
		synctest.Wait() // the pump holds the first one
		for i := range maxQueuedEvents + extra {
			c.publish(Event{Kind: Started, Detail: fmt.Sprint(i)})
		}
		if ev := <-events; ev.Detail != "first" {
			t.Fatalf("first: %+v", ev)
		}
		if ev := <-events; ev.Kind != Lagged || !strings.HasPrefix(ev.Detail, fmt.Sprint(extra, " ")) {
			t.Fatalf("second: %+v", ev)
		}
		for i := extra; i < maxQueuedEvents+extra; i++ {
			if ev := <-events; ev.Detail != fmt.Sprint(i) {
				t.Fatalf("event %d: %+v", i, ev)
			}
		}
		stop()
		stop()
		if _, open := <-events; open {
			t.Fatal("channel is open after the end")
		}
		c.publish(Event{Kind: Started})
	})
}

func TestSubscribeAfterClose(t *testing.T) {
	c := subscriptionsOnly()
	c.cancel(ErrClosed)
	events, stop := c.Subscribe()
	if _, open := <-events; open {
		t.Fatal("an event after Close")
	}
	stop()
}

func TestParseQMP(t *testing.T) {
	for _, c := range []struct{ name, answer, want, class string }{
		{"object", `{"return": {"a": 1}, "id": "libvirt-1"}`, `{"a": 1}`, ""},
		{"empty", `{"return": {}}`, `{}`, ""},
		{"refusal", `{"error": {"class": "GenericError", "desc": "no"}}`, "", "GenericError"},
		{"neither", `{"event": "STOP"}`, "", "?"},
		{"no JSON", `oops`, "", "?"},
		{"cut off", `{"return": {`, "", "?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseQMP("stop", c.answer)
			var refusal *QMPError
			switch {
			case c.class == "":
				if err != nil || string(got) != c.want {
					t.Errorf("%s, %v", got, err)
				}
			case err == nil:
				t.Error("no error")
			case c.class != "?" && (!errors.As(err, &refusal) || refusal.Class != c.class || refusal.Desc != "no"):
				t.Errorf("error: %v", err)
			}
		})
	}
}

func BenchmarkParseQMP(b *testing.B) {
	const answer = `{"return": {"status": "running", "singlestep": false, "running": true}, "id": "libvirt-4711"}`
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseQMP("query-status", answer); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFly(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fly(ctx, func() (int, error) { return 1, nil }, nil); err != nil {
			b.Fatal(err)
		}
	}
}
