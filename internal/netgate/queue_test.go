package netgate

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestQueueModel: whatever the order of calls, what is held is what was added
// and neither taken nor done, and the bound is kept.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const bytesMax, framesMax, frameMax = 500, 10, 100
		q := newQueue(bytesMax, framesMax)
		var open, cut []Frame
		check := func() {
			bytes := 0
			for _, f := range append(append([]Frame{}, cut...), open...) {
				bytes += len(f.Data)
			}
			b := q.now()
			if b.frames != len(open)+len(cut) || b.bytes != bytes || q.openEmpty() != (len(open) == 0) {
				t.Fatalf("%+v; %d open, %d cut, %d bytes", b, len(open), len(cut), bytes)
			}
			if (b.frames > 0) == b.since.IsZero() {
				t.Fatalf("%d frames since %v", b.frames, b.since)
			}
			if b.frames > framesMax || b.bytes >= bytesMax+frameMax {
				t.Fatalf("over the bound: %+v", b)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"add": func(t *rapid.T) {
				if !q.hasRoom() {
					return
				}
				f := Frame{Data: make([]byte, rapid.IntRange(1, frameMax).Draw(t, "size"))}
				if q.add(f) != (len(open) == 0) {
					t.Fatal("first of the queue, or not")
				}
				open = append(open, f)
			},
			"cut": func(t *rapid.T) {
				if fs := q.cut(); len(fs) != len(open) {
					t.Fatalf("%d frames, want %d", len(fs), len(open))
				}
				cut, open = append(cut, open...), nil
			},
			"done": func(t *rapid.T) {
				n := rapid.IntRange(0, len(cut)).Draw(t, "frames")
				q.done(cut[:n])
				cut = cut[n:]
			},
			"done twice": func(*rapid.T) {
				q.done(cut)
				q.done(cut)
				cut = nil
			},
			"take":   func(*rapid.T) { q.take(); open = nil },
			"forget": func(*rapid.T) { q.forget(); cut = nil },
		})
	})
}

func TestQueueWaits(t *testing.T) {
	q := newQueue(100, 1)
	q.add(Frame{Data: make([]byte, 50)})
	waited := make(chan bool)
	go func() { waited <- q.waitRoom() }()
	q.done(q.cut())
	if !<-waited {
		t.Error("stopped, but nobody did")
	}
	q.add(Frame{Data: make([]byte, 50)})
	go func() { waited <- q.waitRoom() }()
	q.stop()
	if <-waited {
		t.Error("room in a stopped queue")
	}
}

func TestInputLog(t *testing.T) {
	l := newInputLog(100)
	if !l.take(60) || l.take(60) || l.take(1) {
		t.Error("the bound, or the end after it, is not kept")
	}
	waited := make(chan bool)
	go func() { waited <- l.wait() }()
	l.cut()
	if !<-waited || !l.take(100) || l.logged.Load() != 2 || l.skipped.Load() != 2 {
		t.Error("after a cut")
	}
	l.take(1)
	go func() { waited <- l.wait() }()
	l.stop()
	if <-waited {
		t.Error("a stopped log goes on")
	}
}

func TestPutTag(t *testing.T) {
	b := make([]byte, vlanTagBytes, 64)
	b = append(b, vnetNeedsCsum, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0) // little-endian, as on all we run on
	b = append(b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x00, 0xaa)
	putTag(b, 0x8100, 0x2007)
	want := []byte{vnetNeedsCsum, 1, 58, 0, 0, 0, 38, 0, 16, 0, 0, 0,
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x81, 0x00, 0x20, 0x07, 0x08, 0x00, 0xaa}
	if !bytes.Equal(b, want) {
		t.Errorf("% x\nwant % x", b, want)
	}
}

func TestSlab(t *testing.T) {
	var s slab
	copy(s.space(FrameBytesMax), "abc")
	first := s.take(3)
	copy(s.space(FrameBytesMax), "def")
	second := s.take(3)
	if string(first)+string(second) != "abcdef" || cap(first) != 3 {
		t.Errorf("%q %q", first, second)
	}
	s.take(len(s.free) - 10)
	if n := len(s.space(11)); n != slabBytes {
		t.Errorf("%d bytes of space", n)
	}
}

func TestModes(t *testing.T) {
	// They are in maps that outlive a daemon.
	for m, want := range map[Mode]string{0: "mode(0)", 1: "passing", 2: "holding", 3: "sealed"} {
		if m.String() != want {
			t.Errorf("%d is %v, want %s", uint64(m), m, want)
		}
	}
	if o := (Options{InputBytesMax: 5}).withDefaults(); o.InputBytesMax != 0 || o.QueueBytesMax != QueueBytesDefault || o.Log == nil {
		t.Errorf("%+v", o)
	}
}
