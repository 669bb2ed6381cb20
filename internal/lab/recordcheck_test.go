package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// diary is an image and the journal of a client that it belongs to.
type diary struct {
	*Journal
	t      *testing.T
	path   string
	layout guestapi.DiskLayout
	seq    uint64
}

var diaryBoot = guestapi.BootID{1, 2, 3}

func newDiary(t *testing.T) *diary {
	d := &diary{Journal: NewJournal(), t: t, path: filepath.Join(t.TempDir(), "image")}
	err := os.WriteFile(d.path, make([]byte, guestapi.DiskBytesMin), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if d.layout, err = guestapi.LayoutOf(guestapi.DiskBytesMin); err != nil {
		t.Fatal(err)
	}
	return d
}

// put writes over a slot.
func (d *diary) put(slot uint64, b []byte) {
	d.t.Helper()
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(slot*guestapi.RecordBytes)); err != nil {
		d.t.Fatal(err)
	}
}

// record is a request's, as the guest writes it.
func (d *diary) record(serial, session, request uint64) (r guestapi.Record, b []byte) {
	e, _ := d.request(session, request)
	d.seq++
	r = guestapi.Record{Generation: diaryBoot.Generation(), Slot: d.layout.SlotOf(serial), Seq: d.seq,
		Serial: serial, Session: session, Request: request, Nonce: e.Nonce, Hash: guestapi.Chain(0, request, e.Nonce)}
	b = make([]byte, guestapi.RecordBytes)
	r.Put(b)
	return r, b
}

// send notes a request of a session of its own.
func (d *diary) send(session uint64) {
	if _, err := d.Sent(session, session*10, time.Now()); err != nil {
		d.t.Fatal(err)
	}
}

// ack notes its answer; written says whether the guest kept its word.
func (d *diary) ack(serial, session uint64, written bool) {
	d.send(session)
	r, b := d.record(serial, session, 1)
	if written {
		d.put(r.Slot, b)
	}
	done, err := d.Received(guestapi.Answer{Status: guestapi.StatusApplied, Session: session, Seq: 1, Nonce: r.Nonce, Serial: serial, Hash: r.Hash, BootID: diaryBoot}, time.Now())
	if err != nil || !done {
		d.t.Fatal(done, err)
	}
}

func TestCheckRecords(t *testing.T) {
	type want struct{ missing, foreign, torn uint64 }
	for name, c := range map[string]struct {
		do   func(d *diary)
		want want
	}{
		"all is well":       {do: func(d *diary) { d.ack(3, 3, true) }},
		"newer in its slot": {do: func(d *diary) { d.ack(3, 3, false); d.ack(3+d.layout.Accept, 4, true) }},
		"sent, not answered": {do: func(d *diary) {
			d.send(3)
			r, b := d.record(3, 3, 1)
			d.put(r.Slot, b)
		}},
		"another boot's": {do: func(d *diary) {
			r, b := d.record(3, 99, 1)
			r.Generation++
			r.Put(b)
			d.put(r.Slot, b)
		}},
		"load": {do: func(d *diary) {
			b := make([]byte, guestapi.RecordBytes)
			guestapi.Record{Generation: diaryBoot.Generation(), Slot: d.layout.Accept, Seq: 7}.Put(b)
			d.put(d.layout.Accept, b)
		}},
		"other data":        {do: func(d *diary) { d.put(5, []byte("not a record")) }},
		"never written":     {do: func(d *diary) { d.ack(3, 3, false) }, want: want{missing: 1}},
		"older in its slot": {do: func(d *diary) { d.ack(3, 3, true); d.ack(3+d.layout.Accept, 4, false) }, want: want{missing: 1}},
		"torn": {do: func(d *diary) {
			d.ack(3, 3, true)
			d.put(d.layout.SlotOf(3), make([]byte, 512))
		}, want: want{missing: 1, torn: 1}},
		"nobody sent it": {do: func(d *diary) {
			r, b := d.record(3, 99, 1)
			d.put(r.Slot, b)
		}, want: want{foreign: 1}},
		"answered with another serial": {do: func(d *diary) { // a discarded epoch's
			d.ack(3, 3, true)
			r, b := d.record(5, 3, 1)
			d.put(r.Slot, b)
		}, want: want{foreign: 1}},
		"its serial went to another": {do: func(d *diary) {
			d.ack(3, 3, true)
			d.send(4)
			r, b := d.record(3, 4, 1)
			d.put(r.Slot, b)
		}, want: want{foreign: 1}},
		"in another's slot": {do: func(d *diary) {
			d.ack(3, 3, true)
			r, b := d.record(3, 3, 1)
			d.put(r.Slot^1, b)
		}, want: want{foreign: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDiary(t)
			d.ack(1, 1, true)
			d.ack(2, 2, true)
			c.do(d)
			got, err := CheckRecords(d.path, 0, NewJournal(), d.Journal)
			if err != nil || (want{got.Missing, got.Foreign, got.Torn}) != c.want || (got.Err() == nil) != (c.want == want{}) {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestCheckRecordsSince(t *testing.T) {
	d := newDiary(t)
	d.ack(1, 1, false)
	if _, err := CheckRecords(d.path, 0, NewJournal()); err == nil {
		t.Error("a journal without any answer is enough to judge")
	}
	d.ack(2, 2, true)
	if got, err := CheckRecords(d.path, 1, d.Journal); err != nil || got.Err() != nil || got.Acked != 1 || got.Whole != 1 {
		t.Errorf("after the first: %+v, %v", got, err)
	}
	if err := os.Truncate(d.path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckRecords(d.path, 1, d.Journal); err == nil {
		t.Error("an image that was cut off passes")
	}
}
