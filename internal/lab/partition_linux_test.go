package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// partitionLab is a lab without a guest.
func partitionLab(t *testing.T) (*Lab, context.Context) {
	t.Helper()
	skipMissing(t, checkMachine())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	l, err := New(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, ctx
}

// TestPartitions takes arbiters from one host at a time, and freezes one.
func TestPartitions(t *testing.T) {
	l, ctx := partitionLab(t)
	if err := os.WriteFile(filepath.Join(l.sharedDir(), "mark"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("directory", func(t *testing.T) { checkDirectory(ctx, t, l) })
	t.Run("directory hangs", func(t *testing.T) { checkHang(ctx, t, l) })
	t.Run("etcd", func(t *testing.T) { checkEtcd(ctx, t, l) })
	t.Run("freeze", func(t *testing.T) { checkFreeze(ctx, t, l) })
}

func sees(h *Host) error {
	return h.Inside(func() error { _, err := os.Stat(SharedDir + "/mark"); return err })
}

func checkDirectory(ctx context.Context, t *testing.T, l *Lab) {
	if err := errors.Join(sees(l.A), l.A.CutArbiter(), l.A.CutArbiter(), sees(l.B)); err != nil {
		t.Fatal(err)
	}
	if err := sees(l.A); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is cut off says %v", err)
	}
	if err := l.A.Inside(func() error { return os.WriteFile(SharedDir+"/mine", nil, 0o600) }); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to what is cut off: %v", err)
	}
	if err := errors.Join(l.A.HealArbiter(), sees(l.A), l.A.HealArbiter()); err != nil {
		t.Error(err)
	}
	// A power loss takes the cover with it.
	must(t, l.A.CutArbiter())
	l.A.PowerOff()
	must(t, errors.Join(l.A.PowerOn(ctx), sees(l.A), l.A.HealArbiter()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkHang leaves a program waiting for the directory until it heals.
func checkHang(ctx context.Context, t *testing.T, l *Lab) {
	err := l.A.HangArbiter()
	skipMissing(t, err)
	asked := make(chan error, 1)
	go func() {
		_, err := l.A.Run(ctx, "cat", SharedDir+"/mark")
		asked <- err
	}()
	blocked := func() bool {
		pids, err := l.A.Processes()
		must(t, err)
		for _, pid := range pids {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
			if string(line) == "cat\x00"+SharedDir+"/mark\x00" && strings.Contains(string(call), "fuse") {
				return true
			}
		}
		return false
	}
	for !blocked() {
		select {
		case err := <-asked:
			t.Fatalf("a directory that hangs answered: %v", err)
		case <-time.After(readyPoll):
		}
	}
	must(t, errors.Join(sees(l.B), l.A.HealArbiter()))
	if err := <-asked; err == nil || ctx.Err() != nil {
		t.Errorf("who waited was told %v, %v", err, ctx.Err())
	}
	must(t, sees(l.A))
}

// checkEtcd asks etcd from both hosts, cuts one off, and lets etcd die.
func checkEtcd(ctx context.Context, t *testing.T, l *Lab) {
	proc, err := l.StartEtcd(ctx)
	skipMissing(t, err)
	answers := func(h *Host) error {
		return h.Inside(func() error {
			c, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(ctx, "tcp4", ArbiterAddr+":2379")
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	must(t, errors.Join(answers(l.A), answers(l.B), l.A.CutArbiter(), answers(l.B)))
	if answers(l.A) == nil {
		t.Error("etcd answers a host that is cut off")
	}
	must(t, errors.Join(l.A.HealArbiter(), answers(l.A)))
	if err := proc.Kill(); err != nil || answers(l.B) == nil {
		t.Errorf("dead: %v", err)
	}
	if _, err := l.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartEtcd(ctx); err == nil {
		t.Error("two of them")
	}
	must(t, answers(l.B))
}

// checkFreeze asks a libvirtd that stands still, which answers afterwards.
func checkFreeze(ctx context.Context, t *testing.T, l *Lab) {
	if err := l.FreezeHost(l.A); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() {
		_, err := l.A.Virsh(ctx, "list")
		asked <- err
	}()
	if _, err := l.B.Virsh(ctx, "list"); err != nil {
		t.Error(err)
	}
	if pid := l.A.Libvirtd.Process().Pid(); !stopped(pid) {
		t.Error("libvirtd goes on")
	}
	select {
	case err := <-asked:
		t.Errorf("libvirtd of a frozen host answered: %v", err)
	default:
	}
	must(t, l.ThawHost(l.A))
	if err := <-asked; err != nil {
		t.Error(err)
	}
	must(t, l.FreezeHost(l.B))
	l.B.PowerOff() // also a frozen host loses power
	must(t, l.B.PowerOn(ctx))
}
