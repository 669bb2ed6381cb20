package lean

import (
	"errors"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// pipe is a link behind the kernel's buffer, and a packer, in virtual time. A
// send blocks until the rest of it fits into the buffer.
type pipe struct {
	linkBps, packBps float64
	ratio            float64 // of packed data
	bufferBytes      float64

	now, queued float64 // seconds, bytes
	rawBytes    float64
}

func (p *pipe) pass(seconds float64) {
	p.now += seconds
	p.queued = max(0, p.queued-seconds*p.linkBps)
}

func (p *pipe) send(raw int, packed bool) Sample {
	s := Sample{RawBytes: raw, SentBytes: raw, Packed: packed}
	if packed {
		took := float64(raw) / p.packBps
		p.pass(took)
		s.PackTime = seconds(took)
		s.SentBytes = int(float64(raw) * p.ratio)
	}
	const copyBps = 4e9
	took := float64(s.SentBytes) / copyBps
	p.pass(took)
	p.queued += float64(s.SentBytes)
	if over := (p.queued - p.bufferBytes) / p.linkBps; over > 0 {
		p.pass(over)
		took += over
	}
	s.SendTime = seconds(took)
	p.rawBytes += float64(raw)
	return s
}

func seconds(s float64) time.Duration { return time.Duration(s * 1e9) }

// alone is what the pipe carries if every message is sent one way, in raw bytes a
// second, once its buffer is as that way keeps it.
func (p pipe) alone(packed bool, message int) float64 {
	for p.rawBytes = 0; p.rawBytes < 32<<20; {
		p.send(message, packed)
	}
	start, raw := p.now, p.rawBytes
	for p.rawBytes-raw < 32<<20 {
		p.send(message, packed)
	}
	return (p.rawBytes - raw) / (p.now - start)
}

// better is whether packing carries more, and what the better way carries.
func (p pipe) better(message int) (packed bool, bps float64) {
	plain, pack := p.alone(false, message), p.alone(true, message)
	return pack*packBegin > plain, max(plain, pack)
}

// outcome is what a Packing made of a pipe.
type outcome struct {
	part    float64 // of the bytes that the better way would have carried
	packed  float64 // part of the bytes that was packed
	changes int     // of the way
}

// run sends messages for a time, at most so many bytes.
func (p *pipe) run(k *Packing, forSeconds, bytesMax float64, message int) (o outcome) {
	_, bps := p.better(message)
	start, raw, was := p.now, p.rawBytes, k.packed
	for p.now-start < forSeconds && p.rawBytes-raw < bytesMax {
		pack := k.Pack()
		k.Observe(p.send(message, pack))
		if pack {
			o.packed += float64(message)
		}
		if k.packed != was {
			was = k.packed
			o.changes++
		}
	}
	o.packed /= p.rawBytes - raw
	o.part = (p.rawBytes - raw) / (bps * (p.now - start))
	return o
}

const (
	mbit = 1e6 / 8
	gbit = 1e9 / 8
)

// TestPackingFindsTheBetterWay: on links and data of all kinds the better way is
// found, and trials cost little.
func TestPackingFindsTheBetterWay(t *testing.T) {
	for _, c := range []struct {
		name    string
		p       pipe
		packed  bool
		message int
	}{
		{"100 Mbit, compressible", pipe{linkBps: 100 * mbit, packBps: 600e6, ratio: 0.3}, true, 4 << 20},
		{"100 Mbit, incompressible", pipe{linkBps: 100 * mbit, packBps: 1e9, ratio: 1}, false, 4 << 20},
		{"1 Gbit, compressible", pipe{linkBps: gbit, packBps: 600e6, ratio: 0.3}, true, 4 << 20},
		{"1 Gbit, incompressible", pipe{linkBps: gbit, packBps: 1e9, ratio: 1}, false, 4 << 20},
		{"1 Gbit, slow CPU", pipe{linkBps: gbit, packBps: 80e6, ratio: 0.3}, false, 4 << 20},
		{"10 Gbit, compressible", pipe{linkBps: 10 * gbit, packBps: 600e6, ratio: 0.3}, false, 4 << 20},
		{"10 Gbit, compressible, fast CPU", pipe{linkBps: 10 * gbit, packBps: 2.5e9, ratio: 0.3}, true, 4 << 20},
		{"40 Gbit, compressible", pipe{linkBps: 40 * gbit, packBps: 600e6, ratio: 0.3}, false, 4 << 20},
		{"40 Gbit, incompressible", pipe{linkBps: 40 * gbit, packBps: 1e9, ratio: 1}, false, 4 << 20},
		{"1 Gbit, small messages", pipe{linkBps: gbit, packBps: 600e6, ratio: 0.3}, true, 64 << 10},
		{"10 Gbit, small messages", pipe{linkBps: 10 * gbit, packBps: 600e6, ratio: 0.3}, false, 64 << 10},
		{"1 Gbit, whole epochs", pipe{linkBps: gbit, packBps: 600e6, ratio: 0.3}, true, 32 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, k := c.p, NewPacking(Auto)
			p.bufferBytes = 4 << 20
			if packed, _ := p.better(c.message); packed != c.packed {
				t.Fatalf("the better way is packed: %v", packed)
			}
			p.run(k, 20, 20e9, c.message)
			o := p.run(k, 60, 50e9, c.message)
			t.Logf("%.1f%% of the better way's bytes, %.1f%% packed", 100*o.part, 100*o.packed)
			if o.part < 0.95 || o.changes > 0 || k.packed != c.packed {
				t.Errorf("%+v, packed at the end: %v", o, k.packed)
			}
		})
	}
}

// TestPackingFollows: a link or data that change on the way are noticed.
func TestPackingFollows(t *testing.T) {
	p, k := pipe{linkBps: 10 * gbit, packBps: 600e6, ratio: 0.3, bufferBytes: 4 << 20}, NewPacking(Auto)
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"from the beginning", func() {}},
		{"the link drops to a tenth", func() { p.linkBps = gbit }},
		{"and is back", func() { p.linkBps = 10 * gbit }},
		{"it drops to a hundredth", func() { p.linkBps = 100 * mbit }},
		{"data that does not compress", func() { p.ratio, p.packBps = 1, 1e9 }},
		{"data that does", func() { p.ratio, p.packBps = 0.2, 700e6 }},
		{"the CPU is busy", func() { p.packBps = 20e6; p.linkBps = gbit }},
		{"the CPU is free", func() { p.packBps = 700e6 }},
	} {
		c.change()
		settling := p.run(k, 60, 1e12, 4<<20)
		o := p.run(k, 60, 1e12, 4<<20)
		packed, _ := p.better(4 << 20)
		t.Logf("%s: packed %v after %d changes; then %.1f%% of the better way's bytes", c.name, k.packed, settling.changes, 100*o.part)
		if k.packed != packed || settling.changes > 3 || o.changes > 0 || o.part < 0.95 {
			t.Errorf("%s: packed is %v, better is %v; at first %+v, then %+v", c.name, k.packed, packed, settling, o)
		}
	}
}

// TestPackingNeverMuchWorse: whatever link, CPU and data, the bytes of the better
// way are nearly reached, also where the two are close.
func TestPackingNeverMuchWorse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		decades := func(name string, from, to float64) float64 {
			return from * math.Pow(to/from, rapid.Float64Range(0, 1).Draw(t, name))
		}
		p := pipe{linkBps: decades("link", 50*mbit, 40*gbit), packBps: decades("packer", 30e6, 3e9),
			ratio: rapid.Float64Range(0.02, 1).Draw(t, "ratio"), bufferBytes: decades("buffer", 64<<10, 8<<20)}
		message := int(decades("message", 64<<10, 4<<20))
		k := NewPacking(Auto)
		const bytesMax = 1 << 30
		p.run(k, 1e6, bytesMax, message)
		if o := p.run(k, 1e6, bytesMax, message); o.part < packBegin*0.93 || o.changes > 1 {
			t.Fatalf("%+v: %+v, messages of %d", o, p, message)
		}
	})
}

func TestPackingModes(t *testing.T) {
	for _, c := range []struct {
		mode Mode
		pack bool
	}{{On, true}, {Off, false}, {Auto, false}} {
		k := NewPacking(c.mode)
		if k.Pack() != c.pack {
			t.Errorf("%v packs at first: %v", c.mode, !c.pack)
		}
		if m, err := ParseMode(c.mode.String()); m != c.mode || err != nil {
			t.Errorf("%v is read as %v, %v", c.mode, m, err)
		}
	}
	if _, err := ParseMode("fast"); !errors.Is(err, ErrUnknownMode) {
		t.Errorf("a mode that is not one: %v", err)
	}
	p, k := pipe{linkBps: 40 * gbit, packBps: 100e6, ratio: 0.5, bufferBytes: 1 << 20}, NewPacking(On)
	if o := p.run(k, 5, 1e9, 1<<20); o.packed != 1 {
		t.Errorf("%.3f is packed in mode on", o.packed)
	}
	if r := k.Ratio(); math.Abs(r-0.5) > 0.01 {
		t.Errorf("ratio %.3f", r)
	}
	k.SetMode(Off)
	if o := p.run(k, 5, 1e9, 1<<20); o.packed != 0 {
		t.Errorf("%.3f is packed in mode off", o.packed)
	}
}

// TestPackingIgnores: samples that say nothing, or nonsense, change nothing.
func TestPackingIgnores(t *testing.T) {
	k := NewPacking(Auto)
	was := *k
	for _, s := range []Sample{{}, {RawBytes: -1, SentBytes: 1}, {RawBytes: 4096, SentBytes: -1}, {RawBytes: 4096, SendTime: -1}, {RawBytes: 4096, Packed: true, PackTime: -1}} {
		k.Observe(s)
	}
	if *k != was {
		t.Errorf("%+v became %+v", was, *k)
	}
	for range 1000 {
		k.Observe(Sample{RawBytes: 4096, SentBytes: 4096}) // clocks are coarse
	}
	if n := k.ways[0].nsPerByte; n != 0 {
		t.Errorf("sending that takes no time costs %v ns", n)
	}
}
