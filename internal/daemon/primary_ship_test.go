package daemon

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/lean"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// However much was dirtied, it goes in messages that the protocol allows, and
// nothing is left out.
func TestShipperFits(t *testing.T) {
	const page = replica.PageSize
	mem := bytes.Repeat([]byte{1}, 9<<20)
	clear(mem[3*page : 5*page])
	ranges := []guestram.Range{{Block: 0, Pages: 10, Off: 0}, {Block: 1, Pages: uint32(len(mem)/page - 10), Off: 64 * page}}
	var n lane
	for x := range lean.Split(ranges, mem, nil, replica.RegionBytes) {
		n.take(x)
	}
	pages, sent := 0, 0
	for runs, data := n.next.runs, n.next.data; len(runs) > 0; {
		r, d, bytes := fit(runs, data)
		if r == 0 || bytes > replica.MaxPageData {
			t.Fatalf("a message of %d runs and %d bytes", r, bytes)
		}
		for _, x := range runs[:r] {
			pages += int(x.Pages)
			if first, last := x.Off/replica.RegionBytes, (x.Off+uint64(x.Pages)*page-1)/replica.RegionBytes; first != last {
				t.Errorf("%+v is in two regions", x)
			}
		}
		sent += bytes
		runs, data = runs[r:], data[d:]
	}
	if pages*page != len(mem) || sent != len(mem)-2*page {
		t.Errorf("%d pages and %d bytes are sent, of %d pages with 2 zero ones", pages, sent, len(mem)/page)
	}
}

// An epoch is whole when all streams that carried some of it have ended it, and
// not sooner, whatever they bring of later ones.
func TestStaging(t *testing.T) {
	g := newStaging()
	add := func(k uint64, pages int) {
		t.Helper()
		x := stagedBatch{runs: []replica.Run{{Pages: uint32(pages)}}, data: make([]byte, pages*replica.PageSize)}
		if err := g.add(ftengine.Epoch(k), uint64(pages), x, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	add(1, 2)
	add(2, 5) // of a stream that is ahead
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := g.whole(ctx, 1, 0b110); err == nil {
		t.Errorf("whole without the word of two streams: %+v", e)
	}
	if err := errors.Join(g.ended(1, 1), g.ended(2, 1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan *stagedEpoch, 1)
	go func() {
		e, err := g.whole(t.Context(), 1, 0b110)
		if err != nil {
			t.Error(err)
		}
		done <- e
	}()
	add(1, 3)
	if len(done) > 0 {
		t.Error("whole while one stream is open")
	}
	if err := g.ended(1, 2); err != nil {
		t.Fatal(err)
	}
	if e := <-done; e.pages != 5 || len(e.batches) != 2 {
		t.Errorf("epoch 1 has %d pages in %d batches", e.pages, len(e.batches))
	}
	if err := g.add(1, 1, stagedBatch{}, 0); !errors.Is(err, replica.ErrMalformed) {
		t.Errorf("a part of an epoch that is whole: %v", err)
	}
	if err := g.ended(2+stagedEpochsMax+1, 1); !errors.Is(err, replica.ErrMalformed) {
		t.Errorf("an epoch that is far ahead: %v", err)
	}
	if e, err := g.whole(t.Context(), 2, 0b010); err != nil || e.pages != 5 {
		t.Errorf("epoch 2: %+v, %v", e, err)
	}
	// Pages of the first epoch are in their place at once, and another stream may
	// be ahead of them.
	first := newStaging()
	for k, x := range []stagedBatch{{runs: []replica.Run{{}}, data: make([]byte, 4096)}, {}} {
		if err := first.add(ftengine.Epoch(2-k), 1, x, uint64(len(x.data))); err != nil {
			t.Errorf("pages of epoch %d: %v", 2-k, err)
		}
	}
	if err := g.add(3, 1, stagedBatch{data: make([]byte, 2<<20)}, 1<<20); err == nil {
		t.Error("an epoch beyond its bound was taken")
	}
}
