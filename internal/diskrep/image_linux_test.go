package diskrep

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The sums of a sparse image are those of its blocks, holes included, in order.
func TestSums(t *testing.T) {
	dir := memoryDir(t)
	const size = 2*sumsPerChunk*BlockBytes + 40*BlockBytes + 1000
	o := TargetOptions{JournalDir: filepath.Join(dir, "journal"), Disks: []Disk{{Name: "vda", SizeBytes: size}},
		Paths: []string{filepath.Join(dir, "vda.raw")}, Durability: DurabilityMemory}
	target := mustOpen(t, o)
	defer target.Close()
	blocks := map[uint64][]byte{}
	for _, b := range []uint64{0, 15, 16, 4095, 4096, 5000, 2*sumsPerChunk + 39} {
		data := make([]byte, BlockBytes)
		pattern(data[b%100:200], b)
		blocks[b] = data
		if err := target.WriteInitial([]Write{{Off: int64(b) * BlockBytes, Len: BlockBytes, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	tail := make([]byte, 1000) // a hole, and no whole block
	zero := make([]byte, BlockBytes)
	next := uint64(0)
	err := target.Sums(t.Context(), 0, func(first uint64, sums []byte) error {
		if first != next || len(sums) > sumsPerChunk*SumBytes || len(sums) == 0 {
			t.Fatalf("%d bytes of sums from block %d, want block %d", len(sums), first, next)
		}
		for ; len(sums) > 0; sums = sums[SumBytes:] {
			want := SumOf(zero)
			if b, ok := blocks[next]; ok {
				want = SumOf(b)
			} else if next == 2*sumsPerChunk+40 {
				want = SumOf(tail)
			}
			if !bytes.Equal(sums[:SumBytes], want[:]) {
				t.Errorf("block %d", next)
			}
			next++
		}
		return nil
	})
	if err != nil || next != 2*sumsPerChunk+41 {
		t.Errorf("%v, %d blocks", err, next)
	}
	stop := errors.New("no more")
	if err := target.Sums(t.Context(), 0, func(uint64, []byte) error { return stop }); err != stop {
		t.Errorf("emit failed, Sums says %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := target.Sums(gone, 0, func(uint64, []byte) error { t.Error("emitted"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Zeros give their space back.
func TestZerosPunchHoles(t *testing.T) {
	dir := memoryDir(t)
	d := Disk{Name: "vda", SizeBytes: 1 << 20}
	im, err := openImage(d, filepath.Join(dir, "i"), true, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer im.f.Close()
	full := bytes.Repeat([]byte{7}, int(d.SizeBytes))
	if err := im.put(Write{Len: d.SizeBytes, Data: full}); err != nil {
		t.Fatal(err)
	}
	if err := im.put(Write{Off: 1000, Len: 512 << 10}); err != nil {
		t.Fatal(err)
	}
	clear(full[1000:][:512<<10])
	if got, err := os.ReadFile(im.path); err != nil || !bytes.Equal(got, full) {
		t.Errorf("the image differs: %v", err)
	}
	info, err := im.f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if n := allocatedBytes(info); n > 516<<10 {
		t.Errorf("%d bytes are allocated after half of it became zeros", n)
	}
	// Where that is not possible they are written.
	if err := im.put(Write{Len: d.SizeBytes, Data: bytes.Repeat([]byte{9}, int(d.SizeBytes))}); err != nil {
		t.Fatal(err)
	}
	if err := im.writeZeros(3, d.SizeBytes-5); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, d.SizeBytes)
	copy(want, []byte{9, 9, 9})
	copy(want[d.SizeBytes-2:], []byte{9, 9})
	if got, err := os.ReadFile(im.path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the image differs after zeros were written: %v", err)
	}
}

// loopDevice is a block device of our own.
func loopDevice(t *testing.T, bytes int64) string {
	t.Helper()
	backing := filepath.Join(t.TempDir(), "backing")
	if err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, bytes)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: losetup: %v: %s", err, strings.TrimSpace(string(out)))
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	return dev
}

func TestBlockDevice(t *testing.T) {
	dev := loopDevice(t, 4<<20)
	o := optionsIn(memoryDir(t), DurabilityFsync)
	o.Paths[0] = dev
	if s, err := CheckSpace(dev, 4<<20, 1); err != nil || s.FreeBytes != 4<<20 || s.MayFill {
		t.Errorf("space: %+v %v", s, err)
	}
	if _, err := CheckSpace(dev, 4<<20+1, 1); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a device that is too small: %v", err)
	}
	target := started(t, o)
	if target.Fresh(0) {
		t.Error("a device is fresh")
	}
	one := bytes.Repeat([]byte{1}, 16<<10)
	ws := []Write{{Off: 4096, Len: 16 << 10, Data: one}, {Off: 8192, Len: 4096}, {Off: 5000, Len: 100}}
	if err := errors.Join(target.Stage(2, ws), target.EndEpoch(2), target.Settle(t.Context(), 2), target.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dev)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copy(want[4096:], bytes.Repeat([]byte{1}, 16<<10))
	clear(want[8192:][:4096])
	clear(want[5000:][:100])
	if !bytes.Equal(got, want) {
		t.Error("the device differs")
	}
	o.Disks[0].SizeBytes = 5 << 20
	o.JournalDir += "2"
	if _, err := OpenTarget(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make it larger") {
		t.Errorf("a device that is too small: %v", err)
	}
}

func TestCheckSpace(t *testing.T) {
	dir := memoryDir(t)
	path := filepath.Join(dir, "i")
	s, err := CheckSpace(path, 1<<20, 1<<10)
	if err != nil || s.FreeBytes <= 0 || s.AllocatedBytes != 0 || s.MayFill || s.Filesystem == 0 {
		t.Errorf("%+v %v", s, err)
	}
	size := 2 * s.FreeBytes
	if s, err := CheckSpace(path, size, 1<<10); err != nil || !s.MayFill {
		t.Errorf("a disk that may fill it: %+v %v", s, err)
	}
	_, err = CheckSpace(path, size, size)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a disk that does not fit: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	with, err := CheckSpace(path, 1<<20, 1<<20)
	if err != nil || with.AllocatedBytes != 1<<20 {
		t.Errorf("an image that is there: %+v %v", with, err)
	}
	if _, err := CheckSpace(filepath.Join(dir, "no", "i"), 1, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := CheckSpace(dir, 1, 1); err == nil {
		t.Error("a directory is an image")
	}
	if _, err := CheckSpace(path, 0, 0); err == nil {
		t.Error("a disk of no size")
	}
}

func TestNetworkFilesystem(t *testing.T) {
	for path, want := range map[string]string{"/dev/shm/not/there": "tmpfs", "/dev/shm": "tmpfs"} {
		if name, shared, err := NetworkFilesystem(path); err != nil || name != want || shared {
			t.Errorf("%s: %s %v %v", path, name, shared, err)
		}
	}
	// None of these can be mounted here: the numbers are of magic.h, and of
	// the file systems' own sources.
	for magic, want := range map[int64]string{0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "cifs", 0xc36400: "ceph", 0x1161970: "gfs2",
		0x7461636f: "ocfs2", 0xbd00bd0: "lustre", 0x47504653: "gpfs", 0x65735546: "fuse", 0x01021997: "9p"} {
		if name, shared := filesystemName(magic); name != want || !shared {
			t.Errorf("%#x: %s %v", magic, name, shared)
		}
	}
	if name, shared := filesystemName(int64(int32(-0x00acb2be))); name != "cifs" || !shared { // as a 32-bit kernel has it
		t.Errorf("a negative number: %s %v", name, shared)
	}
}
