package capture

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDescriptorLimit: what /proc says of us is what the kernel says.
func TestDescriptorLimit(t *testing.T) {
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	got, err := softDescriptors(string(text))
	if err != nil || uint64(got) != want.Cur {
		t.Errorf("%d, %v; the kernel says %d", got, err, want.Cur)
	}
	for _, bad := range []string{"", "Max open files", "Max open files  many  many files\n", "Max locked memory 8388608 8388608 bytes\n"} {
		if n, err := softDescriptors(bad); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
	if n, err := softDescriptors("Max open files            unlimited            unlimited            files\n"); n != fdCeiling || err != nil {
		t.Errorf("unlimited: %d, %v", n, err)
	}
}
