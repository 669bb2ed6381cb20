package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/ptracer"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(endingEnv) != "" {
		endingHelper()
	}
	ptracer.MaybeInject()
	if os.Getenv(victimEnv) != "" {
		victim()
	}
	os.Exit(m.Run())
}

var tcg = []string{"-accel", "tcg", "-m", "64"}

func with(args []string, more ...string) []string {
	return append(append([]string{}, args...), more...)
}

// busy is a guest that dirties a few hundred pages in 10 ms.
func busy() qmptest.Payload {
	return qmptest.Payload{Delay: 2000, BaseMiB: 16, Pages: 8192, SMP: true, DMA: true, VGA: true}
}

func open(t testing.TB, g *qmptest.Guest, o Options) *Session {
	t.Helper()
	s, err := Open(t.Context(), g.PID, g, o)
	if errors.Is(err, guestram.ErrUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// replica is the guest's memory as a backup would have it: zero, and then what
// batches say.
type replica struct {
	blocks []guestram.Block
	mem    [][]byte
	taken  int // checkpoints
	// foreseen are those whose device state was known to be whole before the
	// monitor said so.
	foreseen int
}

func newReplica(blocks []guestram.Block) *replica {
	r := &replica{blocks: blocks}
	for _, b := range blocks {
		r.mem = append(r.mem, make([]byte, b.Used))
	}
	return r
}

func (r *replica) apply(b *Batch) error {
	defer b.Free()
	at := 0
	for _, g := range b.Ranges {
		at += copy(r.mem[g.Block][g.Off:g.End()], b.Data[at:])
	}
	if at != len(b.Data) {
		return fmt.Errorf("%d bytes of data, ranges hold %d", len(b.Data), at)
	}
	return nil
}

func (r *replica) checkpoint(t testing.TB, s *Session) *Checkpoint {
	t.Helper()
	// Every second one hands out what it has early.
	var batch *Batch
	var early func(*Batch)
	var device []byte
	var whole func([]byte)
	if r.taken++; r.taken%2 == 0 {
		early = func(b *Batch) { batch = b }
		whole = func(d []byte) { device = bytes.Clone(d) }
	}
	c, err := s.Checkpoint(t.Context(), CheckpointOptions{Early: early, Whole: whole})
	if err != nil {
		t.Fatal(err)
	}
	if device != nil {
		r.foreseen++
		if !bytes.Equal(device, c.Device) {
			t.Fatalf("%d bytes of device state were said to be all of %d", len(device), len(c.Device))
		}
	}
	if batch == nil {
		batch = c.Batch
	} else if c.Batch != nil {
		t.Fatal("the batch was handed out twice")
	}
	if len(c.Device) < 8 || string(c.Device[:4]) != "QEVM" {
		t.Fatalf("device state of %d bytes: %.8q", len(c.Device), c.Device)
	}
	if batch == nil { // nothing was written
		return c
	}
	if err := r.apply(batch); err != nil {
		t.Fatal(err)
	}
	return c
}

// compare stops the guest, takes one more checkpoint and compares all memory.
func (r *replica) compare(t testing.TB, g *qmptest.Guest, s *Session) {
	t.Helper()
	qmp(t, g, "stop")
	r.checkpoint(t, s)
	if now := status(t, g); now != "paused" {
		t.Errorf("a stopped guest is %s after a checkpoint", now)
	}
	rd, err := guestram.NewReader(g.PID, r.blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for i, b := range r.blocks {
		now := make([]byte, b.Used)
		if _, err := rd.Read([]guestram.Range{{Block: uint16(i), Pages: uint32(b.Used / guestram.PageSize)}}, now); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(now, r.mem[i]) {
			continue
		}
		n := 0
		for p := 0; p < len(now); p += guestram.PageSize {
			if !bytes.Equal(now[p:p+guestram.PageSize], r.mem[i][p:p+guestram.PageSize]) {
				if n++; n < 5 {
					t.Errorf("block %s: page at %#x differs", b.Name, p)
				}
			}
		}
		t.Fatalf("block %s: %d pages differ", b.Name, n)
	}
	if st := status(t, g); st != "paused" {
		t.Fatalf("a stopped guest is %s after a checkpoint", st)
	}
	qmp(t, g, "cont")
}

func qmp(t testing.TB, g *qmptest.Guest, cmd string) {
	t.Helper()
	if _, err := g.QMP(t.Context(), cmd, nil); err != nil {
		t.Fatal(err)
	}
}

func status(t testing.TB, m Monitor) string {
	t.Helper()
	raw, err := m.QMP(t.Context(), "query-status", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), `"status": "`)
	st, _, _ := strings.Cut(after, `"`)
	return st
}

// ticks is the counter of a guest CPU.
func ticks(t testing.TB, g *qmptest.Guest, s *Session, cpu int) uint32 {
	t.Helper()
	var buf [guestram.PageSize]byte
	for i, b := range s.Blocks() {
		if b.Name == "pc.ram" || b.Name == "ram-node0" {
			if _, err := guestram.Read(g.PID, s.Blocks(), []guestram.Range{{Block: uint16(i), Pages: 1, Off: qmptest.TicksAt(cpu)}}, buf[:]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return uint32(buf[0]) | uint32(buf[1])<<8 | uint32(buf[2])<<16 | uint32(buf[3])<<24
}

// within polls for up to d.
func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(time.Millisecond)
	}
}

func needKVM(t testing.TB) {
	if testing.Short() {
		t.Skip("KVM is left out of short tests: nested, it needs half a minute to boot")
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/kvm: ", err)
	}
	f.Close()
}

// The backup's memory equals the stopped guest's, byte for byte, after many
// epochs, for all shapes of guests.
func TestReplicaEqualsGuest(t *testing.T) {
	epochs := 120
	if testing.Short() {
		epochs = 60
	}
	kvm := []string{"-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", "64"}
	memfd := []string{"-object", "memory-backend-memfd,id=pc.ram,size=64M,share=on"}
	for name, o := range map[string]qmptest.Options{
		"q35 anonymous": {Machine: "q35", Args: with(tcg, "-smp", "2")},
		"q35 no THP":    {Machine: "q35", Args: with(tcg, "-smp", "2"), NoTHP: true},
		"q35 memfd":     {Machine: "q35,memory-backend=pc.ram", Args: with(with(tcg, "-smp", "2"), memfd...)},
		"pc":            {Machine: "pc", Args: with(tcg, "-smp", "2")},
		"q35 NUMA": {Machine: "q35", Args: with(tcg, "-smp", "2",
			"-object", "memory-backend-memfd,id=ram-node0,size=32M,share=on", "-numa", "node,nodeid=0,cpus=0,memdev=ram-node0",
			"-object", "memory-backend-ram,id=ram-node1,size=32M", "-numa", "node,nodeid=1,cpus=1,memdev=ram-node1")},
		"q35 KVM":       {Machine: "q35", Args: kvm},
		"q35 KVM memfd": {Machine: "q35,memory-backend=pc.ram", Args: with(kvm, memfd...)},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "KVM") {
				needKVM(t)
			}
			o.Payload = busy()
			cpu := 1 // the last one
			if strings.Contains(name, "KVM") {
				// Nested, KVM may run a thousand times slower than TCG does.
				cpu, o.Payload.Delay, o.Payload.SMP = 0, 20, false
			}
			g := qmptest.Start(t, o)
			s := open(t, g, Options{})
			r := newReplica(s.Blocks())
			within(t, 90*time.Second, "guest writes", func() bool { return ticks(t, g, s, cpu) != 0 })
			huge := memoryKiB(t, g.PID, "smaps_rollup", "AnonHugePages:")
			if o.NoTHP && huge > 0 {
				t.Errorf("huge pages are off, and QEMU has %d KiB in them", huge)
			}
			pages, live, longest := 0, 0, int64(0)
			for e := range epochs {
				if e%2 == 0 { // with and without a live pass
					n, err := s.Live(t.Context(), r.apply)
					if err != nil {
						t.Fatal(err)
					}
					live += n
				}
				c := r.checkpoint(t, s)
				if now := status(t, g); now != "running" {
					t.Fatalf("epoch %d: the guest is %s", e, now)
				}
				pages += c.Phases.Pages
				longest = max(longest, c.Phases.TotalNs)
				if e%(epochs/10) == 0 {
					r.compare(t, g, s)
				}
			}
			r.compare(t, g, s)
			if pages < epochs {
				t.Errorf("only %d pages in %d epochs: the guest does not write", pages, epochs)
			}
			if r.foreseen == 0 {
				t.Error("no device state was known to be whole before the monitor said so")
			}
			t.Logf("%d epochs: %d foreseen, %d pages live, %d under pause, %d MiB in huge pages; longest checkpoint %.1f ms", epochs, r.foreseen, live, pages, huge>>10, float64(longest)/1e6)
		})
	}
}

func TestBlocksOfQEMU(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35,memory-backend=pc.ram", Args: with(tcg,
		"-object", "memory-backend-memfd,id=pc.ram,size=64M,share=on")})
	blocks, err := guestram.Blocks(t.Context(), g.PID, g.HMP)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]guestram.Block{}
	for _, b := range blocks {
		found[b.Name] = b
	}
	for _, name := range []string{"pc.ram", "pc.bios", "pc.rom", "/rom@etc/acpi/tables"} {
		if _, ok := found[name]; !ok {
			t.Errorf("no block %s among %v", name, blocks)
		}
	}
	ram := found["pc.ram"]
	if !ram.Shared || ram.MemfdInode == 0 || ram.Used != 64<<20 {
		t.Errorf("%+v", ram)
	}
	if found["pc.bios"].Shared {
		t.Error("pc.bios is taken for shared memory")
	}
	m, err := guestram.OpenShared(g.PID, ram)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	before := m.Bytes()[qmptest.TicksAt(0)]
	within(t, 5*time.Second, "guest's counter moves in our mapping", func() bool { return m.Bytes()[qmptest.TicksAt(0)] != before })
	if _, err := guestram.OpenShared(g.PID, found["pc.bios"]); err == nil {
		t.Error("mapped an anonymous block")
	}
}

// A guest whose memory is mostly untouched must not grow by being captured.
func TestCaptureDoesNotInflateGuest(t *testing.T) {
	for name, args := range map[string][]string{
		"memfd":     {"-object", "memory-backend-memfd,id=pc.ram,size=512M,share=on"},
		"anonymous": {"-object", "memory-backend-ram,id=pc.ram,size=512M"},
	} {
		t.Run(name, func(t *testing.T) {
			p := busy()
			p.Pages = 256
			g := qmptest.Start(t, qmptest.Options{Machine: "q35,memory-backend=pc.ram", NoTHP: true, Payload: p,
				Args: with([]string{"-accel", "tcg", "-m", "512"}, args...)})
			s := open(t, g, Options{})
			before := memoryKiB(t, g.PID, "status", "VmRSS:")
			for range 20 {
				if _, err := s.Live(t.Context(), func(b *Batch) error { b.Free(); return nil }); err != nil {
					t.Fatal(err)
				}
				c, err := s.Checkpoint(t.Context(), CheckpointOptions{})
				if err != nil {
					t.Fatal(err)
				}
				c.Batch.Free()
			}
			if grown := memoryKiB(t, g.PID, "status", "VmRSS:") - before; grown > 32<<10 {
				t.Errorf("QEMU grew by %d KiB", grown)
			}
		})
	}
}

// memoryKiB is a figure of a file in /proc/PID.
func memoryKiB(t *testing.T, pid int, file, key string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), key)
	kib := 0
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// Session.Close leaves neither a descriptor nor a registration in QEMU.
func TestCloseLeavesNothing(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	before := descriptors(t, g.PID)
	s := open(t, g, Options{})
	newReplica(s.Blocks()).checkpoint(t, s)
	if err := errors.Join(s.Close(t.Context()), s.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t, g.PID); after != before {
		t.Errorf("descriptors before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Checkpoint after Close: %v", err)
	}
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", g.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(smaps), "\n") {
		if strings.HasPrefix(l, "VmFlags:") && strings.Contains(l, " uw") {
			t.Errorf("still registered: %s", l)
		}
	}
}

// descriptors lists the pipes, eventfds and so on that a process has; those of
// the monitor's sockets come and go.
func descriptors(t *testing.T, pid int) string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range list {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && !strings.HasPrefix(link, "socket:") {
			fmt.Fprintln(&b, e.Name(), link)
		}
	}
	return b.String()
}

// The number of the pipe in QEMU comes to mean a disk image: nothing may be
// sent, or QEMU would truncate the image.
func TestReusedDescriptorIsRefused(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	newReplica(s.Blocks()).checkpoint(t, s)
	path := t.TempDir() + "/disk.img"
	content := bytes.Repeat([]byte("disk"), 1<<18)
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
	img, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	raw, err := g.QMPWithFiles(t.Context(), "add-fd", map[string]any{"fdset-id": 5}, img)
	if err != nil {
		t.Fatal(err)
	}
	var added struct{ Fd int }
	if _, err := fmt.Sscanf(string(raw[bytes.LastIndex(raw, []byte(`"fd": `)):]), `"fd": %d`, &added.Fd); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	// dup3 onto the number: as after a close and an unlucky open.
	if _, err := ptracer.Remote(t.Context(), g.PID, ptracer.Call{Nr: unix.SYS_DUP3,
		Args: [6]uint64{uint64(added.Fd), uint64(s.pipe.remote), unix.O_CLOEXEC}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.Is(err, ErrLostPipe) {
		t.Errorf("Checkpoint: %v", err)
	}
	if st := status(t, g); st != "running" {
		t.Errorf("guest is %s", st)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", g.PID, s.pipe.remote)); link != path {
		t.Errorf("Close closed a descriptor that is not ours: %q", link)
	}
	now, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(now, content) {
		t.Errorf("the disk image was damaged: %d bytes of %d, %v", len(now), len(content), err)
	}
	// A closed number is refused as well.
	s = open(t, g, Options{})
	if err := closeRemote(t.Context(), g.PID, s.pipe.remote); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.Is(err, ErrLostPipe) {
		t.Errorf("Checkpoint: %v", err)
	}
}
