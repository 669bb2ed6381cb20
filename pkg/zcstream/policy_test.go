package zcstream

import (
	"strings"
	"testing"
	"time"
)

func TestPolicyTellsAStory(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	p := policy{reprobeAfter: time.Minute}
	wants := func(want verdict, mode string) {
		t.Helper()
		if got := p.want(now); got != want {
			t.Fatalf("wants %d, not %d (%s)", got, want, &p)
		}
		if !strings.HasPrefix(p.String(), mode) {
			t.Fatalf("mode %q, want %q", &p, mode)
		}
	}
	wants(probe, "probing")
	p.probed(7)
	wants(plain, "probing") // until the answer is there
	p.answered(3, 6, false, now)
	wants(plain, "probing") // that was about something else
	p.answered(6, 8, true, now)
	wants(plain, "plain: the kernel copies")
	now = now.Add(time.Minute - 1)
	wants(plain, "plain: the kernel copies")
	now = now.Add(1)
	wants(probe, "probing")
	p.probed(1<<32 - 1)
	p.answered(1<<32-2, 2, false, now) // a range that wraps around
	wants(lend, "zero-copy")
	p.answered(3, 2+copiedWindow/2-1, true, now)
	wants(lend, "zero-copy")
	p.answered(100, 100+copiedWindow/2, false, now) // less than half were copied
	wants(lend, "zero-copy")
	p.answered(200, 200+copiedWindow-1, true, now)
	wants(plain, "plain: the kernel has begun")
	p.stop("it is over")
	now = now.Add(time.Hour)
	p.rest("later", now)
	wants(plain, "plain: it is over")
	now = now.Add(time.Hour)
	wants(plain, "plain: it is over")
}

func TestPolicyForced(t *testing.T) {
	p := policy{mode: ModeForce}
	for range 3 {
		if got := p.want(time.Now()); got != lend || p.String() != "zero-copy" {
			t.Fatalf("wants %d (%s)", got, &p)
		}
		p.answered(0, 1000, true, time.Now())
	}
	p.stop("refused")
	if got := p.want(time.Now()); got != plain {
		t.Error("what the socket refuses cannot be forced")
	}
}
