package tool

import (
	"cmp"
	"math"
	"slices"
)

// Median of the values, which need not be sorted; 0 if there are none. Of an
// even number it is the mean of the two in the middle.
func Median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	switch n := len(v); {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// Percentile returns the smallest of the sorted values that a share q of them,
// from 0 to 1, does not exceed (nearest rank); the zero value if there are none.
func Percentile[T cmp.Ordered](sorted []T, q float64) T {
	if len(sorted) == 0 {
		var none T
		return none
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Ratio of a figure to its floor, with three digits; 0 when there is nothing to
// compare with.
func Ratio(v, floor float64) float64 {
	if floor <= 0 {
		return 0
	}
	return Round3(v / floor)
}

// Ms turns nanoseconds into milliseconds with three digits.
func Ms(ns int64) float64 { return Round3(float64(ns) / 1e6) }

// Round3 rounds to three digits behind the point, which is more than any of
// these measurements is good for.
func Round3(v float64) float64 { return math.Round(v*1000) / 1000 }
