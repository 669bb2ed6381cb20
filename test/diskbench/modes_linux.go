package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// diskName is the disk that is written to, and an export's name.
const diskName = "vda"

// stepMax bounds everything that is waited for but the benchmark itself.
const stepMax = 3 * time.Minute

// statePoll is the pause between two questions of how far something is.
const statePoll = 50 * time.Millisecond

// mode is how the guest runs while it is measured.
type mode int

// The modes, in the order in which a round goes through them.
const (
	unprotected mode = iota
	nullMirror
	nbdMirror
	memory
	fsync
	modeCount
)

func (m mode) String() string { return modeNames()[m] }

func modeNames() []string {
	return []string{"unprotected", "null mirror", "nbd mirror", "memory", "fsync"}
}

func allModes() (all []mode) {
	for m := range modeCount {
		all = append(all, m)
	}
	return all
}

// enter brings the guest into a mode and returns what ends that.
func (b *bench) enter(ctx context.Context, m mode) (leave func(context.Context) error, err error) {
	switch m {
	case nullMirror:
		size := int64(b.o.diskMiB) << 20
		return b.mirror(ctx, func(socket string) *exec.Cmd {
			return exec.Command(nullServer, "-t", "-k", socket, "-x", diskName, "--image-opts",
				fmt.Sprintf("driver=null-co,read-zeroes=on,size=%d", size))
		})
	case nbdMirror:
		return b.mirror(ctx, func(socket string) *exec.Cmd {
			return &exec.Cmd{Path: "/proc/self/exe", Args: []string{sinkArg0, socket, strconv.Itoa(b.o.diskMiB << 20)}}
		})
	case memory, fsync:
		return b.protect(ctx, b.guest.Name, m.String())
	}
	return func(context.Context) error { return nil }, nil
}

// nullServer is the server that costs as little as one can.
const nullServer = "qemu-nbd"

// lacks says why this machine cannot measure a mode; empty: it can.
func lacks(m mode) string {
	if m == nullMirror {
		if _, err := exec.LookPath(nullServer); err != nil {
			return nullServer + " is missing (run make deps)"
		}
	}
	return ""
}

// mirror starts a server inside host A and mirrors the disk to it, in the way
// in which the daemon does.
func (b *bench) mirror(ctx context.Context, server func(socket string) *exec.Cmd) (_ func(context.Context) error, err error) {
	b.mirrors++
	socket := filepath.Join(b.lab.Dir, fmt.Sprintf("mirror.%d", b.mirrors))
	cmd := server(socket)
	cmd.Stderr = os.Stderr
	p, err := b.lab.A.Start(cmd)
	if err != nil {
		return nil, err
	}
	end := func() error {
		err := p.Kill()
		if rerr := os.Remove(socket); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = end() // the first error says more
		}
	}()
	err = until(ctx, "the mirror's server did not start", func(context.Context) (bool, error) {
		select {
		case <-p.Done():
			return false, errors.New("the mirror's server ended at once")
		default:
		}
		err := os.Chmod(socket, 0o666) // QEMU may run as another user
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	xml := socket + ".xml"
	text := fmt.Sprintf(`<disk type='network'><driver name='qemu' type='raw' discard='unmap'/>`+
		`<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/></source></disk>`, diskName, socket)
	if err := os.WriteFile(xml, []byte(text), 0o644); err != nil {
		return nil, err
	}
	name := b.guest.Name
	if _, err := b.lab.A.Virsh(ctx, "blockcopy", name, diskName, "--xml", xml, "--transient-job", "--synchronous-writes"); err != nil {
		return nil, err
	}
	err = until(ctx, "the mirror did not become ready", func(ctx context.Context) (bool, error) {
		live, err := b.lab.A.Virsh(ctx, "dumpxml", name)
		if err == nil && !strings.Contains(live, "<mirror ") {
			err = errors.New("the mirror has ended")
		}
		return strings.Contains(live, "ready='yes'"), err
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := b.lab.A.Virsh(ctx, "blockjob", name, diskName, "--abort")
		return errors.Join(err, end())
	}, nil
}

// protect protects a guest with a durability. The backup's word is enough: the
// stricter of both counts.
func (b *bench) protect(ctx context.Context, guest, durability string) (func(context.Context) error, error) {
	if durability != b.durability {
		if err := b.lab.B.Daemon.Stop(); err != nil {
			return nil, err
		}
		if err := b.lab.B.Configure(lab.PlainTransport + diskConfig(durability)); err != nil {
			return nil, err
		}
		if err := b.lab.B.Daemon.Start(ctx); err != nil {
			return nil, err
		}
		b.durability = durability
	}
	if _, err := b.lab.A.Ctl(ctx, "protect", guest, "--to", b.lab.B.Name); err != nil {
		return nil, err
	}
	if _, err := b.lab.A.WaitState(ctx, guest, "protected"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if _, err := b.lab.A.Ctl(ctx, "unprotect", guest); err != nil {
			return err
		}
		// The mirror goes in the background.
		return until(ctx, "the mirror did not end", func(ctx context.Context) (bool, error) {
			live, err := b.lab.A.Virsh(ctx, "dumpxml", guest)
			return err == nil && !strings.Contains(live, "<mirror "), err
		})
	}, nil
}

func diskConfig(durability string) string {
	return fmt.Sprintf("[disks]\ndurability = %q\n", durability)
}

// until asks again and again whether something is so.
func until(ctx context.Context, what string, so func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	for {
		ok, err := so(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(statePoll):
		}
	}
}

// inTime is a step with a bound of its own.
func inTime[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	return f(ctx)
}

// start boots a guest on host A.
func (b *bench) start(ctx context.Context, o lab.GuestOptions) (*lab.Guest, error) {
	o.Kernel, o.Initrd = b.boot.Kernel, b.boot.Initrd
	return inTime(ctx, func(ctx context.Context) (*lab.Guest, error) { return b.lab.A.StartGuest(ctx, o) })
}
