package netgate

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

const qemuBinary = "qemu-system-x86_64"

// TestQEMU: the lab's guest in a real QEMU answers through a gate that holds
// when its answer is released, and not before: with a multiqueue virtio card,
// and with an e1000, which has neither queues nor a header of its own.
func TestQEMU(t *testing.T) {
	inNamespace(t)
	if _, err := exec.LookPath(qemuBinary); err != nil {
		t.Skip("needs " + qemuBinary)
	}
	assets, err := lab.FindAssets()
	var missing *lab.MissingError
	if errors.As(err, &missing) {
		t.Skip(missing)
	}
	must(t, err)
	boot, err := (&lab.Lab{Dir: t.TempDir()}).InstallBoot(assets)
	must(t, err)
	boot.Initrd = lab.RichInitrd(boot.Initrd) // with drivers for both cards
	bridge(t)
	must(t, configure("br0", "10.78.0.1"))
	for _, card := range []struct {
		queues int
		device string
	}{
		{2, "virtio-net-pci,netdev=n,mq=on,vectors=6"},
		{1, "e1000,netdev=n"},
	} {
		qemuAnswers(t, boot, card.queues, card.device)
		if t.Failed() {
			t.Fatalf("with %s", card.device)
		}
	}
}

func qemuAnswers(t *testing.T, boot lab.GuestOptions, queues int, device string) {
	const dev = "vnet0"
	persistentTap(t, dev, queues > 1)
	stop := startQEMU(t, boot, dev, queues, device)
	defer func() {
		stop()
		must(t, netlink.LinkDel(linkOf(t, dev)))
	}()

	held := make(chan struct{}, 1)
	g := open(t, Options{Held: func() {
		select {
		case held <- struct{}{}:
		default:
		}
	}}, &machine{dev: dev})
	conn, err := net.DialTimeout("tcp4", fmt.Sprintf("10.78.0.10:%d", guestapi.CommandPort), patience)
	must(t, err)
	defer conn.Close()
	answers := bufio.NewReader(conn)
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	must(t, ask(conn, answers)) // passing

	must(t, g.Hold())
	if _, err := fmt.Fprintln(conn, "status"); err != nil {
		t.Fatal(err)
	}
	<-held
	before := g.Stats()
	if before.Released != 0 || before.Captured == 0 {
		t.Errorf("%+v", before)
	}
	g.Lease(boottime(t, time.Hour))
	quit, ended := make(chan struct{}), make(chan error, 1)
	held <- struct{}{} // what woke us is still in the queue
	go func() { ended <- committer(g, held, quit) }()
	if _, err := answers.ReadString('\n'); err != nil {
		t.Errorf("no answer after it was released: %v", err)
	}
	for range 20 {
		must(t, ask(conn, answers))
	}
	close(quit)
	must(t, <-ended)
	must(t, g.Pass(t.Context(), g.Cut()))
	must(t, ask(conn, answers))
	if s := g.Stats(); s.Released < 20 || s.Lost != 0 || s.DroppedFull != 0 || s.DroppedLease != 0 {
		t.Errorf("%+v", s)
	}
	must(t, g.Close(false))
}

func ask(conn net.Conn, answers *bufio.Reader) error {
	if _, err := fmt.Fprintln(conn, "status"); err != nil {
		return err
	}
	_, err := answers.ReadString('\n')
	return err
}

// persistentTap makes a tap as libvirt does for QEMU.
func persistentTap(t *testing.T, dev string, multi bool) {
	t.Helper()
	fd := newTap(t, dev, multi)
	must(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	must(t, unix.Close(fd))
	must(t, netlink.LinkSetMaster(linkOf(t, dev), bridge(t)))
	must(t, netlink.LinkSetUp(linkOf(t, dev)))
}

// startQEMU returns when the guest says that it is ready.
func startQEMU(t *testing.T, boot lab.GuestOptions, dev string, queues int, device string) (stop func()) {
	t.Helper()
	netdev := fmt.Sprintf("tap,id=n,ifname=%s,script=no,downscript=no", dev)
	if queues > 1 {
		netdev += fmt.Sprintf(",queues=%d", queues)
	}
	cmd := exec.CommandContext(t.Context(), qemuBinary, "-accel", "tcg", "-m", "256", "-smp", "2", "-nodefaults", "-display", "none",
		"-kernel", boot.Kernel, "-initrd", boot.Initrd, "-serial", "stdio", "-netdev", netdev, "-device", device,
		"-append", "console=ttyS0 loglevel=4 mitigations=off ft.ip=10.78.0.10/24 ft.mem_mb=8 ft.tick_ms=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	stop = func() {
		_ = cmd.Process.Kill() // may have ended
		_ = cmd.Wait()
	}
	var console strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		console.WriteString(lines.Text() + "\n")
		if _, ready := guestapi.FindReady(console.String()); ready {
			go func() {
				for lines.Scan() { // so that a guest that talks is not held up
				}
			}()
			return stop
		}
	}
	stop()
	t.Fatalf("the guest is not ready; its console says %q", console.String())
	return nil
}
