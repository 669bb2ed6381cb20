package virt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

// TestStandbyDisks: a standby that waits neither locks its images nor keeps anything of them, so that another process
// may write them until it loads; when the guest runs, it has locked them. A rehearsal beside it does not touch them.
func TestStandbyDisks(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		requireDiskTools(t)
		ctx := testContext(t)
		c := mustOpen(t, h)
		dir := t.TempDir()
		disks := []*testDisk{
			{target: "vda", alias: "virtio-disk0", format: "raw", xml: `<driver name='qemu' type='raw' cache='none' io='native'/><target dev='vda' bus='virtio'/>`},
			{target: "vdb", alias: "virtio-disk1", format: "chain", xml: `<driver name='qemu' type='qcow2' cache='writeback'/><target dev='vdb' bus='virtio'/>`},
			{target: "sda", alias: "scsi0-0-0-0", format: "raw", xml: `<driver name='qemu' type='raw' cache='directsync' discard='unmap'/><target dev='sda' bus='scsi'/>`},
		}
		images, empty := map[string]StandbyDisk{}, map[string]string{}
		for _, d := range disks {
			d.make(t, dir)
			images[d.target] = StandbyDisk{Path: d.copy} // full of 0xee
			empty[d.target] = filepath.Join(dir, d.target+".empty")
			mustRun(t, "qemu-img", "create", "-q", "-f", "raw", empty[d.target], fmt.Sprint(imageBytes))
		}
		guest := mustCreateXML(t, c, diskGuest(disks))
		s := startStandbyOf(t, ctx, c, guest, images)

		scratch, err := ScratchXML(s.xml, "web3", "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0003", empty)
		if err != nil {
			t.Fatal(err)
		}
		rehearsal, err := c.StartStandby(ctx, scratch)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range disks {
			if pid, err := rehearsal.PID(); err != nil || holds(t, pid, d.copy) || !holds(t, pid, empty[d.target]) {
				t.Errorf("%s: the rehearsal's QEMU (%v) opens the replica, or not its own file", d.target, err)
			}
		}
		rehearsal.Incoming.Close()
		if err := rehearsal.Destroy(ctx); err != nil {
			t.Fatal(err)
		}

		for _, d := range disks { // sector 0 and others, by ourselves and by another QEMU that asks for the lock
			if err := os.WriteFile(d.copy, bytes.Repeat([]byte{0xaa}, imageBytes), 0); err != nil {
				t.Fatal(err)
			}
			mustRun(t, "qemu-io", "-f", "raw", "-c", "write -P 0xbb 65536 65536", d.copy)
		}
		migrate(t, ctx, guest, s.Standby)
		findDevices(t, ctx, s.Domain, disks)
		if err := s.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		for _, d := range disks {
			if out, err := exec.CommandContext(ctx, "qemu-io", "-f", "raw", "-c", "write 0 512", d.copy).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
				t.Errorf("%s is not locked once the guest runs: %v, %s", d.target, err, out)
			}
		}
		for _, d := range disks {
			d.io(t, ctx, s.Domain, "read -P 0xaa 0 65536")
			d.io(t, ctx, s.Domain, "read -P 0xbb 65536 65536")
			d.io(t, ctx, s.Domain, "read -P 0xaa 131072 65536")
			d.io(t, ctx, s.Domain, "write -P 0xcc 0 4096")
		}
	})
}

type standbyOf struct {
	*Standby
	xml string
}

// startStandbyOf starts a standby of guest on the same host, which needs another name.
func startStandbyOf(t *testing.T, ctx context.Context, c *Conn, guest *Domain, images map[string]StandbyDisk) standbyOf {
	t.Helper()
	src, err := guest.XML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	live, err := guest.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	src = strings.NewReplacer("web1", "web2", guestUUID, standbyUUID).Replace(src)
	xml, err := StandbyXML(src, StandbyOptions{Protection: "p1", Generation: 1, PrimaryHost: "hostA", LiveXML: live, Disks: images})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.StartStandby(ctx, xml)
	if err != nil {
		t.Fatal(err)
	}
	return standbyOf{s, xml}
}

// migrate moves the guest with QEMU's own migration into the standby's stream.
func migrate(t *testing.T, ctx context.Context, guest *Domain, s *Standby) {
	t.Helper()
	if _, err := guest.QMPWithFiles(ctx, "getfd", map[string]string{"fdname": "out"}, s.Incoming); err != nil {
		t.Fatal(err)
	}
	s.Incoming.Close()
	if _, err := guest.QMP(ctx, "migrate", map[string]string{"uri": "fd:out"}); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitLoaded(ctx); err != nil {
		t.Fatal(err)
	}
}

// holds tells whether a process has a file open.
func holds(t *testing.T, pid int, path string) bool {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == path {
			return true
		}
	}
	return false
}

// TestCopySocketOwner: libvirt leaves the socket of an NBD server alone, so whoever makes it has to let QEMU's user in.
func TestCopySocketOwner(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		requireDiskTools(t)
		ctx := testContext(t)
		const conf, nobody = "/etc/libvirt/qemu.conf", 65534
		b, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(`user="root"`, `user="+65534"`, `group="root"`, `group="+65534"`, "dynamic_ownership=0", "dynamic_ownership=1").Replace(string(b))
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		h.Restart(syscall.SIGTERM)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		dir, err := os.MkdirTemp("/var/lib/libvirt", "images")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		d := testDisks()[0]
		d.make(t, dir)
		dom := mustCreateXML(t, c, diskGuest([]*testDisk{d}))
		pid, err := dom.PID()
		if err != nil {
			t.Fatal(err)
		}
		if uid := owner(t, fmt.Sprintf("/proc/%d", pid)); uid != nobody && owner(t, d.source) != nobody {
			t.Fatalf("QEMU runs as %d", uid)
		}
		d.serve(t)
		if err := os.Chmod(d.socket, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err == nil || !strings.Contains(err.Error(), "Permission denied") {
			t.Errorf("QEMU's user reaches root's socket: %v", err)
		}
		if err := os.Chown(d.socket, nobody, -1); err != nil {
			t.Fatal(err)
		}
		if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err != nil {
			t.Fatal(err)
		}
		awaitCopy(t, events, CopyReady, d.target)
		if err := errors.Join(os.Chown(d.socket, 0, nobody), os.Chmod(d.socket, 0o660)); err != nil {
			t.Fatal(err)
		}
		if err := dom.AbortCopy(ctx, d.target); err != nil {
			t.Fatal(err)
		}
		if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err != nil { // by its group
			t.Fatal(err)
		}
		awaitCopy(t, events, CopyReady, d.target)
		if uid := owner(t, d.socket); uid != 0 {
			t.Errorf("the socket's owner became %d", uid)
		}
	})
}

func owner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal(fs.ErrInvalid)
	}
	return int(st.Uid)
}
