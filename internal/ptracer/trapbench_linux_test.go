package ptracer

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkTrap measures one arming of each kind of change in a process that
// makes the call all the time, and its parts:
//
//	arm-us      what Arm costs the caller
//	arm/write   that, against a write to an eventfd that nobody waits for
//	armed-us    from then until every call is seen
//	held-us     how long the thread was traced
//	held/call   that for each stop, against a call that nobody traces
//
// Times are medians.
func BenchmarkTrap(b *testing.B) {
	for name := range changes() {
		b.Run(name, func(b *testing.B) {
			tg := startTrapped(b, "ioctl")
			tp := openTrap(b, tg, TrapOptions{Bound: time.Minute})
			write, call := writeFloor(b), callFloor(tg)
			var arm, armed, held, stops []int64
			for b.Loop() {
				ch := changes()[name]
				begin := time.Now()
				err := tp.Arm(ch)
				arm = append(arm, time.Since(begin).Nanoseconds())
				if err != nil || !tp.Armed(trapWait) {
					b.Fatal("not armed: ", err)
				}
				armed = append(armed, time.Since(begin).Nanoseconds())
				c, err := tp.Collect(trapWait)
				if err != nil {
					b.Fatal(err)
				}
				held, stops = append(held, c.Attached.Nanoseconds()), append(stops, int64(c.Stops))
			}
			report := func(ns float64, unit string) { b.ReportMetric(ns/1e3, unit) }
			report(median(arm), "arm-us")
			report(median(armed), "armed-us")
			report(median(held), "held-us")
			b.ReportMetric(median(stops), "stops")
			b.ReportMetric(median(arm)/write, "arm/write")
			b.ReportMetric(median(held)/median(stops)/call, "held/call")
			tg.mustRun()
		})
	}
}

func median(v []int64) float64 {
	slices.Sort(v)
	return float64(v[len(v)/2])
}

// writeFloor is what a system call costs that wakes nobody, in ns.
func writeFloor(b *testing.B) float64 {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	var took []int64
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	for range 1000 {
		begin := time.Now()
		if _, err := unix.Write(fd, one); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin).Nanoseconds())
	}
	return median(took)
}

// callFloor is what one of the target's calls takes when nobody traces it, in ns:
// it makes two in each round.
func callFloor(tg *target) float64 {
	const calls = 2
	var took []int64
	for range 20 {
		begin, from := time.Now(), tg.count()
		for tg.count() < from+500 {
			time.Sleep(100 * time.Microsecond)
		}
		took = append(took, time.Since(begin).Nanoseconds()/int64(tg.count()-from)/calls)
	}
	return median(took)
}
