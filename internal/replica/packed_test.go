package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// text fills n bytes with words, as memory of programs has them, or with noise.
func text(seed uint64, n int, noise bool) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		x := r.Uint64()
		if !noise {
			x &= 0x0000_00ff_0003_000f
		}
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b[:n]
}

func newPacker(tb testing.TB) *Packer {
	tb.Helper()
	p, err := NewPacker()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// genPages draws runs and their data, cut somehow, compressible or not.
func genPages(t *rapid.T) (runs []Run, data []byte, cut [][]byte) {
	for i := range rapid.IntRange(1, 12).Draw(t, "runs") {
		r := Run{Block: rapid.Uint16().Draw(t, "block"), Pages: rapid.Uint32Range(1, 9).Draw(t, "pages"), Off: rapid.Uint64Range(0, 1<<40).Draw(t, "page") * PageSize}
		if i > 0 && rapid.Bool().Draw(t, "zero") {
			r.Flags = RunZero
		} else {
			d := text(rapid.Uint64().Draw(t, "seed"), int(r.Pages)*PageSize, rapid.Bool().Draw(t, "noise"))
			at := rapid.IntRange(0, len(d)).Draw(t, "cut")
			data, cut = append(data, d...), append(cut, d[:at], d[at:])
		}
		runs = append(runs, r)
	}
	return runs, data, cut
}

// cutAt returns b in pieces of drawn sizes, some of them empty.
func cutAt(t *rapid.T, b []byte) (pieces [][]byte) {
	for len(b) > 0 {
		n := rapid.OneOf(rapid.IntRange(0, len(b)), rapid.Just(min(len(b), PageSize))).Draw(t, "piece")
		pieces, b = append(pieces, b[:n]), b[n:]
		if len(pieces) > 40 {
			return append(pieces, b)
		}
	}
	return pieces
}

// TestPackedPagesArrive: what a Packer makes smaller arrives as the same pages, in
// one piece or in many, after any messages before it; and it is never
// larger than what it promises.
func TestPackedPagesArrive(t *testing.T) {
	p := newPacker(t) // one for all, as the daemon has it: nothing of a message may be left in the next
	rapid.Check(t, func(t *rapid.T) {
		c, w := wireConn(DataChannel)
		for range rapid.IntRange(1, 3).Draw(t, "messages") {
			runs, data, cut := genPages(t)
			packed, ok := p.Pack(cut)
			if ok && (len(packed) == 0 || len(packed) > len(data)-len(data)/8) {
				t.Fatalf("%d bytes became %d", len(data), len(packed))
			}
			if !ok {
				continue
			}
			if err := c.SendPacked(context.Background(), testStamp, runs, len(data), packed); err != nil {
				t.Fatal(err)
			}
			clear(packed) // ours again
			if want := HeaderBytes + 4 + len(runs)*runBytes + codecBytes + len(packed); w.Len() != want {
				t.Fatalf("%d bytes on the wire, want %d", w.Len(), want)
			}
			got := make([]byte, len(data))
			var f Frame
			var err error
			if rapid.Bool().Draw(t, "in place") {
				f, err = c.RecvInto(context.Background(), func(f Frame, n int) ([][]byte, error) {
					if n != len(data) || !reflect.DeepEqual(f.Msg.(*Pages).Runs, runs) {
						t.Fatalf("a place of %d bytes for %+v", n, f.Msg)
					}
					return cutAt(t, got), nil
				})
			} else {
				f, err = c.RecvPages(context.Background(), func(n int) []byte { return got[:n] })
			}
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != TypePackedPages || f.Packed != len(packed) || !reflect.DeepEqual(f.Msg, &Pages{runs}) || !bytes.Equal(got, data) {
				t.Fatalf("%+v became %+v", runs, f)
			}
		}
	})
}

func TestPackOnlyWhatPays(t *testing.T) {
	p := newPacker(t)
	seventh := append(make([]byte, PageSize), text(1, 6*PageSize, true)...)
	tenth := append(make([]byte, PageSize), text(1, 9*PageSize, true)...)
	for name, c := range map[string]struct {
		data [][]byte
		ok   bool
	}{
		"words":      {[][]byte{text(1, MaxPageData, false)}, true},
		"noise":      {[][]byte{text(1, MaxPageData, true)}, false},
		"a seventh":  {[][]byte{seventh[:5], seventh[5:]}, true},
		"a tenth":    {[][]byte{tenth}, false},
		"nothing":    {nil, false},
		"empty":      {[][]byte{{}, nil}, false},
		"empty, all": {[][]byte{{}, make([]byte, PageSize)}, true},
		"too much":   {[][]byte{make([]byte, MaxPageData), {0}}, false},
	} {
		if packed, ok := p.Pack(c.data); ok != c.ok || ok == (packed == nil) {
			t.Errorf("%s: %d bytes, %v", name, len(packed), ok)
		}
	}
	full := text(2, MaxPageData, false)
	data := [][]byte{full[:100], full[100:]}
	if n := testing.AllocsPerRun(5, func() { p.Pack(data) }); n > 0 {
		t.Errorf("a used Packer allocates %v times for a message", n)
	}
}

// frameOf packs raw as another program might.
func frameOf(tb testing.TB, raw []byte, o ...zstd.EOption) []byte {
	tb.Helper()
	e, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
	if err != nil {
		tb.Fatal(err)
	}
	return e.EncodeAll(raw, nil)
}

// TestLyingPackedPages: whatever packed data says of itself, it fills what the runs
// announce, or the connection ends with a FormatError, with no memory spent.
func TestLyingPackedPages(t *testing.T) {
	page := text(3, PageSize, false)
	good := frameOf(t, page)
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0}, "skip"...)
	noSize := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x10}, samplePacked()[7:]...) // no content size, 4 KiB of window
	// Announces what is asked for, and holds a block of 128 KiB.
	bomb := append(samplePacked()[:7:7], 0x03, 0x00, 0x10, 0xa5)
	short := append(samplePacked()[:7:7], 0x03, 0x40, 0x00, 0xa5)
	dict := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x61, 7}, samplePacked()[5:]...)
	window := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x40, 0xf8}, samplePacked()[5:]...) // of 2 TiB
	for name, c := range map[string]struct {
		packed []byte
		pages  uint32
		says   string
	}{
		"larger inside":        {frameOf(t, make([]byte, MaxPageData)), 1, "announce 4096"},
		"much larger inside":   {frameOf(t, make([]byte, 1<<26)), 1, "announce 4096"},
		"smaller inside":       {good, 2, "announce 8192"},
		"no zstd":              {page[:100], 1, "does not begin"},
		"skipped":              {append(bytes.Clone(skip), good...), 1, "to be skipped"},
		"no size":              {noSize, 1, "announce 4096"},
		"a block that is more": {bomb, 1, "cannot be unpacked"},
		"a block that is less": {short, 1, "cannot be unpacked"},
		"dictionary":           {dict, 1, "dictionary"},
		"window":               {window, 1, "cannot be unpacked"},
		"cut off":              {good[:len(good)-3], 1, "cannot be unpacked"},
		"a second frame":       {append(bytes.Clone(good), good...), 1, "cannot be unpacked"},
		"larger than raw":      {append(bytes.Clone(good), bytes.Repeat(skip, 400)...), 1, "announce 4096"},
		"nothing":              {nil, 1, "0 bytes"},
	} {
		c0, w := wireConn(DataChannel)
		head, err := AppendMessage(nil, testHeader(), &Ack{})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := encodePayload(nil, &PackedPages{Pages{[]Run{{Pages: c.pages}}}, codecZstd})
		if err != nil {
			t.Fatal(err)
		}
		payload = append(payload, c.packed...)
		head[5] = byte(TypePackedPages)
		binary.BigEndian.PutUint32(head[8:], uint32(len(payload)))
		w.Buffer.Write(fixPayloadCRC(append(head, payload...)))
		arena := make([]byte, 2*PageSize)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = c0.RecvInto(t.Context(), func(_ Frame, n int) ([][]byte, error) { return [][]byte{arena[:n/2], arena[n/2 : n]}, nil })
		runtime.ReadMemStats(&after)
		var fe *FormatError
		if !errors.As(err, &fe) || fe.Type != TypePackedPages || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestUnpackingKeepsToItsPlace: with memory of somebody else's right behind, which
// the decoder could use as room for its own.
func TestUnpackingKeepsToItsPlace(t *testing.T) {
	for _, noise := range []bool{false, true} {
		raw := text(4, 50*PageSize, noise)
		u, err := newUnpacker()
		if err != nil {
			t.Fatal(err)
		}
		arena := bytes.Repeat([]byte{0x77}, 60*PageSize)
		if err := u.into(arena[:len(raw)], frameOf(t, raw)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(arena[:len(raw)], raw) || len(bytes.Trim(arena[len(raw):], "\x77")) > 0 {
			t.Error("unpacked pages differ, or there is something behind them")
		}
	}
}

func TestSendPackedRefusals(t *testing.T) {
	a, w := wireConn(DataChannel)
	control, _ := wireConn(ControlChannel)
	for name, c := range map[string]struct {
		conn   *Conn
		runs   []Run
		raw    int
		packed []byte
		field  string
	}{
		"control":     {control, []Run{{Pages: 1}}, PageSize, []byte{1}, "type"},
		"zero runs":   {a, []Run{{Pages: 1, Flags: RunZero}}, 0, []byte{1}, "runs"},
		"no runs":     {a, nil, 0, nil, "runs"},
		"other size":  {a, []Run{{Pages: 2}}, PageSize, []byte{1}, "packed data"},
		"negative":    {a, []Run{{Pages: 1}}, -1, []byte{1}, "packed data"},
		"nothing":     {a, []Run{{Pages: 1}}, PageSize, nil, "packed data"},
		"grew":        {a, []Run{{Pages: 1}}, PageSize, make([]byte, PageSize+1), "packed data"},
		"unaligned":   {a, []Run{{Pages: 1, Off: 5}}, PageSize, []byte{1}, "run offset"},
		"too much":    {a, []Run{{Pages: MaxPageData/PageSize + 1}}, MaxPageData + PageSize, []byte{1}, "runs"},
		"many runs":   {a, make([]Run, MaxRuns+1), PageSize, []byte{1}, "runs"},
		"other flags": {a, []Run{{Pages: 1, Flags: 4}}, PageSize, []byte{1}, "run flags"},
	} {
		err := c.conn.SendPacked(t.Context(), testStamp, c.runs, c.raw, c.packed)
		var fe *FormatError
		if !errors.As(err, &fe) || fe.Type != TypePackedPages || fe.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.Len() != 0 {
		t.Errorf("%d bytes were sent", w.Len())
	}
	if err := a.Send(t.Context(), testStamp, &PackedPages{}); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "SendPacked ") {
		t.Errorf("packed pages without data: %v", err)
	}
}

// TestPackedMessagesKeepTheirMemory: while one is on its way, the memory that it is
// in is not given to the next.
func TestPackedMessagesKeepTheirMemory(t *testing.T) {
	x, y := net.Pipe()
	c := newConn(x, x, DataChannel, testProtection)
	defer c.Close()
	const pages = 100 // more than a Sender copies
	packed, other := frameOf(t, append(make([]byte, PageSize), text(6, (pages-1)*PageSize, true)...)), make([]byte, 90*PageSize)
	runs := []Run{{Pages: pages}}
	sent := make(chan error, 1)
	go func() { sent <- c.SendPacked(context.Background(), testStamp, runs, pages*PageSize, packed) }()
	got := make([]byte, HeaderBytes+4+runBytes+codecBytes+len(packed))
	if _, err := io.ReadFull(y, got[:1]); err != nil { // now it is on its way
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := c.SendPacked(ended, testStamp, runs, pages*PageSize, other); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := io.ReadFull(y, got[1:]); err != nil || !bytes.HasSuffix(got, packed) {
		t.Errorf("the message on its way was changed: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestCorruptedPackedPages: no byte of a packed message may change unnoticed, and
// nothing is asked of the receiver for one that did.
func TestCorruptedPackedPages(t *testing.T) {
	c, w := wireConn(DataChannel)
	runs, _ := samplePages()
	if err := c.SendPacked(t.Context(), testStamp, runs, PageSize, samplePacked()); err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(w.Bytes())
	for off := range good {
		c, w := wireConn(DataChannel)
		bad := bytes.Clone(good)
		bad[off] ^= 4
		w.Buffer.Write(bad)
		_, err := c.RecvPages(t.Context(), func(n int) []byte { t.Errorf("flipped bit at %d: asked for memory", off); return nil })
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrPeerClosed) {
			t.Fatalf("flipped bit at %d: %v", off, err)
		}
	}
}

// FuzzUnpack: no packed data does anything but fill its place or be refused.
func FuzzUnpack(f *testing.F) {
	for _, noise := range []bool{false, true} { // few bytes: what is large is slow to fuzz
		page := make([]byte, PageSize)
		copy(page[1000:], text(5, 400, noise))
		f.Add(frameOf(f, page), 1)
		f.Add(frameOf(f, bytes.Repeat(page, 40)), 40)
	}
	f.Add(samplePacked(), 1)
	f.Fuzz(func(t *testing.T, packed []byte, pages int) {
		if pages < 1 || pages > 64 {
			return
		}
		u, err := newUnpacker()
		if err != nil {
			t.Fatal(err)
		}
		arena := bytes.Repeat([]byte{0x77}, (pages+1)*PageSize)
		if err = u.check(packed, pages*PageSize); err == nil {
			err = u.into(arena[:pages*PageSize], packed)
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("untyped error %v", err)
		}
		if len(bytes.Trim(arena[pages*PageSize:], "\x77")) > 0 {
			t.Fatal("wrote behind its place")
		}
	})
}
