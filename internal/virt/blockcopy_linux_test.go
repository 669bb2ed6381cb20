package virt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/virt-ft/virt-ft/internal/virt/virttest"
)

func readyOf(t *testing.T, ctx context.Context, dom *Domain, target string) string {
	t.Helper()
	xml, err := dom.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	copies, err := Copies(xml)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		if c.Target == target {
			return "ready=" + c.Ready
		}
	}
	return "none"
}

// awaitCopy waits for an event about one disk.
func awaitCopy(t *testing.T, events <-chan Event, kind Kind, detail string) {
	t.Helper()
	for {
		if ev := await(t, events, kind, guestUUID); ev.Detail == detail {
			return
		} else if strings.HasPrefix(ev.Detail, detail[:3]) {
			t.Fatalf("%s %q instead of %q", kind, ev.Detail, detail)
		}
	}
}

func mustDefine(t *testing.T, ctx context.Context, c *Conn, xml string) *Domain {
	t.Helper()
	d, err := call(ctx, c, "define", "", func(l *link) (*Domain, error) {
		h, err := l.conn.DomainDefineXML(xml)
		if err != nil {
			return nil, err
		}
		defer func() { _ = h.Free() }()
		if err := h.Create(); err != nil {
			return nil, err
		}
		return c.domainOf(h)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestCopy mirrors disks of every kind that is judged fit, of a persistent domain that runs.
func TestCopy(t *testing.T) {
	virttest.Run(t, func(t *testing.T, h *virttest.Host) {
		requireDiskTools(t)
		ctx := testContext(t)
		c := mustOpen(t, h)
		events, stop := c.Subscribe()
		defer stop()
		dir, disks := t.TempDir(), testDisks()
		for _, d := range disks {
			d.make(t, dir)
		}
		dom := mustDefine(t, ctx, c, diskGuest(disks))
		findDevices(t, ctx, dom, disks)
		xml, err := dom.LiveXML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		before, err := dom.XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mustSucceed(t, "block migration, as with every protected guest", dom.BlockMigration(ctx))
		checkLiveDisks(t, xml, disks)
		for _, d := range disks {
			if size, err := dom.DiskSize(ctx, d.target); err != nil || size.SizeBytes != imageBytes || size.AllocatedBytes == 0 {
				t.Errorf("size of %s: %+v, %v", d.target, size, err)
			}
			d.serve(t)
			if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err != nil {
				t.Fatal(err)
			}
			awaitCopy(t, events, CopyReady, d.target)
			if r := readyOf(t, ctx, dom, d.target); r != "ready=yes" {
				t.Errorf("%s: %s after the event", d.target, r)
			}
		}
		for _, d := range disks {
			testMirrored(t, ctx, dom, d)
		}
		live, err := dom.LiveXML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range Judge(live) {
			if f.Level == Fail {
				t.Errorf("judged with copies under way: %+v", f)
			}
		}
		migratable, err := dom.XML(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range [][2]string{{xml, live}, {before, migratable}} {
			if same, err := SameHardware(pair[0], pair[1]); err != nil || !same {
				t.Errorf("copies change the hardware: %v, %v\n%s\n%s", same, err, pair[0], pair[1])
			}
		}
		testQuietAbort(t, ctx, dom, disks[0], events)
		testXMLDuringCommand(t, ctx, dom, mustOpen(t, h), disks[2], events)
		testServerDies(t, ctx, dom, disks[1], events)
		testServerDies(t, ctx, dom, disks[3], events)
		testAbortNothing(t, ctx, c, dom, disks)
		testStrayCopy(t, ctx, dom, disks[0], events)
		testOrphans(t, ctx, dom, disks)
	})
}

// stray has QEMU copy a disk behind libvirt's back, under the name that libvirt would give the job.
func stray(t *testing.T, ctx context.Context, dom *Domain, d *testDisk, node string) {
	t.Helper()
	raw, err := dom.QMP(ctx, "query-block", nil)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []struct {
		Inserted struct {
			Node string `json:"node-name"`
			File string `json:"file"`
		} `json:"inserted"`
	}
	if err := json.Unmarshal(raw, &blocks); err != nil {
		t.Fatal(err)
	}
	disk := ""
	for _, b := range blocks {
		if strings.Contains(b.Inserted.File, d.source) {
			disk = b.Inserted.Node
		}
	}
	if disk == "" {
		t.Fatalf("no node of %s in %s", d.source, raw)
	}
	for _, c := range []struct {
		command string
		args    map[string]any
	}{
		{"blockdev-add", map[string]any{"driver": "null-co", "node-name": node, "size": imageBytes}},
		{"blockdev-mirror", map[string]any{"job-id": "copy-" + d.target + "-libvirt-99-format", "device": disk, "target": node, "sync": "full", "auto-dismiss": false}},
	} {
		if _, err := dom.QMP(ctx, c.command, c.args); err != nil {
			t.Fatal(err)
		}
	}
}

// testStrayCopy: beside a stray, libvirt cannot begin a copy, nor end the stray.
func testStrayCopy(t *testing.T, ctx context.Context, dom *Domain, d *testDisk, events <-chan Event) {
	t.Helper()
	stray(t, ctx, dom, d, "stray")
	if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err == nil || !strings.Contains(err.Error(), "root block node") {
		t.Errorf("a copy beside a stray one: %v", err)
	}
	if jobs, err := dom.CopyJobs(ctx, []string{"vdx"}); err != nil || len(jobs) != 0 {
		t.Errorf("copies of another disk: %v, %v", jobs, err)
	}
	if jobs, err := dom.CopyJobs(ctx, []string{d.target}); err != nil || len(jobs) != 1 {
		t.Errorf("copies: %v, %v", jobs, err)
	}
	for range 2 {
		mustSucceed(t, "end", dom.EndStrayCopies(ctx, []string{d.target}))
	}
	mustSucceed(t, "start", dom.StartCopy(ctx, d.target, d.socket, d.target))
	awaitCopy(t, events, CopyReady, d.target)
	mustSucceed(t, "abort", dom.AbortCopy(ctx, d.target))
}

// testOrphans: of copies that libvirt knows of, and of strays, nothing is left. One that somebody else began stays.
func testOrphans(t *testing.T, ctx context.Context, dom *Domain, disks []*testDisk) {
	t.Helper()
	ours, lost, others := disks[0], disks[1], disks[2]
	mustSucceed(t, "start", dom.StartCopy(ctx, ours.target, ours.socket, ours.target))
	stray(t, ctx, dom, lost, "lost")
	theirs := *others
	theirs.target, theirs.socket, theirs.copy = "somebody", others.socket+"-theirs", others.copy+"-theirs"
	mustSucceed(t, "image", errors.Join(os.WriteFile(theirs.copy, nil, 0o666), os.Truncate(theirs.copy, imageBytes)))
	theirs.serve(t)
	mustSucceed(t, "start", dom.StartCopy(ctx, others.target, theirs.socket, theirs.target))
	mustSucceed(t, "suspend", dom.Suspend(ctx))
	for range 2 {
		mustSucceed(t, "end", dom.EndOrphans(ctx))
	}
	mustSucceed(t, "resume", dom.Resume(ctx))
	for d, want := range map[*testDisk]int{ours: 0, lost: 0, others: 1} {
		jobs, err := dom.CopyJobs(ctx, []string{d.target})
		if err != nil || len(jobs) != want {
			t.Errorf("copies of %s: %v, %v", d.target, jobs, err)
		}
	}
	mustSucceed(t, "abort", dom.AbortCopy(ctx, others.target))
}

func checkLiveDisks(t *testing.T, xml string, disks []*testDisk) {
	t.Helper()
	got, err := Disks(xml)
	if err != nil || len(got) != len(disks) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, d := range disks {
		for _, g := range got {
			if g.Target == d.target && (g.Path != d.source || g.Backing != (d.format == "chain") || !g.Replicated()) {
				t.Errorf("%+v of %s", g, xml)
			}
		}
		expect(t, Judge(xml), "disk "+d.target, OK, "replicated")
	}
}

// testMirrored: what the device wrote is in the copy as soon as the write has completed.
func testMirrored(t *testing.T, ctx context.Context, dom *Domain, d *testDisk) {
	t.Helper()
	d.io(t, ctx, dom, "write -P 0x5a 65000 70000") // across blocks, and into the middle of them
	if !bytes.Equal(d.readCopy(t, 65000, 70000), bytes.Repeat([]byte{0x5a}, 70000)) {
		t.Errorf("%s: a write did not arrive", d.target)
	}
	d.io(t, ctx, dom, "write -z 65536 131072")
	d.io(t, ctx, dom, "write -z -u 1048576 65536")
	d.io(t, ctx, dom, "write -f -P 0x6b 2097152 4096")
	d.io(t, ctx, dom, "discard 0 65536")
	if _, err := dom.QMP(ctx, "stop", nil); err != nil {
		t.Fatal(err)
	}
	d.equal(t)
	if got := d.readCopy(t, 2097152, 1)[0]; got != 0x6b {
		t.Errorf("%s: %#x in the copy", d.target, got)
	}
	if got := d.readCopy(t, 0, 1)[0]; got == 0 {
		t.Logf("%s: this QEMU lets discards through to the copy", d.target)
	}
	if _, err := dom.QMP(ctx, "cont", nil); err != nil {
		t.Fatal(err)
	}
	if p, err := dom.CopyProgress(ctx, d.target); err != nil || !p.Running || p.DoneBytes == 0 || p.DoneBytes != p.TotalBytes {
		t.Errorf("progress of %s: %+v, %v", d.target, p, err)
	}
}

// testQuietAbort ends a copy; the guest keeps its disk.
func testQuietAbort(t *testing.T, ctx context.Context, dom *Domain, d *testDisk, events <-chan Event) {
	t.Helper()
	if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err == nil {
		t.Error("a second copy of the same disk")
	}
	if err := dom.AbortCopy(ctx, d.target); err != nil {
		t.Fatal(err)
	}
	if r := readyOf(t, ctx, dom, d.target); r != "none" {
		t.Errorf("after the abort: %s", r)
	}
	awaitCopy(t, events, CopyEnded, d.target+" canceled")
	d.io(t, ctx, dom, "write -P 0x7c 0 4096")
	if d.readCopy(t, 0, 1)[0] == 0x7c {
		t.Error("the copy is still written")
	}
	xml, err := dom.LiveXML(ctx)
	if err != nil || !strings.Contains(xml, d.source) {
		t.Errorf("the source changed: %v\n%s", err, xml)
	}
}

// testXMLDuringCommand: the live XML can be read while a monitor command of ours holds the domain's job, and an abort
// cannot begin before that command is answered. Afterwards the XML tells it, at the latest, by the time that another
// monitor command runs. The XML is read on another connection: see the package's comment.
func testXMLDuringCommand(t *testing.T, ctx context.Context, dom *Domain, other *Conn, d *testDisk, events <-chan Event) {
	t.Helper()
	aside := &Domain{conn: other, name: dom.name, uuid: dom.uuid}
	fifo := d.source + ".fifo"
	if err := syscall.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	brake, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer brake.Close()
	saved := make(chan error, 1)
	go func() {
		_, err := dom.QMP(ctx, "xen-save-devices-state", map[string]any{"filename": fifo, "live": false})
		saved <- err
	}()
	if _, err := brake.Read(make([]byte, 1)); err != nil { // QEMU writes: the guest is stopped, the command not answered
		t.Fatal(err)
	}
	aborted := make(chan error, 1)
	go func() {
		aborted <- do(ctx, dom, "abort", func(h *libvirt.Domain) error {
			return h.BlockJobAbort(d.target, libvirt.DOMAIN_BLOCK_JOB_ABORT_ASYNC)
		})
	}()
	var took []time.Duration
	for range 200 {
		begun := time.Now()
		if r := readyOf(t, ctx, aside, d.target); r != "ready=yes" {
			t.Fatalf("while the command is under way: %s", r)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	t.Logf("live XML while QEMU is stopped in a command: median %s, worst of %d %s", took[len(took)/2], len(took), took[len(took)-1])
	select {
	case err := <-saved:
		t.Fatalf("the command was answered already: %v", err)
	case err := <-aborted:
		t.Fatalf("the abort passed the command: %v", err)
	default:
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for b := make([]byte, 1<<16); ; {
			if _, err := brake.Read(b); err != nil {
				return
			}
		}
	}()
	if err := errors.Join(<-saved, <-aborted); err != nil {
		t.Fatal(err)
	}
	brake.Close()
	<-drained
	if _, err := dom.QMP(ctx, "query-status", nil); err != nil {
		t.Fatal(err)
	}
	r := readyOf(t, ctx, dom, d.target)
	t.Logf("after the abort and another command: %s", r)
	if r == "ready=yes" {
		t.Error("the XML does not tell that the copy was aborted")
	}
	awaitCopy(t, events, CopyEnded, d.target+" canceled")
}

// testServerDies: the guest notices nothing, and we are told.
func testServerDies(t *testing.T, ctx context.Context, dom *Domain, d *testDisk, events <-chan Event) {
	t.Helper()
	if err := d.server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.gone
	d.io(t, ctx, dom, "write -P 0x8d 3145728 65536")
	d.io(t, ctx, dom, "read -P 0x8d 3145728 65536")
	awaitCopy(t, events, CopyEnded, d.target+" failed")
	if r := readyOf(t, ctx, dom, d.target); r != "none" {
		t.Errorf("after the server died: %s", r)
	}
	if state, err := dom.State(ctx); err != nil || state.Status != Running {
		t.Errorf("the guest is %+v, %v", state, err)
	}
	if err := dom.AbortCopy(ctx, d.target); err != nil {
		t.Errorf("abort of a copy that failed: %v", err)
	}
	if p, err := dom.CopyProgress(ctx, d.target); err != nil || p.Running {
		t.Errorf("progress of a copy that failed: %+v, %v", p, err)
	}
	d.serve(t) // and another one can begin
	if err := dom.StartCopy(ctx, d.target, d.socket, d.target); err != nil {
		t.Fatal(err)
	}
	awaitCopy(t, events, CopyReady, d.target)
	err := do(ctx, dom, "abort", func(h *libvirt.Domain) error {
		return h.BlockJobAbort(d.target, libvirt.DOMAIN_BLOCK_JOB_ABORT_ASYNC)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := dom.AbortCopy(ctx, d.target); err != nil { // waits for the other one
		t.Error(err)
	}
	if r := readyOf(t, ctx, dom, d.target); r != "none" {
		t.Errorf("after two aborts: %s", r)
	}
}

// testAbortNothing: neither a missing job nor a missing domain is an error.
func testAbortNothing(t *testing.T, ctx context.Context, c *Conn, dom *Domain, disks []*testDisk) {
	t.Helper()
	if err := dom.AbortCopy(ctx, disks[0].target); err != nil {
		t.Errorf("abort without a copy: %v", err)
	}
	if err := dom.AbortCopy(ctx, "vdz"); err == nil {
		t.Error("abort of a disk that does not exist")
	}
	if err := dom.StartCopy(ctx, disks[0].target, disks[0].socket+"-none", "x"); err == nil {
		t.Error("copy to a server that does not exist")
	}
	if err := dom.Destroy(ctx); err != nil { // with copies under way
		t.Fatal(err)
	}
	if err := dom.AbortCopy(ctx, disks[4].target); err != nil {
		t.Errorf("abort on a stopped domain: %v", err)
	}
	if err := (&Domain{conn: c, name: "web9", uuid: standbyUUID}).AbortCopy(ctx, "vda"); err != nil {
		t.Errorf("abort on an unknown domain: %v", err)
	}
	testStale(t, ctx, c, dom)
}

// testStale marks the definition of a domain that was stopped.
func testStale(t *testing.T, ctx context.Context, c *Conn, dom *Domain) {
	t.Helper()
	if _, err := dom.Stale(ctx); !errors.Is(err, ErrNoNote) {
		t.Fatalf("stale mark of a plain domain: %v", err)
	}
	if err := dom.ClearStale(ctx); err != nil {
		t.Errorf("clear without a mark: %v", err)
	}
	want := Stale{Generation: 1 << 60, ActiveHost: `a"b<c>`, Since: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)}
	if err := dom.NoteStale(ctx, want); err != nil {
		t.Fatal(err)
	}
	if got, err := dom.Stale(ctx); err != nil || got != want {
		t.Fatalf("stale mark: %+v, %v", got, err)
	}
	start := func(h *libvirt.Domain) error { return h.Create() }
	if err := do(ctx, dom, "start", start); err != nil { // an operator who knows what he does
		t.Fatal(err)
	}
	marked, err := dom.LiveXML(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkMetadata(t, marked, 1)
	if _, err := dom.Note(ctx); !errors.Is(err, ErrNoNote) {
		t.Errorf("note of a domain started from a marked definition: %v", err)
	}
	if err := dom.ClearNote(ctx); err != nil {
		t.Errorf("clear note of such a domain: %v", err)
	}
	if left, err := c.Leftovers(ctx); err != nil || len(left) != 0 {
		t.Errorf("leftovers: %v, %v", left, err)
	}
	if err := dom.ClearStale(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := dom.Stale(ctx); !errors.Is(err, ErrNoNote) {
		t.Errorf("after clear: %v", err)
	}
	ghost := &Domain{conn: c, name: "web9", uuid: standbyUUID}
	if err := errors.Join(ghost.NoteStale(ctx, want), ghost.ClearStale(ctx)); err != nil {
		t.Errorf("mark of a domain without definition: %v", err)
	}
}
