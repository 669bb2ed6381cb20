package hostmem

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

const gib = 1 << 30

func fixed(m Memory) func() (Memory, error) { return func() (Memory, error) { return m, nil } }

func TestReserve(t *testing.T) {
	const total, floor = 8 * gib, gib
	ordinary := Memory{TotalBytes: total, AvailableBytes: 4 * gib}
	huge := ordinary
	huge.Huge = []Pool{{PageBytes: 2 * mib, TotalBytes: 3 * gib, FreeBytes: 2 * gib}, {PageBytes: gib}}
	grouped := ordinary
	grouped.Groups = []Group{{Path: "/g/wide", MaxBytes: 7 * gib, UsedBytes: gib}, {Path: "/g", MaxBytes: 3 * gib, UsedBytes: 2 * gib}}
	type had struct {
		need     Need
		resident uint64
		standing bool
	}
	for _, c := range []struct {
		name string
		host Memory
		had  []had
		need Need
		want string // of the error; empty: it is promised
	}{
		{name: "fits to the byte", host: ordinary, need: Need{Bytes: 3 * gib}},
		{name: "a byte too many", host: ordinary, need: Need{Bytes: 3*gib + 1},
			want: "new needs 3073 MiB here, 3072 MiB are free and not promised to other standbys (4096 MiB available, 0 MiB promised to 0 other standbys, 1024 MiB kept for the host)"},
		{name: "promised to another", host: ordinary, had: []had{{need: Need{Bytes: 2 * gib}}}, need: Need{Bytes: 2 * gib},
			want: "new needs 2048 MiB here, 1024 MiB are free and not promised to other standbys (4096 MiB available, 2048 MiB promised to 1 other standby, 1024 MiB kept for the host)"},
		{name: "what is resident is not counted twice", host: ordinary, had: []had{{need: Need{Bytes: 2 * gib}, resident: gib, standing: true}}, need: Need{Bytes: 2 * gib}},
		{name: "more resident than promised", host: ordinary, had: []had{{need: Need{Bytes: gib}, resident: 9 * gib, standing: true}}, need: Need{Bytes: 3 * gib}},
		{name: "more promised than there is", host: ordinary, had: []had{{need: Need{Bytes: 2 * gib}}, {need: Need{Bytes: gib}}}, need: Need{Bytes: mib},
			want: "new needs 1 MiB here, 0 MiB are free and not promised to other standbys (4096 MiB available, 3072 MiB promised to 2 other standbys, 1024 MiB kept for the host)"},
		{name: "a control group's limit", host: grouped, need: Need{Bytes: gib + 1},
			want: "new needs 1025 MiB here, 1024 MiB are free and not promised to other standbys (limit of /g 3072 MiB, 2048 MiB used, 0 MiB promised to 0 other standbys)"},
		{name: "huge pages", host: huge, need: Need{Bytes: mib, HugeBytes: 2 * gib, HugePageBytes: 2 * mib}},
		{name: "huge pages that are promised", host: huge, had: []had{{need: Need{HugeBytes: gib, HugePageBytes: 2 * mib}}},
			need: Need{HugeBytes: gib + 2*mib, HugePageBytes: 2 * mib}, want: "new needs 1026 MiB of 2048 KiB pages here, 1024 MiB are free and not promised to other standbys"},
		// The pool's FreeBytes know of a mapping.
		{name: "huge pages that are mapped", host: huge, had: []had{{need: Need{HugeBytes: gib, HugePageBytes: 2 * mib}, standing: true}},
			need: Need{HugeBytes: 2 * gib, HugePageBytes: 2 * mib}},
		{name: "huge pages of a size that is not there", host: huge, need: Need{HugeBytes: gib, HugePageBytes: 1 << 24}, want: "new needs 1024 MiB of 16384 KiB pages here, 0 MiB are free and not promised to other standbys"},
		{name: "ordinary memory does not help", host: huge, need: Need{HugeBytes: gib, HugePageBytes: gib}, want: "new needs 1024 MiB of 1048576 KiB pages here, 0 MiB are free and not promised to other standbys"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New(Options{FloorBytes: floor, Read: fixed(c.host)})
			for i, h := range c.had {
				id := fmt.Sprint("had", i)
				if _, err := l.Reserve(id, h.need); err != nil {
					t.Fatal(err)
				}
				if h.standing {
					l.Follow(id, func() uint64 { return h.resident })
				}
			}
			before := report(t, l)
			_, err := l.Reserve("new", c.need)
			if c.want == "" && err == nil {
				return
			}
			var short *ShortError
			if !errors.As(err, &short) || err.Error() != c.want {
				t.Fatalf("%v\nwant %s", err, c.want)
			}
			if short.Remedy() == "" {
				t.Error("no remedy")
			}
			if now := report(t, l); now.String() != before.String() || now.Standbys != before.Standbys {
				t.Errorf("a refusal changed the books: %v became %v", before, now)
			}
		})
	}
}

func report(t *testing.T, l *Ledger) Report {
	t.Helper()
	r, err := l.Report()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A promise is ended once, by whoever made it, and replaced by another of its id.
func TestRelease(t *testing.T) {
	l := New(Options{FloorBytes: 1, Read: fixed(Memory{TotalBytes: gib, AvailableBytes: gib})})
	first, err := l.Reserve("a", Need{Bytes: 700 * mib})
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Reserve("a", Need{Bytes: 600 * mib})
	if err != nil {
		t.Fatalf("a promise stands in the way of the one that replaces it: %v", err)
	}
	first()
	if r := report(t, l); r.PromisedBytes != 600*mib || r.Standbys != 1 {
		t.Errorf("the end of a promise that was replaced ended another: %v", r)
	}
	second()
	second()
	if r := report(t, l); r.PromisedBytes != 0 || r.Standbys != 0 {
		t.Errorf("something stays: %v", r)
	}
	l.Follow("a", func() uint64 { t.Error("asked of a promise that ended"); return 0 })
	report(t, l)
}

func TestDefaultFloor(t *testing.T) {
	for total, want := range map[uint64]uint64{2 * gib: 512 * mib, 10 * gib: 512 * mib, 200 * gib: 10 * gib} {
		if got := report(t, New(Options{Read: fixed(Memory{TotalBytes: total})})).FloorBytes; got != want {
			t.Errorf("of %d MiB %d MiB are kept, want %d", total/mib, got/mib, want/mib)
		}
	}
}

func TestRefusesNonsense(t *testing.T) {
	l := New(Options{Read: fixed(Memory{AvailableBytes: 1 << 62})})
	for _, n := range []Need{{Bytes: 1 << 63}, {HugeBytes: 1 << 63, HugePageBytes: 1}, {HugeBytes: 1}} {
		if _, err := l.Reserve("x", n); err == nil || errors.As(err, new(*ShortError)) {
			t.Errorf("%+v: %v", n, err)
		}
	}
	broken := errors.New("no /proc")
	if _, err := New(Options{Read: func() (Memory, error) { return Memory{}, broken }}).Reserve("x", Need{}); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// TestNeverOvercommits lets standbys come, grow and go, and compares with the sum
// of all there is: were each to take all that it was promised, the host would
// still have its floor.
func TestNeverOvercommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const total, floor = 1000, 100
		needs, resident := map[string]uint64{}, map[string]uint64{}
		release := map[string]func(){}
		used := func() (sum uint64) {
			for _, r := range resident {
				sum += r
			}
			return sum
		}
		l := New(Options{FloorBytes: floor, Read: func() (Memory, error) {
			return Memory{TotalBytes: total, AvailableBytes: total - used()}, nil
		}})
		names := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) {
				id, need := names.Draw(t, "id"), rapid.Uint64Range(0, 700).Draw(t, "need")
				if release[id] != nil {
					t.Skip("is there")
				}
				sum := need
				for _, n := range needs {
					sum += n
				}
				end, err := l.Reserve(id, Need{Bytes: need})
				if fits := sum <= total-floor; fits != (err == nil) {
					t.Fatalf("%d in all: %v", sum, err)
				}
				if err == nil {
					needs[id], resident[id], release[id] = need, 0, end
					l.Follow(id, func() uint64 { return resident[id] })
				}
			},
			"grow": func(t *rapid.T) {
				id := names.Draw(t, "id")
				resident[id] = needs[id] - rapid.Uint64Range(0, needs[id]-resident[id]).Draw(t, "missing")
			},
			"go": func(t *rapid.T) {
				id := names.Draw(t, "id")
				if release[id] == nil {
					t.Skip("is not there")
				}
				release[id]()
				delete(needs, id)
				delete(resident, id)
				delete(release, id)
			},
		})
	})
}

// Many ask at once; what fits is promised, and no more.
func TestConcurrently(t *testing.T) {
	l := New(Options{FloorBytes: 1, Read: fixed(Memory{TotalBytes: gib, AvailableBytes: 10*mib + 1})})
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 50 {
		wg.Go(func() {
			if _, err := l.Reserve(fmt.Sprint(i), Need{Bytes: mib}); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 10 {
		t.Errorf("%d of 10 were promised", won)
	}
}

func TestReportForPeople(t *testing.T) {
	l := New(Options{FloorBytes: gib, Read: fixed(Memory{TotalBytes: 8 * gib, AvailableBytes: 4 * gib,
		Huge: []Pool{{PageBytes: 2 * mib, TotalBytes: gib, FreeBytes: gib}, {PageBytes: gib}}})})
	if _, err := l.Reserve("a", Need{Bytes: gib, HugeBytes: 512 * mib, HugePageBytes: 2 * mib}); err != nil {
		t.Fatal(err)
	}
	want := "room for 2048 MiB of standbys: 4096 MiB available, 1024 MiB promised to 1 standby, 1024 MiB kept for the host; 512 MiB of 2048 KiB pages"
	if got := report(t, l).String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
