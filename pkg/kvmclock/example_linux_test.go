package kvmclock_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/virt-ft/virt-ft/internal/ptracer"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

// A checkpoint loop that costs the guest's clock nothing. The program is its own
// tracer, hence MaybeInject.
func Example() {
	ptracer.MaybeInject()
	pid, err := strconv.Atoi(os.Getenv("QEMU_PID"))
	if err != nil {
		return // no guest here
	}
	keeper, err := kvmclock.Open(context.Background(), pid, kvmclock.Options{})
	if errors.Is(err, kvmclock.ErrNoKVM) {
		fmt.Println("an emulated guest: its clock stands still in pauses")
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keeper.Close()
	for range 100 {
		stop()
		keeper.Paused()
		copyDirtyPages() // the tracer gets ready meanwhile
		keeper.Resuming()
		cont()
		keeper.Resumed()
	}
	r := keeper.Report()
	fmt.Println(r.Kept, "pauses, drift", r.DriftNs, "ns")
	// Output:
}

func stop()           {}
func copyDirtyPages() {}
func cont()           {}
