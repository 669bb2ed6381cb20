package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// victimDir makes this test binary a lab that waits to be killed.
const victimDir = "VIRTFT_LAB_TEST_VICTIM"

func TestMain(m *testing.M) {
	MaybeHost()
	if dir := os.Getenv(victimDir); dir != "" {
		l, err := New(context.Background(), Options{Dir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for _, h := range l.Hosts() {
			pids, err := h.Processes()
			fmt.Println(pids, err)
		}
		select {}
	}
	os.Exit(m.Run())
}

// newLab makes a lab, or skips the test with what is missing for one.
func newLab(t *testing.T) (*Lab, GuestOptions) {
	t.Helper()
	assets, err := FindAssets()
	skipMissing(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := New(ctx, Options{})
	skipMissing(t, err)
	t.Cleanup(l.Close)
	o, err := l.InstallBoot(assets)
	if err != nil {
		t.Fatal(err)
	}
	return l, o
}

func skipMissing(t *testing.T, err error) {
	t.Helper()
	var missing *MissingError
	if errors.As(err, &missing) {
		t.Skip(missing)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestGuestOnTwoHosts(t *testing.T) {
	start := time.Now()
	l, boot := newLab(t)
	t.Logf("lab up after %v", time.Since(start))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	o, err := NewObserver(l, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for _, h := range l.Hosts() {
		if _, err := h.Virsh(ctx, "list"); err != nil {
			t.Error(err)
		}
		if name, err := h.Run(ctx, "hostname"); err != nil || strings.TrimSpace(name) != h.Name {
			t.Errorf("%s calls itself %q, %v", h.Name, name, err)
		}
	}
	if _, err := l.A.Run(ctx, "ping", "-c1", "-W5", ReplicationB); err != nil && !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
	boot.NIC = true
	g, err := l.A.StartGuest(ctx, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("guest ready after %v", time.Since(start))
	t.Run("ticks", func(t *testing.T) { checkTicks(ctx, t, l, o, g) })
	t.Run("commands", func(t *testing.T) { checkCommands(ctx, t, l, g) })
	t.Run("client link", func(t *testing.T) { checkClientLink(ctx, t, l, o) })
	t.Run("libvirtd restart", func(t *testing.T) { checkLibvirtdRestart(ctx, t, l.A, o, g) })
	t.Run("power loss", func(t *testing.T) { checkPowerLoss(ctx, t, l, g) })
}

func checkTicks(ctx context.Context, t *testing.T, l *Lab, o *Observer, g *Guest) {
	first, err := o.WaitTick(ctx, func(n Observation) bool { return n.Passes > 0 })
	if err != nil {
		t.Fatal(err)
	}
	if first.Host != l.A.Name || first.BootID != g.Ready.BootID || first.Pid != 1 || first.MemErrors != 0 {
		t.Errorf("tick %+v from a guest that said %+v", first, g.Ready)
	}
	b, err := l.A.OpenBeacon(ctx, g.Name, g.Ready.BeaconGPA)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		seen, _ := o.Last()
		now, err := b.Read()
		if err != nil {
			t.Fatal(err)
		}
		if now.BootID != g.Ready.BootID || now.Counter < seen.Counter {
			t.Fatalf("memory says %+v, the network was told %+v before", now, seen.Tick)
		}
	}
}

func checkCommands(ctx context.Context, t *testing.T, l *Lab, g *Guest) {
	status, err := l.Command(ctx, "status")
	if err != nil || status["boot_id"] != g.Ready.BootID.String() || status["mem_errors"] != 0.0 {
		t.Fatalf("status %v, %v", status, err)
	}
	b, err := l.A.OpenBeacon(ctx, g.Name, g.Ready.BeaconGPA)
	if err != nil {
		t.Fatal(err)
	}
	spun := make(chan error, 1)
	go func() {
		answer, err := l.Command(ctx, "spin 1500")
		if err == nil && answer["reads"].(float64) < 1000 {
			err = errors.New("hardly any clock reads")
		}
		spun <- err
	}()
	stalls, longest, err := b.Stalls(ctx, time.Second, 5*time.Millisecond)
	t.Logf("a spinning guest stood still for %v at most, %d times 5 ms or more", longest, len(stalls))
	if err := errors.Join(err, <-spun); err != nil {
		t.Error(err)
	}
	if _, err := l.Command(ctx, "nonsense"); err == nil {
		t.Error("the guest obeys nonsense")
	}
}

func checkClientLink(ctx context.Context, t *testing.T, l *Lab, o *Observer) {
	if err := errors.Join(l.CutReplication(), l.A.CutClient()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := l.Command(short, "status"); err == nil {
		t.Error("the guest answers over a cut link")
	}
	if out, err := l.A.Run(ctx, "ping", "-c1", "-W1", ReplicationB); err == nil {
		t.Errorf("ping over a cut link: %s", out)
	}
	if err := errors.Join(l.HealReplication(), l.A.HealClient()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Command(ctx, "status"); err != nil {
		t.Error(err)
	}
	if _, err := o.WaitTick(ctx, func(Observation) bool { return true }); err != nil {
		t.Error(err)
	}
}

func checkLibvirtdRestart(ctx context.Context, t *testing.T, h *Host, o *Observer, g *Guest) {
	pid, err := h.QEMU(g.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Libvirtd.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Virsh(ctx, "domstate", g.Name); err != nil || !strings.Contains(out, "running") {
		t.Errorf("domain after a restart of libvirtd: %q, %v", out, err)
	}
	if again, err := h.QEMU(g.Name); err != nil || again != pid {
		t.Errorf("QEMU was process %d, is %d, %v", pid, again, err)
	}
	if _, err := o.WaitTick(ctx, func(Observation) bool { return true }); err != nil {
		t.Error(err)
	}
}

func checkPowerLoss(ctx context.Context, t *testing.T, l *Lab, g *Guest) {
	before, err := l.A.Processes()
	if err != nil || len(before) < 3 {
		t.Fatalf("processes of A: %v, %v", before, err)
	}
	l.A.PowerOff()
	for _, pid := range before {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d of A survived the power loss", pid)
		}
	}
	if _, err := l.A.Virsh(ctx, "list"); !errors.Is(err, ErrClosed) {
		t.Errorf("a host that is off answers: %v", err)
	}
	if _, err := l.B.Virsh(ctx, "list"); err != nil {
		t.Error(err)
	}
	if err := l.A.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if out, err := l.A.Virsh(ctx, "list", "--all"); err != nil || strings.Contains(out, g.Name) {
		t.Errorf("after the power is back: %q, %v", out, err)
	}
}

// TestCloseLeavesNothing compares what the kernel knows before and after.
func TestCloseLeavesNothing(t *testing.T) {
	skipMissing(t, checkMachine())
	mounts := func() string {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	mountsBefore := mounts()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := New(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	namespaces := map[string]string{}
	for _, h := range l.Hosts() {
		root, err := h.Root("")
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"pid", "net", "mnt"} {
			link, err := os.Readlink(filepath.Join(filepath.Dir(root), "ns", kind))
			if err != nil {
				t.Fatal(err)
			}
			namespaces[link] = kind
		}
	}
	l.Close()
	l.Close()
	for link, kind := range namespaces {
		if pids, err := processesIn(kind, link); err != nil || len(pids) > 0 {
			t.Errorf("processes %v are still in %s, %v", pids, link, err)
		}
	}
	if after := mounts(); after != mountsBefore {
		t.Errorf("mounts were\n%s\nand are\n%s", mountsBefore, after)
	}
	if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory %s: %v", l.Dir, err)
	}
	if _, err := l.A.Run(ctx, "true"); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed lab runs programs: %v", err)
	}
}

// TestKilledLabTakesItsHostsAlong kills a lab that has no chance to clean up.
func TestKilledLabTakesItsHostsAlong(t *testing.T) {
	skipMissing(t, checkMachine())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimDir+"="+t.TempDir())
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var pidfds []unix.PollFd
	lines := bufio.NewScanner(pipe)
	for range 2 {
		if !lines.Scan() {
			t.Fatal("the lab did not come up")
		}
		for word := range strings.FieldsSeq(strings.NewReplacer("[", " ", "]", " ").Replace(lines.Text())) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				continue // the error column, "<nil>"
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatalf("process %d: %v", pid, err)
			}
			defer unix.Close(fd)
			pidfds = append(pidfds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	if len(pidfds) < 4 {
		t.Fatalf("only %d processes in two hosts", len(pidfds))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for i := range pidfds {
		if n, err := unix.Poll(pidfds[i:i+1], 10_000); n != 1 {
			t.Errorf("a host's process outlived the lab by 10 s (%v)", err)
		}
	}
}

// TestGuestShapes boots what is not a plain guest. A rich pc is booted by the
// end-to-end tests.
func TestGuestShapes(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: boots two guests")
	}
	l, boot := newLab(t)
	for name, o := range map[string]GuestOptions{
		"rich numa memfd":    {Rich: true, NUMACells: 2, VCPUs: 2, Memory: "memfd", NIC: true},
		"pc without network": {Machine: "pc", Cmdline: "ft.mem_mb=8"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			o.Name, o.Kernel, o.Initrd = strings.ReplaceAll(name, " ", "-"), boot.Kernel, boot.Initrd
			g, err := l.A.StartGuest(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			b, err := l.A.OpenBeacon(ctx, g.Name, g.Ready.BeaconGPA)
			if err != nil {
				t.Fatal(err)
			}
			if seen, err := b.Read(); err != nil || seen.BootID != g.Ready.BootID {
				t.Errorf("beacon %+v, %v", seen, err)
			}
			if _, err := l.A.Virsh(ctx, "destroy", g.Name); err != nil {
				t.Error(err)
			}
		})
	}
}
