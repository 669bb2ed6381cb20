package daemon

import (
	"bytes"
	"context"
	"errors"
	"testing"

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
