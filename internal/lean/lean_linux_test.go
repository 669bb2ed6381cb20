package lean

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"unsafe"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func newFilter(t testing.TB, blockBytes ...uint64) *Filter {
	t.Helper()
	f, err := NewFilter(blockBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// content is one of a few pages; 0 is zero, and some differ in one bit.
func content(i int) []byte {
	p := make([]byte, pageSize)
	if i == 0 {
		return p
	}
	for j := range p {
		p[j] = byte(j * (i &^ 1))
	}
	p[(i*577)%pageSize] ^= byte(i&1) << (i % 8)
	p[pageSize-1] |= 0x40
	return p
}

// TestFilterAgainstCopies: the Filter says what keeping a copy of everything
// that travelled would say.
func TestFilterAgainstCopies(t *testing.T) {
	sizes := []uint64{8 * pageSize, 0, 4 * pageSize}
	rapid.Check(t, func(t *rapid.T) {
		f, err := NewFilter(sizes)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		backup := map[place][]byte{}
		for range rapid.IntRange(0, 80).Draw(t, "pages") {
			if rapid.IntRange(0, 40).Draw(t, "forget") == 0 {
				f.Forget()
				clear(backup)
			}
			at := place{rapid.SampledFrom([]uint16{0, 2}).Draw(t, "block"), 0}
			at.off = pageSize * rapid.Uint64Range(0, sizes[at.block]/pageSize-1).Draw(t, "page")
			page := content(rapid.IntRange(0, 5).Draw(t, "content"))
			want := Changed
			if had, ok := backup[at]; ok && bytes.Equal(had, page) {
				want = Same
			} else if guestram.IsZero(page) {
				want = Zero
			}
			backup[at] = page
			if got := f.Kind(at.block, at.off, page); got != want {
				t.Fatalf("page %+v is %v, it is %v for who keeps copies", at, got, want)
			}
		}
	})
}

// TestFilterEveryBit: no change of a single bit is overlooked.
func TestFilterEveryBit(t *testing.T) {
	f := newFilter(t, pageSize)
	page := make([]byte, pageSize)
	for i := range page {
		page[i] = byte(rand.Uint32())
	}
	f.Kind(0, 0, page)
	for bit := range pageSize * 8 {
		page[bit/8] ^= 1 << (bit % 8)
		if k := f.Kind(0, 0, page); k != Changed {
			t.Fatalf("a page is %v after bit %d changed", k, bit)
		}
	}
	if k := f.Kind(0, 0, page); k != Same {
		t.Fatalf("a page that did not change is %v", k)
	}
}

// TestFilterOutside: what the Filter was not told of is never elided.
func TestFilterOutside(t *testing.T) {
	f := newFilter(t, 2*pageSize, 0)
	closed := newFilter(t, pageSize)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	closed.Forget()
	for _, c := range []struct {
		name  string
		f     *Filter
		block uint16
		off   uint64
		bytes int
	}{
		{"behind a block", f, 0, 2 * pageSize, pageSize},
		{"at the end of the address space", f, 0, 1<<64 - pageSize, pageSize},
		{"in an empty block", f, 1, 0, pageSize},
		{"in a block that is not there", f, 2, 0, pageSize},
		{"between two pages", f, 0, 8, pageSize},
		{"half a page", f, 0, 0, pageSize / 2},
		{"closed", closed, 0, 0, pageSize},
	} {
		for range 2 {
			if k := c.f.Kind(c.block, c.off, content(1)[:c.bytes]); k != Changed {
				t.Errorf("%s: a page is %v", c.name, k)
			}
			if k := c.f.Kind(c.block, c.off, content(0)[:c.bytes]); k != Zero {
				t.Errorf("%s: a zero page is %v", c.name, k)
			}
		}
	}
}

func TestFilterBounds(t *testing.T) {
	for what, sizes := range map[string][]uint64{
		"half a page":     {pageSize / 2},
		"too large":       {maxRAMBytes + pageSize},
		"too large a sum": {maxRAMBytes / 2, maxRAMBytes/2 + pageSize},
		"overflow":        {1 << 63, 1 << 63},
		"too many blocks": make([]uint64, maxBlocks+1),
	} {
		if f, err := NewFilter(sizes); err == nil {
			f.Close()
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestFilterMemory: a Filter costs memory only for what it was asked about, and
// none when it forgot.
func TestFilterMemory(t *testing.T) {
	const ram = 64 << 30
	f := newFilter(t, ram)
	resident := func() (pages int) {
		state := make([]byte, len(f.table)/os.Getpagesize())
		if err := mincore(f.table, state); err != nil {
			t.Skipf("mincore does not work here: %v", err)
		}
		for _, s := range state {
			pages += int(s & 1)
		}
		return pages
	}
	if n := resident(); n != 0 {
		t.Errorf("a new table of %d MiB uses %d pages", len(f.table)>>20, n)
	}
	const asked = 16
	for i := range uint64(asked) {
		f.Kind(0, i*(ram/asked), content(1))
	}
	if n := resident(); n != asked {
		t.Errorf("after %d pages far from each other the table uses %d pages", asked, n)
	}
	f.Forget()
	if n := resident(); n != 0 {
		t.Errorf("after Forget the table uses %d pages", n)
	}
}

// TestFilterKeys: two Filters do not agree on hashes, so that none can be known.
func TestFilterKeys(t *testing.T) {
	a, b := newFilter(t, pageSize), newFilter(t, pageSize)
	if a.hash(content(1)) == b.hash(content(1)) {
		t.Error("two filters have one key")
	}
	if h := a.hash(content(1)); h.hi&hashBit == 0 {
		t.Errorf("hash %x may be taken for a page that is unknown", h)
	}
}

func mincore(mem, state []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&state[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
