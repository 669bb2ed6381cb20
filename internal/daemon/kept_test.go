package daemon

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

func packet(text string) []replica.Packet {
	return []replica.Packet{{Data: []byte(text)}}
}

func contents(ps []replica.Packet) string {
	var b bytes.Buffer
	for _, p := range ps {
		b.Write(p.Data)
	}
	return b.String()
}

func TestKeptOutputs(t *testing.T) {
	k := newKept()
	for e := ftengine.Epoch(1); e <= 6; e++ {
		if e != 4 { // whose guest said nothing
			k.stage(e, 100, packet(string('a'+rune(e)-1)))
		}
	}
	k.released(2)
	if got := contents(k.unreleased(1, 6)); got != "cef" {
		t.Errorf("after 2 was released %q is left, want %q", got, "cef")
	}
	k.drop(5) // 6 was never acknowledged
	if got := contents(k.unreleased(3, 6)); got != "ce" {
		t.Errorf("after 5 was the last acknowledged %q is left, want %q", got, "ce")
	}
	k.drop(0)
	for range 5 {
		k.applied(100)
	}
	if k.staged != 0 || k.epochs != 0 || len(k.outputs) != 0 {
		t.Errorf("%d bytes, %d epochs and outputs of %d are left of nothing", k.staged, k.epochs, len(k.outputs))
	}
}

func TestKeptInputs(t *testing.T) {
	k := newKept()
	for e, text := range []string{1: "a", 2: "b", 3: "c"} {
		if text != "" {
			k.log(ftengine.Epoch(e), packet(text))
		}
	}
	if got := contents(k.after(1)); got != "bc" {
		t.Errorf("after epoch 1 came %q, want %q", got, "bc")
	}
	k.committed(2)
	if got := contents(k.after(0)); got != "c" {
		t.Errorf("with 2 committed %q is kept, want %q", got, "c")
	}
	big := []replica.Packet{{Data: make([]byte, inputBytesMax-1)}}
	k.log(4, big)
	if k.logged > inputBytesMax || len(k.inputs) != 2 {
		t.Errorf("%d bytes in %d entries are logged, the bound is %d", k.logged, len(k.inputs), inputBytesMax)
	}
	k.log(5, packet("dd"))
	if got := contents(k.after(3)); k.logged > inputBytesMax || got != "dd" {
		t.Errorf("%d bytes are logged, the bound is %d; %d bytes of packets are left of the newest epochs", k.logged, inputBytesMax, len(got))
	}
	k.drop(0)
	if k.logged != 0 || len(k.inputs) != 0 {
		t.Errorf("%d bytes of inputs are left of nothing", k.logged)
	}
}

// A backup reads on when there is room, and one epoch may be larger than all
// room there is.
func TestKeptRoom(t *testing.T) {
	k := newKept()
	if err := k.waitRoom(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.stage(1, 2*stagedBytesMax, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.waitRoom(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("there is no room, and waiting for it says %v", err)
	}
	room := make(chan error)
	go func() { room <- k.waitRoom(t.Context()) }()
	k.applied(2 * stagedBytesMax)
	if err := <-room; err != nil {
		t.Error(err)
	}
}

// In the long run pauses take their share and no more; after a quiet time some
// come at once.
func TestPauseBudget(t *testing.T) {
	const share, pause = 0.2, 5 * time.Millisecond
	var b pauseBudget
	now := time.Now()
	began, paused, atOnce := now, time.Duration(0), 0
	for now.Sub(began) < 10*time.Second {
		now = now.Add(pause)
		paused += pause
		run := b.spend(now, pause.Nanoseconds(), share)
		if run == 0 && paused == time.Duration(atOnce+1)*pause {
			atOnce++
		}
		now = now.Add(run)
	}
	if atOnce < 5 || atOnce > 20 {
		t.Errorf("%d pauses of %v came at once", atOnce, pause)
	}
	if got := paused.Seconds() / now.Sub(began).Seconds(); got > share+0.01 || got < share-0.01 {
		t.Errorf("pauses took %.3f of the time, their share is %.3f", got, share)
	}
	if run := b.spend(now.Add(time.Hour), pause.Nanoseconds(), share); run != 0 {
		t.Errorf("after an hour without a pause the next has to wait for %v", run)
	}
	if run := b.spend(now.Add(time.Hour), time.Second.Nanoseconds(), share); run < 4*time.Second || run > 5*time.Second {
		t.Errorf("a second's pause is followed by %v of running", run)
	}
}
