package diskrep

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const fullEnv = "VIRT_FT_TEST_DISKREP_FULL"

// TestDiskFull runs itself in a mount namespace of its own, where small file
// systems can be mounted and are gone with it.
func TestDiskFull(t *testing.T) {
	if os.Getenv(fullEnv) == "" {
		if os.Geteuid() != 0 {
			t.Skip("mounting a small file system needs root")
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
		cmd.Env = append(os.Environ(), fullEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, unix.EPERM) {
			t.Skipf("no mount namespace of our own: %v", err)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	t.Run("images", imagesFull)
	t.Run("journal", journalFull)
}

// small mounts a file system of some MiB.
func small(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dM", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func fullOptions(images, journal string) TargetOptions {
	return TargetOptions{
		JournalDir: filepath.Join(journal, "journal"), Disks: []Disk{{Name: "vda", SizeBytes: 64 << 20}},
		Paths: []string{filepath.Join(images, "vda.raw")}, Durability: DurabilityFsync, pace: -1,
	}
}

// mib are writes of some MiB.
func mib(n int, b byte) (ws []Write) {
	for i := range n {
		ws = append(ws, Write{Off: int64(i) << 20, Len: 1 << 20, Data: bytes.Repeat([]byte{b}, 1<<20)})
	}
	return ws
}

func holds(t *testing.T, o TargetOptions, n int, b byte) {
	t.Helper()
	got, err := os.ReadFile(o.Paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:n<<20], bytes.Repeat([]byte{b}, n<<20)) {
		t.Errorf("the image does not hold epoch %d", b)
	}
}

func full(t *testing.T, err error, path string) {
	t.Helper()
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "free space") {
		t.Fatalf("%v; want one that says that %s is full and what to do", err, path)
	}
}

// An epoch that might not fit into the images is refused before it may be
// acknowledged, and accepted when there is room.
func imagesFull(t *testing.T) {
	images := small(t, 24)
	o := fullOptions(images, memoryDir(t))
	target := started(t, o)
	if err := errors.Join(target.Stage(2, mib(4, 2)), target.EndEpoch(2)); err != nil {
		t.Fatal(err)
	}
	target.Commit(2)
	if err := target.Stage(3, mib(6, 3)); err != nil {
		t.Fatal(err)
	}
	full(t, target.EndEpoch(3), o.Paths[0])
	if err := unix.Mount("tmpfs", images, "tmpfs", unix.MS_REMOUNT, "size=64M"); err != nil {
		t.Fatal(err)
	}
	if err := target.EndEpoch(3); err != nil {
		t.Fatalf("there is room now: %v", err)
	}
	if err := unix.Mount("tmpfs", images, "tmpfs", unix.MS_REMOUNT, "size=16M"); err != nil {
		t.Fatal(err)
	}
	if err := target.Stage(4, mib(1, 4)); err != nil {
		t.Fatal(err)
	}
	full(t, target.EndEpoch(4), o.Paths[0])
	if err := target.Settle(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	holds(t, o, 6, 3)
}

// A full journal ends the session; what was acknowledged is kept, whether the
// guest takes over here or the process goes.
func journalFull(t *testing.T) {
	for _, settle := range []bool{true, false} {
		journal := small(t, 20)
		o := fullOptions(memoryDir(t), journal)
		target := started(t, o)
		if err := errors.Join(target.Stage(2, mib(2, 2)), target.EndEpoch(2)); err != nil {
			t.Fatal(err)
		}
		// The room that is kept free for others than data counts, too.
		if err := target.Stage(3, mib(3, 3)); err != nil {
			t.Fatal(err)
		}
		full(t, target.EndEpoch(3), o.JournalDir)
		full(t, target.Stage(3, mib(20, 3)), o.JournalDir)
		if err := target.EndEpoch(3); err == nil {
			t.Fatal("an epoch ended of which a part is missing")
		}
		target.Drop(2)
		var err error
		if settle {
			err = target.Settle(t.Context(), 2)
		} else {
			err = errors.Join(target.Close(), Recover(t.Context(), o))
		}
		if err != nil {
			t.Fatal(err)
		}
		holds(t, o, 2, 2)
	}
}
