package kvmclock

import "time"

// measureFor is how long MeasureTSCkHz looks: an error of a microsecond at either
// end makes 50 ppm.
const measureFor = 20 * time.Millisecond

// MeasureTSCkHz returns the frequency of this host's time stamp counter in kHz,
// which the kernel keeps to itself, good to some 10 ppm on a host that is not
// overloaded. It takes 20 ms. 0: the counter does not count.
func MeasureTSCkHz() uint32 {
	tsc0, raw0 := tscInstant()
	for rawNow()-raw0 < measureFor.Nanoseconds() {
		time.Sleep(measureFor / 4)
	}
	tsc1, raw1 := tscInstant()
	if tsc1 <= tsc0 {
		return 0
	}
	return uint32(float64(tsc1-tsc0) / float64(raw1-raw0) * 1e6)
}

// tscInstant reads the counter and CLOCK_MONOTONIC_RAW together, of a few tries the
// tightest.
func tscInstant() (tsc uint64, rawNs int64) {
	var least uint64
	for i := range pairTries {
		before := rdtsc()
		raw := rawNow()
		after := rdtsc()
		if took := after - before; i == 0 || took < least {
			least, tsc, rawNs = took, before+took/2, raw
		}
	}
	return tsc, rawNs
}

func rdtsc() uint64
