package vmstate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var testBlocks = []BlockSize{{"pc.ram", 0x4000}, {"vga.vram", 0x2000}}

func pageOf(b byte) []byte { return bytes.Repeat([]byte{b}, PageSize) }

// timerBlob is the device state of incoming.hex.
func timerBlob() []byte {
	s := Section{Type: markFull, Name: "timer", Version: 2}
	return append(encodeSection(slices.Clone(header), s, bytes.Repeat([]byte{0x11}, 24)), markEOF)
}

// memory collects the pages of a decoded stream; pages of zeros are not kept.
type memory map[string]string

func (m memory) page(block string, off uint64, page []byte) error {
	key := fmt.Sprintf("%s@%x", block, off)
	if page == nil || isZero(page) {
		delete(m, key)
	} else {
		m[key] = string(page)
	}
	return nil
}

func TestIncomingGolden(t *testing.T) {
	var b bytes.Buffer
	s := NewIncoming(&b, "pc-q35-7.2", testBlocks)
	steps := []error{
		s.Pages("pc.ram", 0x1000, append(pageOf(0xab), pageOf(0)...)),
		s.Pages("vga.vram", 0, pageOf(0xcd)),
		s.Flush(),
		s.Flush(), // nothing open: writes nothing
		s.Pages("vga.vram", 0x1000, pageOf(0)),
		s.Finish(timerBlob()),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	want := golden(t, "incoming.hex")
	same(t, b.Bytes(), want)

	m := memory{}
	got, err := ReadIncoming(bytes.NewReader(want), m.page)
	if err != nil {
		t.Fatal(err)
	}
	if got.Machine != "pc-q35-7.2" || !slices.Equal(got.Blocks, testBlocks) || got.Parts != 2 || got.Pages != 4 || got.Zero != 2 {
		t.Errorf("%+v", got)
	}
	same(t, got.Devices, timerBlob())
	wantMemory := memory{"pc.ram@1000": string(pageOf(0xab)), "vga.vram@0": string(pageOf(0xcd))}
	if !maps.Equal(m, wantMemory) {
		t.Errorf("pages %v", slices.Collect(maps.Keys(m)))
	}
	for n := range len(want) - 5 { // the empty description is optional
		if _, err := ReadIncoming(bytes.NewReader(want[:n]), nil); !errors.Is(err, ErrIncomplete) {
			t.Fatalf("%d bytes of %d: %v", n, len(want), err)
		}
	}
}

// QEMU may continue the last part's block in the next part, which Incoming never does.
func TestReadIncomingContinuesAcrossParts(t *testing.T) {
	named := []byte("\x10\x02\x08vga.vram\x00")
	stream := bytes.Replace(golden(t, "incoming.hex"), named, []byte("\x10\x22\x00"), 1)
	last := ""
	_, err := ReadIncoming(bytes.NewReader(stream), func(block string, off uint64, _ []byte) error {
		last = fmt.Sprintf("%s@%x", block, off)
		return nil
	})
	if err != nil || last != "vga.vram@1000" {
		t.Errorf("last page %s, %v", last, err)
	}
}

func TestIncomingMisuse(t *testing.T) {
	var b bytes.Buffer
	s := NewIncoming(&b, "pc", testBlocks)
	page := pageOf(1)
	tests := []struct {
		name  string
		block string
		off   uint64
		data  []byte
		want  error
	}{
		{"unknown block", "ram", 0, page, ErrUnknownBlock},
		{"offset", "pc.ram", 8, page, ErrUnaligned},
		{"length", "pc.ram", 0, page[:100], ErrUnaligned},
		{"end", "pc.ram", 0x3000, append(page, page...), ErrOutOfRange},
		{"beyond", "pc.ram", 0x4000, page, ErrOutOfRange},
		{"overflow", "pc.ram", ^uint64(PageSize - 1), page, ErrOutOfRange},
		{"nothing", "pc.ram", 0x4000, nil, nil},
	}
	for _, tt := range tests {
		if err := s.Pages(tt.block, tt.off, tt.data); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	blob := timerBlob()
	if err := s.Finish(blob[:len(blob)-1]); !errors.Is(err, ErrIncomplete) {
		t.Errorf("Finish with cut device state: %v", err)
	}
	if b.Len() > 0 {
		t.Errorf("misuse wrote %d bytes", b.Len())
	}
	if err := errors.Join(s.Pages("pc.ram", 0x3000, page), s.Finish(blob)); err != nil {
		t.Errorf("after misuse: %v", err)
	}
	for name, err := range map[string]error{
		"Pages": s.Pages("pc.ram", 0, page), "Flush": s.Flush(), "Finish": s.Finish(blob),
	} {
		if !errors.Is(err, ErrFinished) {
			t.Errorf("%s after Finish: %v", name, err)
		}
	}
}

func TestNewIncomingRefuses(t *testing.T) {
	long := strings.Repeat("n", MaxNameBytes)
	tests := []struct {
		name    string
		machine string
		blocks  []BlockSize
		want    error
	}{
		{"longest name", "pc", []BlockSize{{long, PageSize}}, nil},
		{"no blocks", "pc", nil, nil},
		{"name too long", "pc", []BlockSize{{long + "n", PageSize}}, ErrBounds},
		{"no name", "pc", []BlockSize{{"", PageSize}}, ErrBounds},
		{"twice", "pc", []BlockSize{{"a", PageSize}, {"a", PageSize}}, ErrBounds},
		{"no size", "pc", []BlockSize{{"a", 0}}, ErrBounds},
		{"size", "pc", []BlockSize{{"a", 100}}, ErrUnaligned},
		{"sum", "pc", []BlockSize{{"a", 1 << 62}, {"b", 1 << 62}}, ErrBounds},
		{"machine", strings.Repeat("m", 256), nil, ErrBounds},
		{"no machine", "", nil, ErrBounds},
		{"too many", "pc", make([]BlockSize, MaxBlocks+1), ErrBounds},
	}
	for _, tt := range tests {
		if err := NewIncoming(io.Discard, tt.machine, tt.blocks).Flush(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// failing takes some bytes and then none.
type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestIncomingKeepsFirstError(t *testing.T) {
	s := NewIncoming(&failing{10}, "pc", testBlocks)
	err := s.Flush()
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	if again := s.Pages("pc.ram", 0, pageOf(1)); again != err {
		t.Errorf("then %v", again)
	}
	if again := s.Finish(timerBlob()); again != err {
		t.Errorf("then %v", again)
	}
}

// socketPair is how a standby's QEMU is reached.
func socketPair(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestIncomingPeerGone(t *testing.T) {
	a, b := socketPair(t)
	b.Close()
	s := NewIncoming(a, "pc", []BlockSize{{"pc.ram", 1 << 20}})
	if err := s.Pages("pc.ram", 0, bytes.Repeat([]byte{1}, 1<<20)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("error %v", err)
	}
}

func TestIncomingAllocatesNothingPerPage(t *testing.T) {
	data := bytes.Repeat([]byte{1}, 1<<20)
	s := NewIncoming(io.Discard, "pc", []BlockSize{{"pc.ram", 1 << 20}})
	n := testing.AllocsPerRun(50, func() {
		if err := s.Pages("pc.ram", 0, data); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Errorf("%.0f allocations for %d pages", n, len(data)/PageSize)
	}
}

// FuzzIncomingRoundTrip decodes anything; what decodes is composed again and
// must decode to the same guest.
func FuzzIncomingRoundTrip(f *testing.F) {
	f.Add(golden(f, "incoming.hex"))
	f.Add(golden(f, "incoming.hex")[:300])
	var b bytes.Buffer
	s := NewIncoming(&b, "pc-i440fx-7.2", []BlockSize{{"pc.ram", 1 << 20}, {"pc.bios", PageSize}})
	if err := errors.Join(s.Pages("pc.bios", 0, pageOf(7)), s.Pages("pc.ram", 0, make([]byte, 1<<16)), s.Finish(timerBlob())); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		type record struct {
			block string
			off   uint64
			page  string
		}
		var records []record
		first, err := ReadIncoming(bytes.NewReader(stream), func(block string, off uint64, page []byte) error {
			if page == nil {
				page = make([]byte, PageSize)
			}
			records = append(records, record{block, off, string(page)})
			return nil
		})
		if err != nil {
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Offset < 0 || fe.Offset > int64(len(stream)) {
				t.Fatalf("error %v for %d bytes", err, len(stream))
			}
			return
		}
		var again bytes.Buffer
		s := NewIncoming(&again, first.Machine, first.Blocks)
		for _, r := range records {
			if err := s.Pages(r.block, r.off, []byte(r.page)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Finish(first.Devices); err != nil {
			t.Fatal(err)
		}
		at := 0
		second, err := ReadIncoming(&again, func(block string, off uint64, page []byte) error {
			if page == nil {
				page = make([]byte, PageSize)
			}
			if at >= len(records) || records[at] != (record{block, off, string(page)}) {
				return errors.New("another page than before")
			}
			at++
			return nil
		})
		if err != nil || at != len(records) {
			t.Fatalf("page %d of %d: %v", at, len(records), err)
		}
		if second.Machine != first.Machine || !slices.Equal(second.Blocks, first.Blocks) || !bytes.Equal(second.Devices, first.Devices) {
			t.Fatalf("%+v\nbecame\n%+v", first, second)
		}
	})
}

// BenchmarkPages compares composing into a socket, as to a standby, with the
// socket alone and with a plain copy of the same memory.
func BenchmarkPages(b *testing.B) {
	const size = 4 << 20 // a batch of capture
	data := bytes.Repeat([]byte{0, 1, 2, 3}, size/4)
	data[0] = 1
	for off := 0; off < size; off += PageSize {
		data[off] = 1
	}
	blocks := []BlockSize{{"pc.ram", size}}
	b.Run("floor=memcpy", func(b *testing.B) {
		to := make([]byte, size)
		b.SetBytes(size)
		for b.Loop() {
			copy(to, data)
		}
	})
	b.Run("floor=socket", func(b *testing.B) {
		w := drained(b)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := w.Write(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	run := func(name string, w func(b *testing.B) io.Writer, data []byte, chunk int) {
		b.Run(name, func(b *testing.B) {
			s := NewIncoming(w(b), "pc", blocks)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				for off := 0; off < size; off += chunk {
					if err := s.Pages("pc.ram", uint64(off), data[off:off+chunk]); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	socket := func(b *testing.B) io.Writer { return drained(b) }
	discard := func(*testing.B) io.Writer { return io.Discard }
	run("discard", discard, data, size)
	run("socket=4MiB", socket, data, size)
	run("socket=4KiB", socket, data, PageSize)
	run("zero", socket, make([]byte, size), size)
}

// drained is a socket whose other end is read as fast as possible.
func drained(b *testing.B) *net.UnixConn {
	near, far := socketPair(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 256<<10)
		for {
			if _, err := far.Read(buf); err != nil {
				return
			}
		}
	}()
	c, err := net.FileConn(near)
	if err != nil {
		b.Fatal(err)
	}
	near.Close()
	b.Cleanup(func() { c.Close(); <-done })
	return c.(*net.UnixConn)
}
