package tool

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(i + 1)
	}
	for _, c := range []struct {
		sorted []int64
		q      float64
		want   int64
	}{
		{nil, .5, 0}, {[]int64{7}, .5, 7}, {[]int64{7}, .99, 7}, {[]int64{7}, 0, 7},
		{[]int64{1, 2}, .5, 1}, {[]int64{1, 2, 3}, .5, 2}, {[]int64{1, 2, 3}, .99, 3},
		{hundred, .5, 50}, {hundred, .99, 99}, {hundred, 1, 100},
	} {
		if got := Percentile(c.sorted, c.q); got != c.want {
			t.Errorf("Percentile(%v, %v) = %d, want %d", c.sorted, c.q, got, c.want)
		}
	}
}

// Nearest rank, by its definition.
func TestPercentileIsNearestRank(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SliceOfN(rapid.Int64Range(0, 50), 1, 300).Draw(t, "values")
		q := float64(rapid.IntRange(1, 100).Draw(t, "percent")) / 100
		slices.Sort(v)
		got := Percentile(v, q)
		upTo, below := 0, 0
		for _, x := range v {
			if x <= got {
				upTo++
			}
			if x < got {
				below++
			}
		}
		if need := q * float64(len(v)); float64(upTo) < need || float64(below) >= need {
			t.Fatalf("%d: %d values up to it, %d below, of %d at %v", got, upTo, below, len(v), q)
		}
	})
}

func TestRatio(t *testing.T) {
	for _, c := range []struct{ a, floor, want float64 }{
		{6, 3, 2}, {1, 3, .333}, {0, 3, 0}, {3, 0, 0}, {3, -1, 0},
	} {
		if got := Ratio(c.a, c.floor); got != c.want {
			t.Errorf("Ratio(%v, %v) = %v, want %v", c.a, c.floor, got, c.want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 100, 2}, 3}} {
		if got := Median(c.v); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.v, got, c.want)
		}
	}
}
