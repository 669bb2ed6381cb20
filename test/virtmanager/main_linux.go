// Command virtmanager takes pictures of virt-manager while it shows a protected
// guest and its standby, for the documentation: what of ours a person sees who
// knows nothing of virt-ft. It needs virt-manager and an X server, see picture.sh.
// The last line of output is JSON. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// script takes the pictures.
const script = "test/virtmanager/picture.sh"

// scriptLacks is how it exits when something that it needs is not installed.
const scriptLacks = 3

type options struct {
	binary, out string
	timeout     time.Duration
}

func main() {
	lab.MaybeHost()
	o := options{}
	flag.StringVar(&o.binary, "binary", "build/virt-ft", "the program under test")
	flag.StringVar(&o.out, "out", "docs/pictures", "where the pictures go")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Minute, "give up after")
	flag.Parse()
	if flag.NArg() > 0 {
		tool.Usage("virtmanager", fmt.Errorf("unexpected %q", flag.Arg(0)))
	}
	tool.Main("virtmanager", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
		return run(ctx, o)
	})
}

// run protects a guest, and has it looked at.
func run(ctx context.Context, o options) error {
	assets, err := lab.FindAssets()
	if err != nil {
		return err
	}
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.InstallDaemons(o.binary, ""); err != nil {
		return err
	}
	if err := l.StartDaemons(ctx); err != nil {
		return err
	}
	boot, err := l.InstallBoot(assets)
	if err != nil {
		return err
	}
	boot.Rich, boot.NIC = true, true
	g, err := l.A.StartGuest(ctx, boot)
	if err != nil {
		return err
	}
	if _, err := l.A.Ctl(ctx, "protect", g.Name, "--to", l.B.Name); err != nil {
		return err
	}
	return errors.Join(pictures(ctx, l, g, o), context.Cause(ctx))
}

func pictures(ctx context.Context, l *lab.Lab, g *lab.Guest, o options) error {
	standby, err := l.B.Virsh(ctx, "list", "--all", "--name")
	if err != nil {
		return err
	}
	var sockets [2]string
	for i, h := range l.Hosts() {
		if sockets[i], err = h.Root("/run/libvirt/libvirt-sock"); err != nil {
			return err
		}
	}
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, script, sockets[0], sockets[1], g.Name, strings.TrimSpace(standby), out)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// Its X server and its bus are its children: it ends them when it is asked to.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == scriptLacks {
		return &lab.MissingError{What: "virt-manager under an X server", Remedy: "install what is named above"}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", script, err)
	}
	return nil
}
