package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// stopsHz is how often a second the floor stops the guest.
const stopsHz = 40

// stopper stops and starts the guest at a pace, through libvirt and without
// anything in between: no checkpoint that stops a guest in this way can leave it
// more of its time. One virsh does it all, told line by line.
type stopper struct {
	virsh *lab.Process
	in    io.WriteCloser
	guest string
}

func (b *bench) newStopper() (*stopper, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("virsh", "-q", "-c", "qemu:///system")
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	s := &stopper{in: w, guest: b.guest.Name}
	s.virsh, err = b.lab.A.Start(cmd)
	r.Close()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return s, nil
}

// run goes on until ctx ends, and returns how often it has told virsh to.
func (s *stopper) run(ctx context.Context) (stops int, err error) {
	ticker := time.NewTicker(time.Second / stopsHz)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return stops, nil
		case <-ticker.C:
			_, err := fmt.Fprintf(s.in, "qemu-monitor-command --hmp %s stop\nqemu-monitor-command --hmp %[1]s cont\n", s.guest)
			if err != nil {
				return stops, err
			}
			stops++
		}
	}
}

// close lets virsh carry out what it was told, so that the guest runs.
func (s *stopper) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepMax)
	defer cancel()
	err := errors.Join(s.in.Close(), s.virsh.Wait(ctx))
	if ctx.Err() != nil {
		err = errors.Join(err, s.virsh.Kill())
	}
	return err
}

// bare is a guest that is stopped and started all the time.
type bare struct {
	Speed float64 // pieces a second
	Hz    float64 // stops a second that it really got
}

// stopped measures the speed of such a guest, which nobody protects. A virsh that
// does not follow is behind with its lines at the end, and takes longer for them.
func (b *bench) stopped(ctx context.Context) (f bare, err error) {
	s, err := b.newStopper()
	if err != nil {
		return f, err
	}
	running, end := context.WithCancel(ctx)
	defer end()
	stops, done, began := 0, make(chan error, 1), time.Now()
	go func() {
		var err error
		stops, err = s.run(running)
		done <- err
	}()
	if err = b.begin(ctx, integer); err == nil {
		f.Speed, err = b.pieces(ctx)
	}
	end()
	err = errors.Join(err, <-done, s.close(ctx))
	f.Hz = float64(stops) / time.Since(began).Seconds()
	return f, err
}
