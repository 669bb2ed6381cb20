package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// needExt4 skips without the tools, or a kernel that has the modules.
func needExt4(t *testing.T) {
	t.Helper()
	for _, name := range []string{"mkfs.ext4", "e2fsck", "qemu-img"} {
		if _, err := tool(t.Context(), name, "-V"); errors.As(err, new(*MissingError)) {
			t.Skip(err)
		}
	}
	assets, err := FindAssets()
	skipMissing(t, err)
	tree, err := readModules(assets.Modules)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range diskModules() {
		if tree.files[m] == "" && !tree.builtin[m] {
			t.Skip(&MissingError{What: m + ".ko in build/kernel", Remedy: "run make kernel"})
		}
	}
}

// diskCommand asks the guest and checks that the answer has no finding.
func diskCommand(ctx context.Context, t *testing.T, l *Lab, line string) map[string]any {
	t.Helper()
	answer, err := l.Command(ctx, line)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"missing", "foreign", "torn", "failures"} {
		if n, ok := answer[bad].(float64); ok && n != 0 {
			t.Errorf("%s: %v", line, answer)
		}
	}
	return answer
}

// waitWrites waits until every disk did so many writes, or changes of files.
func waitWrites(ctx context.Context, t *testing.T, l *Lab, want float64) {
	t.Helper()
	for {
		answer := diskCommand(ctx, t, l, "disk status")
		least := want
		for name, d := range answer["disks"].(map[string]any) {
			disk := d.(map[string]any)
			if disk["failures"] != 0.0 {
				t.Fatalf("%s: %v", name, disk)
			}
			n, _ := disk["writes"].(float64)
			m, _ := disk["changes"].(float64)
			least = min(least, n+m)
		}
		if least >= want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%v: %v", ctx.Err(), answer)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestGuestDisks lets guests work on disks of all kinds, and looks at what they
// left on the host.
func TestGuestDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: boots two guests")
	}
	needExt4(t)
	l, boot := newLab(t)
	for name, o := range map[string]GuestOptions{
		"q35": {Disks: []GuestDisk{
			{}, {Target: "vdb", Format: "qcow2", Backing: true, IOThread: true, SizeMiB: 40},
			{Target: "sda", Bus: "scsi", Format: "qcow2", Cache: "writeback", IOThread: true},
			{Target: "sdb", Bus: "sata", Cache: "directsync"},
			{Target: "vdc", Format: "qcow2", Backing: true, FS: "ext4"},
		}},
		"pc": {Machine: "pc", Disks: []GuestDisk{
			{Target: "sda", Bus: "sata", FS: "ext4", Cache: "writeback"}, {Target: "sdb", Bus: "scsi", SizeMiB: 16},
		}},
	} {
		if name == "pc" && os.Getenv("VIRT_FT_LONG") == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			o.Name, o.Kernel, o.Initrd, o.NIC, o.Cmdline = name, boot.Kernel, boot.Initrd, true, "ft.tick_ms=0"
			start := time.Now()
			g, err := l.A.StartGuest(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("ready with %d disks after %v", g.Ready.Disks, time.Since(start))
			for _, d := range o.withDefaults().Disks {
				i, err := l.A.DiskImage(ctx, g.Name, d.Target)
				if want := (Image{Path: l.A.ImagePath(d.Path), Format: d.Format}); err != nil || i != want {
					t.Errorf("%s: libvirt has it at %+v, not %+v: %v", d.Target, i, want, err)
				}
			}
			workDisks(ctx, t, l, o)
			if _, err := l.A.Virsh(ctx, "destroy", g.Name); err != nil {
				t.Fatal(err)
			}
			for _, d := range o.withDefaults().Disks {
				i := Image{Path: l.A.ImagePath(d.Path), Format: d.Format}
				if d.FS == "ext4" {
					if err := Fsck(ctx, i); err != nil {
						t.Error(err)
					}
				}
				checkCompare(ctx, t, i)
			}
		})
	}
}

func workDisks(ctx context.Context, t *testing.T, l *Lab, o GuestOptions) {
	diskCommand(ctx, t, l, "disk load 100 16384")
	waitWrites(ctx, t, l, 100)
	for _, d := range o.withDefaults().Disks {
		if d.FS == "" {
			for _, line := range []string{"trim", "zero", "bench 1"} {
				t.Logf("%s %s: %v", d.Target, line, diskCommand(ctx, t, l, "disk "+d.Target+" "+line))
			}
		}
	}
	diskCommand(ctx, t, l, "disk check") // under load
	diskCommand(ctx, t, l, "disk quiet")
	start := time.Now()
	if found := diskCommand(ctx, t, l, "disk check"); found["whole"].(float64) < 100 {
		t.Errorf("hardly anything was written: %v", found)
	}
	t.Logf("checked in %v", time.Since(start))
	if _, err := l.Command(ctx, "disk zero 0 1"); err == nil {
		t.Error("the guest erases what the acceptance service wrote")
	}
}

// checkCompare finds an image equal to a copy, and not after one byte of that
// has changed.
func checkCompare(ctx context.Context, t *testing.T, i Image) {
	copied := Image{Path: filepath.Join(t.TempDir(), "copy")}
	if err := RawCopy(ctx, i, copied.Path); err != nil {
		t.Fatal(err)
	}
	if err := CompareImages(ctx, i, copied); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(copied.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 1<<20); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := CompareImages(ctx, i, copied); !errors.Is(err, ErrDiffer) {
		t.Errorf("one byte was changed: %v", err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b[0]--
	if _, err := f.WriteAt(b, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(CompareImages(ctx, i, copied), f.Truncate(info.Size()+1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := CompareImages(ctx, i, copied); !errors.Is(err, ErrDiffer) {
		t.Errorf("1 MiB of zeroes was appended: %v", err)
	}
}

// TestAcknowledgedIsOnTheDisk kills QEMU under load, again and again: whatever
// clients were told is on the disk, and files are sound.
func TestAcknowledgedIsOnTheDisk(t *testing.T) {
	needExt4(t)
	l, boot := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	boot.NIC, boot.Cmdline, boot.AcceptDisk = true, "ft.tick_ms=0", "vda"
	boot.Disks = []GuestDisk{{SizeMiB: 32}, {Target: "vdb", FS: "ext4"}}
	for round := range 2 {
		g, err := l.A.StartGuest(ctx, boot)
		if err != nil {
			t.Fatal(err)
		}
		diskCommand(ctx, t, l, "disk load 100 8192")
		c, err := l.StartClient(ctx, ClientOptions{ID: uint32(round + 1), Seed: 7, TCP: 4, UDP: 4, Pace: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Stop()
		for c.Verdict().Acked < 500 && c.Verdict().Err() == nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		pid, err := l.A.QEMU(g.Name)
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, err := l.A.Virsh(ctx, "domstate", g.Name); err == nil; _, err = l.A.Virsh(ctx, "domstate", g.Name) {
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		c.Stop()
		image := l.A.ImagePath("/var/lib/libvirt/images/web1-vda.raw")
		found, err := CheckRecords(image, 0, c.Journal)
		t.Logf("round %d: %+v", round, found)
		if err := errors.Join(err, found.Err()); err != nil || found.Acked < 500 || found.Whole < 500 {
			t.Errorf("after SIGKILL: %+v, %v", found, err)
		}
		if err := Fsck(ctx, Image{Path: l.A.ImagePath("/var/lib/libvirt/images/web1-vdb.raw")}); err != nil {
			t.Error(err)
		}
		forget(t, image, c.Journal)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// forget undoes the write of one acknowledged record: it must be missed.
func forget(t *testing.T, image string, j *Journal) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layout, err := guestapi.LayoutOf(32 << 20)
	if err != nil {
		t.Fatal(err)
	}
	var last Entry
	j.Answered(0, func(e Entry) bool { last = e; return false })
	if _, err := f.WriteAt(make([]byte, guestapi.RecordBytes), int64(layout.SlotOf(last.Serial)*guestapi.RecordBytes)); err != nil {
		t.Fatal(err)
	}
	if found, err := CheckRecords(image, 0, j); err != nil || found.Missing == 0 || found.Err() == nil {
		t.Errorf("a record was wiped out: %+v, %v", found, err)
	}
}

// TestStorageThatFills fills a host's directory and frees it again.
func TestStorageThatFills(t *testing.T) {
	l, _ := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const dir = "/var/lib/virt-ft/disks"
	if err := l.B.FillDisk(dir); err == nil {
		t.Fatal("the machine's own disk may be filled")
	}
	if err := l.B.LimitDisk(dir, 16); err != nil {
		t.Fatal(err)
	}
	write := func() error {
		return os.WriteFile(l.B.ImagePath(filepath.Join(dir, "x")), make([]byte, 64<<10), 0o600)
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	if size, err := l.B.Run(ctx, "stat", "-c", "%s", dir+"/x"); err != nil || size != "65536\n" {
		t.Errorf("inside it has %q bytes, %v", size, err)
	}
	if err := errors.Join(os.Remove(l.B.ImagePath(filepath.Join(dir, "x"))), l.B.FillDisk(dir)); err != nil {
		t.Fatal(err)
	}
	if err := write(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to what is full: %v", err)
	}
	if err := l.B.FreeDisk(dir); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Error(err)
	}
	// A host has its own storage under the same path, also while it is off.
	mark := l.A.ImagePath(imageDir + "/mark")
	if err := os.WriteFile(mark, []byte(l.A.Name), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := l.A.Run(ctx, "cat", imageDir+"/mark"); err != nil || text != l.A.Name {
		t.Errorf("inside it says %q, %v", text, err)
	}
	if _, err := l.B.Run(ctx, "cat", imageDir+"/mark"); err == nil {
		t.Error("the other host sees it")
	}
	l.A.PowerOff()
	if got := l.A.ImagePath(imageDir + "/mark"); got != mark {
		t.Errorf("with the power off it is at %s, was at %s", got, mark)
	}
}
