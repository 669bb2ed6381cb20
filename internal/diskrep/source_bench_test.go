package diskrep

import (
	"context"
	"testing"
	"time"
)

// BenchmarkSourceWrite is what a write of the guest costs from the server's
// call to its answer, with a connection that takes everything.
func BenchmarkSourceWrite(b *testing.B) {
	for name, bytes := range map[string]int64{"4KiB": 4 << 10, "1MiB": 1 << 20, "8MiB": 8 << 20} {
		b.Run(name, func(b *testing.B) {
			s := NewSource([]Disk{{"vda", 1 << 30}}, SourceOptions{StallMax: time.Hour})
			s.Begin(b.Context(), func(_ context.Context, ws []Write) error {
				freeAll(ws)
				return nil
			})
			defer s.End()
			s.Compared()
			d, data, release := s.Backend(0), make([]byte, bytes), func() {}
			b.SetBytes(bytes)
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if err := d.Write(b.Context(), i*bytes%(1<<30), data, release, false); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Whole(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkSourceCompare is a resync in which nothing differs, as a ratio to
// hashing alone, measured in turn.
func BenchmarkSourceCompare(b *testing.B) {
	const bytes = 1 << 20
	data := make([]byte, bytes)
	for i := range data {
		data[i] = byte(i / 512)
	}
	s := NewSource([]Disk{{"vda", bytes}}, SourceOptions{})
	s.Begin(b.Context(), stuck)
	defer s.End()
	var sums []byte
	for off := 0; off < bytes; off += BlockBytes {
		sum := SumOf(data[off : off+BlockBytes])
		sums = append(sums, sum[:]...)
	}
	if err := s.AddSums(0, 0, sums); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(bytes)
	b.ReportAllocs()
	var hashing, comparing time.Duration
	for b.Loop() {
		start := time.Now()
		for off := 0; off < bytes; off += BlockBytes {
			SumOf(data[off : off+BlockBytes])
		}
		hashed := time.Now()
		if err := s.Backend(0).Write(b.Context(), 0, data, nil, false); err != nil {
			b.Fatal(err)
		}
		hashing, comparing = hashing+hashed.Sub(start), comparing+time.Since(hashed)
	}
	if st := s.Stats()[0]; st.EqualBytes != st.WrittenBytes {
		b.Fatalf("%+v", st)
	}
	b.ReportMetric(float64(comparing)/float64(hashing), "times-hashing")
	b.ReportMetric(float64(bytes)*float64(b.N)/comparing.Seconds()/1e6, "compared-MB/s")
}
