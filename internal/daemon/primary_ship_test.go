package daemon

import (
	"bytes"
	"testing"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/replica"
)

// However much was dirtied, it goes in messages that the protocol allows, and
// nothing is left out.
func TestShipperFits(t *testing.T) {
	const page = replica.PageSize
	mem := bytes.Repeat([]byte{1}, 9<<20)
	clear(mem[3*page : 5*page])
	b := &capture.Batch{Data: mem, Ranges: []guestram.Range{{Block: 0, Pages: 10, Off: 0}, {Block: 1, Pages: uint32(len(mem)/page - 10), Off: 64 * page}}}
	var s shipper
	s.cut(b)
	pages, sent := 0, 0
	for runs, data := s.runs, s.data; len(runs) > 0; {
		r, d, n := fit(runs, data)
		if r == 0 || n > replica.MaxPageData {
			t.Fatalf("a message of %d runs and %d bytes", r, n)
		}
		for _, x := range runs[:r] {
			pages += int(x.Pages)
		}
		sent += n
		runs, data = runs[r:], data[d:]
	}
	if pages*page != len(mem) || sent != len(mem)-2*page {
		t.Errorf("%d pages and %d bytes are sent, of %d pages with 2 zero ones", pages, sent, len(mem)/page)
	}
}
