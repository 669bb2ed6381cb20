package capture

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/virt-ft/virt-ft/internal/guestram"
)

// TestOnce: no page is there twice, and none is lost or new.
func TestOnce(t *testing.T) {
	type page struct {
		block uint16
		off   uint64
	}
	pages := func(rs []guestram.Range) (all []page) {
		for _, r := range rs {
			for off := r.Off; off < r.End(); off += guestram.PageSize {
				all = append(all, page{r.Block, off})
			}
		}
		return all
	}
	order := func(a, b page) int {
		if a.block != b.block {
			return int(a.block) - int(b.block)
		}
		return int(a.off) - int(b.off)
	}
	rapid.Check(t, func(t *rapid.T) {
		rs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) guestram.Range {
			return guestram.Range{Block: rapid.Uint16Range(0, 2).Draw(t, "block"), Pages: rapid.Uint32Range(1, 6).Draw(t, "pages"),
				Off: guestram.PageSize * rapid.Uint64Range(0, 20).Draw(t, "page")}
		}), 0, 12).Draw(t, "ranges")
		want := pages(rs)
		slices.SortFunc(want, order)
		want = slices.Compact(want)
		got := pages(once(slices.Clone(rs)))
		if !slices.Equal(got, want) {
			t.Fatalf("%v became %v", rs, got)
		}
	})
}

// TestOnceInOrder: what a tracker usually reports is left as it is.
func TestOnceInOrder(t *testing.T) {
	rs := []guestram.Range{{Block: 0, Pages: 2, Off: 0}, {Block: 0, Pages: 1, Off: 4 * guestram.PageSize}, {Block: 1, Pages: 1, Off: 0}}
	if got := once(rs); &got[0] != &rs[0] || len(got) != 3 {
		t.Errorf("%v", got)
	}
}
