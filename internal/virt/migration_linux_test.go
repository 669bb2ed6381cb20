package virt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

// TestBlockMigration: what moves a guest, or its memory, away is refused while it is blocked, and nothing else.
func TestBlockMigration(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		dom := mustCreate(t, c, "web1", guestUUID)
		before, err := dom.XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mustSucceed(t, "allow what is not blocked", dom.AllowMigration(ctx))
		testCheckpointIgnoresBlocker(t, ctx, dom)

		mustSucceed(t, "block", dom.BlockMigration(ctx))
		mustSucceed(t, "block again", dom.BlockMigration(ctx))
		testMovesRefused(t, ctx, dom)
		if now, err := dom.XML(ctx); err != nil || now != before {
			t.Errorf("the XML, of which a standby is made, changed: %v\n%s", err, now)
		}

		// libvirtd restarted, and another process of ours: it is there, and can be taken away.
		h.Restart(syscall.SIGTERM)
		await(t, events, Reconnected, "")
		other := mustOpen(t, h)
		again, err := other.Lookup(ctx, guestUUID)
		if err != nil {
			t.Fatal(err)
		}
		testMovesRefused(t, ctx, again)
		mustSucceed(t, "block what is blocked", again.BlockMigration(ctx))
		mustSucceed(t, "allow", again.AllowMigration(ctx))
		mustSucceed(t, "allow again", again.AllowMigration(ctx))
		if raw, err := dom.QMP(ctx, "query-fdsets", nil); err != nil || string(raw) != "[]" {
			t.Errorf("descriptors stay behind: %s, %v", raw, err)
		}
		mustSucceed(t, "save what is allowed", save(ctx, dom, filepath.Join(t.TempDir(), "image")))
		mustSucceed(t, "allow what is gone", dom.AllowMigration(ctx))
	})
}

func mustSucceed(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func save(ctx context.Context, d *Domain, path string) error {
	return do(ctx, d, "save", func(h *libvirt.Domain) error { return h.Save(path) })
}

// testMovesRefused tries each door of libvirt through which a guest's memory leaves by QEMU's migration, and
// QEMU's own.
func testMovesRefused(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	dir := t.TempDir()
	doors := map[string]func(*libvirt.Domain) error{
		"migrate": func(h *libvirt.Domain) error { // the check comes before anything is connected
			return h.MigrateToURI3("qemu+tcp://127.0.0.1/system", &libvirt.DomainMigrateParameters{}, libvirt.MIGRATE_LIVE|libvirt.MIGRATE_PEER2PEER)
		},
		"save": func(h *libvirt.Domain) error { return h.Save(filepath.Join(dir, "saved")) },
		"dump": func(h *libvirt.Domain) error { return h.CoreDump(filepath.Join(dir, "core"), libvirt.DUMP_LIVE) },
		"snapshot with memory": func(h *libvirt.Domain) error {
			_, err := h.CreateSnapshotXML(`<domainsnapshot><name>s</name><memory snapshot='external' file='`+filepath.Join(dir, "memory")+`'/></domainsnapshot>`,
				libvirt.DOMAIN_SNAPSHOT_CREATE_LIVE)
			return err
		},
	}
	for name, door := range doors {
		err := do(ctx, d, name, door)
		if err == nil {
			t.Fatalf("%s succeeds", name)
		}
		if strings.Contains(err.Error(), migrationBlocker) {
			t.Logf("%s: %v", name, err)
		} else {
			t.Errorf("%s is refused without a reason: %v", name, err)
		}
	}
	if _, err := d.QMP(ctx, "migrate", map[string]string{"uri": "tcp:127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), migrationBlocker) {
		t.Errorf("QEMU's migrate: %v", err)
	}
	if s, err := d.State(ctx); err != nil || s.Status != Running {
		t.Errorf("afterwards the guest is %+v, %v", s, err)
	}
}

// testCheckpointIgnoresBlocker compares what QEMU writes of a stopped guest, and reports what it costs.
func testCheckpointIgnoresBlocker(t *testing.T, ctx context.Context, d *Domain) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	checkpoint := func() ([]byte, time.Duration) {
		began := time.Now()
		_, err := d.QMP(ctx, "xen-save-devices-state", map[string]any{"filename": path, "live": false})
		took := time.Since(began)
		mustSucceed(t, "checkpoint", err)
		blob, err := os.ReadFile(path)
		mustSucceed(t, "checkpoint", err)
		return blob, took
	}
	mustSucceed(t, "suspend", d.Suspend(ctx))
	without, _ := checkpoint()
	mustSucceed(t, "block", d.BlockMigration(ctx))
	with, _ := checkpoint()
	mustSucceed(t, "allow", d.AllowMigration(ctx))
	if len(without) == 0 || !bytes.Equal(without, with) {
		t.Errorf("device state of %d bytes became %d bytes", len(without), len(with))
	}
	mustSucceed(t, "resume", d.Resume(ctx))
	const turns, each = 5, 6
	var free, blocked []time.Duration
	for range turns { // so that both see the same machine
		for range each {
			_, took := checkpoint()
			free = append(free, took)
		}
		mustSucceed(t, "block", d.BlockMigration(ctx))
		for range each {
			_, took := checkpoint()
			blocked = append(blocked, took)
		}
		mustSucceed(t, "allow", d.AllowMigration(ctx))
	}
	slices.Sort(free)
	slices.Sort(blocked)
	middle := len(free) / 2
	t.Logf("checkpoint, median of %d: %s, with the blocker %s, %.2f times", len(free), free[middle], blocked[middle],
		float64(blocked[middle])/float64(free[middle]))
}

// TestResumedStandbyWaits: "virsh resume" of a standby must not make a guest of it when its state is loaded.
func TestResumedStandbyWaits(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		ctx := testContext(t)
		c := mustOpen(t, h)
		for _, s := range []struct {
			name  string
			stays bool // StayPaused is called before the stream's end
			want  string
		}{
			{name: "as QEMU has it", want: "running"},
			{name: "kept", stays: true, want: "paused"},
		} {
			t.Run(s.name, func(t *testing.T) {
				src := mustCreate(t, c, "web1", guestUUID)
				standby := waitingStandby(t, ctx, c, src)
				mustSucceed(t, "resume of a standby", standby.Resume(ctx))
				if state, err := standby.State(ctx); err != nil || state.Status != Paused {
					t.Errorf("libvirt shows a resumed standby as %+v, %v", state, err)
				}
				if status, err := standby.queryStatus(ctx, "query-status"); err != nil || status != "inmigrate" {
					t.Fatalf("QEMU of a resumed standby: %q, %v", status, err)
				}
				if s.stays {
					mustSucceed(t, "stay paused", standby.StayPaused(ctx))
					mustSucceed(t, "stay paused again", standby.StayPaused(ctx))
				}
				migrateInto(t, ctx, src, standby)
				testLoaded(t, ctx, standby, s.want)
				mustSucceed(t, "destroy", standby.Destroy(ctx))
				mustSucceed(t, "destroy", src.Destroy(ctx))
			})
		}
	})
}

// testLoaded waits for the load, looks what QEMU made of it, and that the standby can be activated however it went.
func testLoaded(t *testing.T, ctx context.Context, s *Standby, want string) {
	t.Helper()
	for {
		status, err := s.queryStatus(ctx, "query-status")
		mustSucceed(t, "query-status", err)
		if status == want {
			break
		}
		if status != "inmigrate" {
			t.Fatalf("loaded, it is %q, and not %q", status, want)
		}
	}
	mustSucceed(t, "wait for the load", s.WaitLoaded(ctx))
	if status, err := s.queryStatus(ctx, "query-status"); err != nil || status != "paused" {
		t.Fatalf("after WaitLoaded: %q, %v", status, err)
	}
	if state, err := s.State(ctx); err != nil || state.Status != Paused {
		t.Errorf("libvirt shows it as %+v, %v", state, err)
	}
	mustSucceed(t, "resume", s.Resume(ctx))
	if status, err := s.queryStatus(ctx, "query-status"); err != nil || status != "running" {
		t.Fatalf("after activation: %q, %v", status, err)
	}
}

// waitingStandby starts a standby of src, under another name: there is one host only.
func waitingStandby(t *testing.T, ctx context.Context, c *Conn, src *Domain) *Standby {
	t.Helper()
	xml, err := src.XML(ctx)
	mustSucceed(t, "XML", err)
	live, err := src.LiveXML(ctx)
	mustSucceed(t, "live XML", err)
	xml = strings.NewReplacer("web1", "web2", guestUUID, standbyUUID).Replace(xml)
	xml, err = StandbyXML(xml, StandbyOptions{Protection: "p1", Generation: 1, PrimaryHost: "hostA", LiveXML: live})
	mustSucceed(t, "standby's XML", err)
	s, err := c.StartStandby(ctx, xml)
	mustSucceed(t, "standby", err)
	return s
}

// migrateInto fills the standby by QEMU's own migration.
func migrateInto(t *testing.T, ctx context.Context, src *Domain, s *Standby) {
	t.Helper()
	_, err := src.QMPWithFiles(ctx, "getfd", map[string]string{"fdname": "out"}, s.Incoming)
	mustSucceed(t, "getfd", err)
	mustSucceed(t, "close", s.Incoming.Close())
	_, err = src.QMP(ctx, "migrate", map[string]string{"uri": "fd:out"})
	mustSucceed(t, "migrate", err)
}

// TestEmptyVDI has qemu-img, which knows the format, look at the blocker's image.
func TestEmptyVDI(t *testing.T) {
	requireDiskTools(t)
	path := filepath.Join(t.TempDir(), "image")
	mustSucceed(t, "write", os.WriteFile(path, emptyVDI(), 0o600))
	var info struct {
		Format string `json:"format"`
		Bytes  int    `json:"virtual-size"`
	}
	mustSucceed(t, "qemu-img info", json.Unmarshal([]byte(mustRun(t, "qemu-img", "info", "--output=json", path)), &info))
	if info.Format != "vdi" || info.Bytes != 0 {
		t.Errorf("qemu-img sees %+v", info)
	}
	mustRun(t, "qemu-img", "check", "-q", path)
}

// TestBlockMigrationConfined does it to a QEMU that is an unprivileged user's, in a mount namespace of its own
// and under seccomp, as libvirt has it by default: such a QEMU could not open a file of ours.
func TestBlockMigrationConfined(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		if _, err := user.Lookup("libvirt-qemu"); err != nil {
			t.Skip("needs the user libvirt-qemu (Debian: libvirt-daemon-system)")
		}
		const conf = "user=\"libvirt-qemu\"\ngroup=\"libvirt-qemu\"\nnamespaces=[\"mount\"]\nseccomp_sandbox=1\ncgroup_controllers=[]\n" +
			"stdio_handler=\"file\"\nsecurity_driver=\"none\"\nremember_owner=0\nhugetlbfs_mount=[]\n"
		ownDev(t)
		mustSucceed(t, "qemu.conf", os.WriteFile("/etc/libvirt/qemu.conf", []byte(conf), 0o644))
		h.Restart(syscall.SIGTERM)
		ctx := testContext(t)
		dom := mustCreate(t, mustOpen(t, h), "web1", guestUUID)
		pid, err := dom.PID()
		mustSucceed(t, "PID", err)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		mustSucceed(t, "status", err)
		ours, err := os.Readlink("/proc/self/ns/mnt")
		mustSucceed(t, "namespace", err)
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		mustSucceed(t, "namespace", err)
		if root := regexp.MustCompile(`(?m)^Uid:\s+0\s`); root.Match(status) || !bytes.Contains(status, []byte("Seccomp:\t2")) || ours == theirs {
			t.Fatalf("this QEMU is not confined: mount namespace %s, ours %s\n%s", theirs, ours, status)
		}
		mustSucceed(t, "block", dom.BlockMigration(ctx))
		testMovesRefused(t, ctx, dom)
		mustSucceed(t, "allow", dom.AllowMigration(ctx))
	})
}

// ownDev puts a /dev with nothing but character devices over the machine's, and takes away what is mounted in
// that, as the file that hides /dev/kvm: libvirt could not take it along into QEMU's namespace.
func ownDev(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	mustSucceed(t, "mounts", err)
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[1]; strings.HasPrefix(at, "/dev/") {
			mustSucceed(t, "unmount "+at, unix.Unmount(at, unix.MNT_DETACH))
		}
	}
	mustSucceed(t, "/dev", unix.Mount("virttest", "/dev", "tmpfs", 0, "mode=0755"))
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		path := filepath.Join("/dev", name)
		mustSucceed(t, path, unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(1, minor))))
		mustSucceed(t, path, os.Chmod(path, 0o666))
	}
}
