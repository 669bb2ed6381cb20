package kvmclock

import (
	"math"
	"testing"
)

// TestMeasureTSCkHz: two measurements agree, and are of this world.
func TestMeasureTSCkHz(t *testing.T) {
	a, b := float64(MeasureTSCkHz()), float64(MeasureTSCkHz())
	if a < 100e3 || a > 20e6 {
		t.Fatalf("%v kHz", a)
	}
	if off := math.Abs(a-b) / a; off > 0.01 {
		t.Errorf("%v and then %v kHz", a, b)
	}
}
