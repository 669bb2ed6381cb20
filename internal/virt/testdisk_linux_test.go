package virt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

// imageBytes is the size of the tests' disks. It is no multiple of the copy's granularity.
const imageBytes = 4<<20 + 4096

// testDisk is a disk of a test's guest, and the server that its copy goes to.
type testDisk struct {
	target, alias string
	xml           string // of the disk but for its source
	format        string // raw or qcow2; "chain" is qcow2 with a backing file
	source, copy  string // files
	socket        string
	qdev          string // how QEMU's monitor calls the device
	server        *exec.Cmd
	gone          chan struct{} // closed when the server has ended
}

func testDisks() []*testDisk {
	const virtio = `<driver name='qemu' type='%s' cache='none' discard='unmap'/><target dev='%s' bus='virtio'/>`
	bus := func(format, target, bus, serial string) string {
		return fmt.Sprintf(`<driver name='qemu' type='%s' discard='unmap'/><target dev='%s' bus='%s'/><serial>%s</serial>`, format, target, bus, serial)
	}
	return []*testDisk{
		{target: "vda", alias: "virtio-disk0", format: "raw", xml: fmt.Sprintf(virtio, "raw", "vda")},
		{target: "vdb", alias: "virtio-disk1", format: "raw",
			xml: `<driver name='qemu' type='raw' iothread='1' discard='unmap'/><target dev='vdb' bus='virtio'/>`},
		{target: "vdc", alias: "virtio-disk2", format: "qcow2", xml: fmt.Sprintf(virtio, "qcow2", "vdc")},
		{target: "vdd", alias: "virtio-disk3", format: "chain",
			xml: `<driver name='qemu' type='qcow2' copy_on_read='on'/><target dev='vdd' bus='virtio'/>`},
		{target: "sda", alias: "scsi0-0-0-0", format: "raw", xml: bus("raw", "sda", "scsi", "a")},
		{target: "sdb", alias: "sata0-0-1", format: "qcow2", xml: bus("qcow2", "sdb", "sata", "b")},
		{target: "sdc", alias: "usb-disk2", format: "raw", xml: bus("raw", "sdc", "usb", "c")},
	}
}

func requireDiskTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io", "qemu-nbd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian: qemu-utils)", tool)
		}
	}
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(testContext(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// make creates the disk's images with something in them, and a destination full of something else.
func (d *testDisk) make(t *testing.T, dir string) {
	t.Helper()
	d.source, d.copy = filepath.Join(dir, d.target+".img"), filepath.Join(dir, d.target+".copy")
	d.socket = filepath.Join(dir, d.target+".sock")
	size := fmt.Sprint(imageBytes)
	switch d.format {
	case "chain":
		base := filepath.Join(dir, d.target+".base")
		mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", base, size)
		mustRun(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 192k", base)
		mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", d.source)
		mustRun(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x22 64k 64k", d.source)
	default:
		mustRun(t, "qemu-img", "create", "-q", "-f", d.format, d.source, size)
		mustRun(t, "qemu-io", "-f", d.format, "-c", "write -P 0x33 0 128k", "-c", "write -P 0x44 4194304 4096", d.source)
	}
	if err := os.WriteFile(d.copy, bytes.Repeat([]byte{0xee}, imageBytes), 0o666); err != nil {
		t.Fatal(err)
	}
}

// serve starts an NBD server for the copy. It closes its image and ends when it is killed.
func (d *testDisk) serve(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-nbd", "-t", "-f", "raw", "--discard=unmap", "-x", d.target, "-k", d.socket, d.copy)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { _ = cmd.Wait(); close(gone) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	d.server, d.gone = cmd, gone
	awaitSocket(t, d.socket, gone)
}

func awaitSocket(t *testing.T, socket string, gone <-chan struct{}) {
	t.Helper()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	limit := time.After(20 * time.Second)
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		select {
		case <-gone:
			t.Fatal("the NBD server ended at once")
		case <-limit:
			t.Fatal("the NBD server does not answer")
		case <-retry.C:
		}
	}
}

func diskGuest(disks []*testDisk) string {
	var b strings.Builder
	for _, d := range disks {
		fmt.Fprintf(&b, "<disk type='file' device='disk'><source file='%s'/>%s</disk>", d.source, d.xml)
	}
	b.WriteString(`<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>`)
	return strings.NewReplacer("</devices>", b.String()+"</devices>", "<os>", "<iothreads>1</iothreads><os>").
		Replace(virttest.IdleXML("web1", guestUUID))
}

// findDevices learns QEMU's names of the devices, through which io works as the guest does.
func findDevices(t *testing.T, ctx context.Context, dom *Domain, disks []*testDisk) {
	t.Helper()
	raw, err := dom.QMP(ctx, "query-block", nil)
	if err != nil {
		t.Fatal(err)
	}
	var list []struct{ Qdev string }
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		for _, b := range list {
			if strings.Contains(b.Qdev+"/", d.alias+"/") || b.Qdev == d.alias {
				d.qdev = b.Qdev
			}
		}
		if d.qdev == "" {
			t.Fatalf("no device %s in %s", d.alias, raw)
		}
	}
}

// io does what the guest would do: it goes through the device's own door to the block layer.
func (d *testDisk) io(t *testing.T, ctx context.Context, dom *Domain, command string) {
	t.Helper()
	out, err := dom.HMP(ctx, fmt.Sprintf("qemu-io -d %s %q", d.qdev, command))
	if err != nil || strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		t.Fatalf("%s: %s: %q, %v", d.target, command, out, err)
	}
}

func (d *testDisk) readCopy(t *testing.T, off, n int) []byte {
	t.Helper()
	b, err := os.ReadFile(d.copy)
	if err != nil || len(b) != imageBytes {
		t.Fatalf("copy of %s: %d bytes, %v", d.target, len(b), err)
	}
	return b[off : off+n]
}

// equal compares the disk with its copy while the guest stands still.
func (d *testDisk) equal(t *testing.T) {
	t.Helper()
	format := d.format
	if format == "chain" {
		format = "qcow2"
	}
	mustRun(t, "qemu-img", "compare", "-U", "-f", format, "-F", "raw", d.source, d.copy)
}
