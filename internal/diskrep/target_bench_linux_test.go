package diskrep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkTarget4K takes epochs of 4 KiB writes from Stage to the image, and
// says how that compares to writing the same bytes into a file.
func BenchmarkTarget4K(b *testing.B) {
	for _, d := range []Durability{DurabilityMemory, DurabilityFsync} {
		for _, writes := range []int{1, 64} {
			b.Run(fmt.Sprintf("%v/%d-writes", d, writes), func(b *testing.B) { benchTarget(b, d, writes) })
		}
	}
}

func benchTarget(b *testing.B, d Durability, writes int) {
	dir := b.TempDir() // a disk, not memory: its syncs count
	o := TargetOptions{JournalDir: filepath.Join(dir, "journal"), Disks: []Disk{{Name: "vda", SizeBytes: benchBytes}},
		Paths: []string{filepath.Join(dir, "vda.raw")}, Durability: d}
	bare := benchFile(b, filepath.Join(dir, "bare"))
	benchFile(b, o.Paths[0])
	target := mustOpen(b, o)
	defer target.Close()
	if err := target.EndInitial(); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 4096)
	pattern(data, 1)
	offs := func(i int) []int64 {
		at := make([]int64, writes)
		for j := range at {
			at[j] = int64(uint64(i*writes+j)*0x9e3779b97f4a7c15%(benchBytes/4096)) * 4096
		}
		return at
	}
	b.SetBytes(int64(writes) * 4096)
	b.ReportAllocs()
	var acked time.Duration
	i := 0
	for b.Loop() {
		ws := make([]Write, writes)
		for j, off := range offs(i) {
			ws[j] = Write{Off: off, Len: 4096, Data: data}
		}
		began, epoch := time.Now(), uint64(i+2)
		if err := errors.Join(target.Stage(epoch, ws), target.EndEpoch(epoch)); err != nil {
			b.Fatal(err)
		}
		acked += time.Since(began)
		target.Commit(epoch)
		i++
	}
	if err := target.Settle(b.Context(), uint64(i+1)); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	for k := range i {
		for _, off := range offs(k) {
			if _, err := bare.WriteAt(data, off); err != nil {
				b.Fatal(err)
			}
		}
	}
	if d == DurabilityFsync { // once for all: what nobody can do better
		if err := bare.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	pwrite := time.Since(began)
	b.ReportMetric(float64(acked.Microseconds())/float64(i), "µs-to-ack/op")
	b.ReportMetric(b.Elapsed().Seconds()/pwrite.Seconds(), "times-pwrite")
}

const benchBytes = 64 << 20

// benchFile is a file whose blocks are allocated.
func benchFile(b *testing.B, path string) *os.File {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = 1
	}
	for off := int64(0); off < benchBytes; off += 1 << 20 {
		if _, err := f.WriteAt(data, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return f
}

// BenchmarkSettle is what a failover waits for.
func BenchmarkSettle(b *testing.B) {
	for _, d := range []Durability{DurabilityMemory, DurabilityFsync} {
		for _, staged := range []int{0, 1, 32} {
			b.Run(fmt.Sprintf("%v/%d-MiB", d, staged), func(b *testing.B) { benchSettle(b, d, staged) })
		}
	}
}

func benchSettle(b *testing.B, d Durability, staged int) {
	dir := b.TempDir()
	o := TargetOptions{JournalDir: filepath.Join(dir, "journal"), Disks: []Disk{{Name: "vda", SizeBytes: 64 << 20}},
		Paths: []string{filepath.Join(dir, "vda.raw")}, Durability: d}
	var all time.Duration
	n := 0
	for b.Loop() {
		target := mustOpen(b, o)
		err := errors.Join(target.EndInitial(), target.Stage(2, mib(staged, byte(n+1))), target.EndEpoch(2))
		began := time.Now()
		err = errors.Join(err, target.Settle(b.Context(), 2))
		all += time.Since(began)
		n++
		if err := errors.Join(err, target.Close()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(all.Microseconds())/1000/float64(n), "ms-settle/op")
}
