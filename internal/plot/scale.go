package plot

import (
	"math"
	"strconv"
)

// IsNumber tells whether v can be drawn.
func IsNumber(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// tiny is what no measurement here tells from nothing.
const tiny = 1e-9

// Ticks are round numbers from 0 to the first that is not below most.
func Ticks(most float64) []float64 {
	if !IsNumber(most) || most < tiny {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(most/5)))
	for _, factor := range []float64{1, 2, 5, 10} {
		if most/(step*factor) <= 6 {
			step *= factor
			break
		}
	}
	n := int(math.Ceil(most/step - 1e-9))
	v := make([]float64, 0, n+1)
	for i := range n + 1 {
		v = append(v, float64(i)*step)
	}
	return v
}

// Number shows three digits that count, and no zeros behind the point.
func Number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	}
	f, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64) // its own words
	return strconv.FormatFloat(f, 'f', -1, 64)
}
