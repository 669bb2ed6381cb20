package guestram

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const ramblock72 = "              Block Name    PSize              Offset               Used              Total\r\n" +
	"                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\r\n" +
	"   0000:00:01.0/vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000\r\n" +
	"    /rom@etc/acpi/tables    4 KiB  0x0000000011140000 0x0000000000020000 0x0000000000200000\r\n" +
	"                            4 KiB  0x0000000011340000 0x0000000000001000 0x0000000000001000\r\n"

const ramblock10 = "              Block Name    PSize              Offset               Used              Total                HVA  RO\n" +
	"               ram-node0    2 MiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f2a40000000  rw\n" +
	"                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000 0x00007f2a50000000  ro\n"

func TestParseRamblock(t *testing.T) {
	old, err := parseRamblock(ramblock72)
	if err != nil || old.hasHost || len(old.rows) != 4 {
		t.Fatalf("7.2: %+v, %v", old, err)
	}
	if r := old.rows[2]; r.name != "/rom@etc/acpi/tables" || r.used != 0x20000 || r.max != 0x200000 || r.pageSize != 4096 {
		t.Errorf("7.2: resizable block %+v", r)
	}
	if r := old.rows[3]; r.name != "" || r.offset != 0x11340000 {
		t.Errorf("7.2: block without a name %+v", r)
	}
	cur, err := parseRamblock(ramblock10)
	if err != nil || !cur.hasHost {
		t.Fatalf("10.0: %+v, %v", cur, err)
	}
	b := cur.blocks()
	if len(b) != 2 || b[0].Host != 0x7f2a40000000 || b[0].PageSize != 2<<20 || b[1].Name != "pc.bios" || !b[1].Migratable {
		t.Errorf("10.0: %+v", b)
	}
	if err := trackable(&b[0]); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "hugetlb") {
		t.Errorf("hugetlb block: %v", err)
	}
}

func TestCrossCheckRefuses(t *testing.T) {
	table, err := parseRamblock(ramblock72)
	if err != nil {
		t.Fatal(err)
	}
	walked := func() []walkedBlock {
		var out []walkedBlock
		for _, r := range table.rows {
			out = append(out, walkedBlock{Block{Name: r.name, Host: 0x7f0000000000, Used: r.used, Max: r.max, PageSize: 4096, Migratable: r.name != ""}, r.offset})
		}
		return out
	}
	if b, err := crossCheck(table, walked()); err != nil || len(b) != 3 {
		t.Fatalf("equal lists: %v, %v", b, err)
	}
	for what, spoil := range map[string]func([]walkedBlock) []walkedBlock{
		"a block less":   func(w []walkedBlock) []walkedBlock { return w[1:] },
		"name":           func(w []walkedBlock) []walkedBlock { w[0].Name = "x"; return w },
		"used":           func(w []walkedBlock) []walkedBlock { w[1].Used++; return w },
		"max":            func(w []walkedBlock) []walkedBlock { w[2].Max = 0; return w },
		"page size":      func(w []walkedBlock) []walkedBlock { w[0].PageSize = 0; return w },
		"block twice":    func(w []walkedBlock) []walkedBlock { w[1] = w[0]; return w },
		"not migratable": func(w []walkedBlock) []walkedBlock { w[0].Migratable = false; return w },
	} {
		if _, err := crossCheck(table, spoil(walked())); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzParseRamblock(f *testing.F) {
	f.Add(ramblock72)
	f.Add(ramblock10)
	f.Fuzz(func(t *testing.T, s string) {
		if table, err := parseRamblock(s); err == nil {
			table.blocks()
		} else if !errors.Is(err, ErrLayout) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeRAMBlock(f *testing.F) {
	f.Add(make([]byte, ramBlockBytes))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= ramBlockBytes {
			decodeRAMBlock((*[ramBlockBytes]byte)(p))
		}
	})
}

func TestBitmapAgainstBools(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 300
		var twin [size]bool
		b := newBitmap(size)
		for range rapid.IntRange(0, 20).Draw(t, "ops") {
			at := rapid.Uint64Range(0, size-1).Draw(t, "at")
			n := rapid.Uint64Range(0, size-at).Draw(t, "n")
			set := rapid.Bool().Draw(t, "set")
			for i := at; i < at+n; i++ {
				twin[i] = set
			}
			if set {
				b.set(at, n)
			} else {
				b.clear(at, n)
			}
		}
		first := rapid.Uint64Range(0, size).Draw(t, "first")
		end := rapid.Uint64Range(first, size).Draw(t, "end")
		at := first
		for s, n := b.next(at, end); n > 0; s, n = b.next(at, end) {
			for ; at < s+n; at++ {
				if twin[at] != (at >= s) {
					t.Fatalf("bit %d of run %d+%d", at, s, n)
				}
			}
		}
		for ; at < end; at++ {
			if twin[at] {
				t.Fatalf("bit %d missed", at)
			}
		}
	})
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 4095, 4096} {
		p := make([]byte, n)
		if !IsZero(p) {
			t.Errorf("%d zero bytes", n)
		}
		for i := range p {
			p[i] = 0x80
			if IsZero(p) {
				t.Errorf("%d bytes, byte %d set", n, i)
			}
			p[i] = 0
		}
	}
}

// The floor of looking at every byte of a page is copying it.
func BenchmarkIsZero(b *testing.B) {
	pages := make([]byte, 64<<20) // larger than the caches, as guest pages are
	dst := make([]byte, PageSize)
	b.Run("zero", func(b *testing.B) {
		b.SetBytes(PageSize)
		for i := range b.N {
			if !IsZero(pages[i*PageSize%len(pages):][:PageSize]) {
				b.Fatal()
			}
		}
	})
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(PageSize)
		for i := range b.N {
			copy(dst, pages[i*PageSize%len(pages):])
		}
	})
}
