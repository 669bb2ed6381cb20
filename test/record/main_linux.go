// Command record types a session on two hosts of the lab into a real terminal,
// and keeps what came out: docs/pictures/session.cast, which asciinema plays, and
// docs/pictures/session.svg, which browsers do. Nothing is edited; only waiting
// is shortened, and the recording says so.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

const (
	// idleMax is how long the recording stands still where the session waited for
	// longer.
	idleMax = 1500 * time.Millisecond
	// reading is how long a command stands there before it is run, and its output
	// before the next.
	reading = 900 * time.Millisecond
	pause   = 2 * time.Second
	// frameStep bounds how many pictures a second are kept.
	frameStep = 120 * time.Millisecond
)

// notProtected is the exit code of `virt-ft status` for a guest that runs without
// protection, as it does after a failover.
const notProtected = 3

// recorder types commands and keeps what it sees.
type recorder struct {
	cast
	played time.Duration // how long the recording is so far
}

func main() {
	lab.MaybeHost()
	dir := flag.String("dir", "docs/pictures", "where session.cast and session.svg go")
	binary := flag.String("virt-ft", "build/virt-ft", "the program to show")
	flag.Parse()
	r := &recorder{cast: cast{cols: 100, rows: 30, title: "virt-ft protects a guest, and its host is lost"}}
	tool.Main("record", func() time.Duration { return 5 * time.Minute }, func(ctx context.Context, out *tool.Result) error {
		if err := r.session(ctx, *binary); err != nil {
			return err
		}
		out.Metric("seconds", r.played.Seconds())
		return r.save(*dir)
	})
}

func (r *recorder) save(dir string) error {
	var cast, svg bytes.Buffer
	if err := errors.Join(r.write(&cast), r.svg(&svg, frameStep)); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "session.cast"), cast.Bytes(), 0o644),
		os.WriteFile(filepath.Join(dir, "session.svg"), svg.Bytes(), 0o644))
}

// session is what is shown.
func (r *recorder) session(ctx context.Context, binary string) error {
	assets, err := lab.FindAssets()
	if err != nil {
		return err
	}
	l, err := lab.New(ctx, lab.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := errors.Join(l.InstallDaemons(binary, "reprotect = false\n")); err != nil {
		return err
	}
	if err := l.StartDaemons(ctx); err != nil {
		return err
	}
	boot, err := l.InstallBoot(assets)
	if err != nil {
		return err
	}
	boot.NIC, boot.Disks = true, []lab.GuestDisk{{Target: "vda", SizeMiB: 32}}
	guest, err := l.A.StartGuest(ctx, boot)
	if err != nil {
		return err
	}
	clients, err := l.StartClient(ctx, lab.ClientOptions{ID: 1, Seed: 1, TCP: 4, UDP: 2, Pace: 20 * time.Millisecond, Jitter: 20 * time.Millisecond, AnswerMax: 20 * time.Second})
	if err != nil {
		return err
	}
	defer clients.Stop()

	r.remark("two hosts, a running guest, clients at work; waiting is cut to 1.5 s")
	if err := r.all(ctx, l.A, "virsh list", "virt-ft protect web1 --to host-b", "virt-ft status"); err != nil {
		return err
	}
	if err := r.all(ctx, l.B, "virsh list --title"); err != nil {
		return err
	}
	r.remark("now the guest's QEMU is killed on host A, while clients are at work")
	fault := time.Now()
	if err := r.all(ctx, l.A, "kill -KILL $(cat /run/libvirt/qemu/"+guest.Name+".pid)"); err != nil {
		return err
	}
	if _, err := l.B.WaitState(ctx, guest.Name, "active"); err != nil {
		return err
	}
	if _, err := clients.WaitAnswer(ctx, time.Now()); err != nil {
		return fmt.Errorf("no client is answered from host B: %w", err)
	}
	silence := clients.LongestSilence(fault, time.Now())
	if err := r.all(ctx, l.B, "virsh list", "virt-ft status web1"); err != nil {
		return err
	}
	v, err := clients.Check(ctx)
	if err = errors.Join(err, v.Err()); err != nil {
		return err
	}
	r.remark(fmt.Sprintf("the clients got %d answers, the guest forgot %d of them;", v.Acked, v.AckedLost))
	r.remark(fmt.Sprintf("%d connections were reset; nobody was answered for %d ms", v.TCPReset, silence.Milliseconds()))
	return nil
}

// show appends to the recording after a wait.
func (r *recorder) show(wait time.Duration, text string) {
	r.played += min(wait, idleMax)
	r.events = append(r.events, event{r.played, text})
}

func (r *recorder) remark(text string) {
	r.show(pause, "\x1b[90m# "+text+"\x1b[0m\r\n")
}

// all runs commands on a host, one after the other.
func (r *recorder) all(ctx context.Context, h *lab.Host, commands ...string) error {
	for _, c := range commands {
		if err := r.run(ctx, h, c); err != nil {
			return fmt.Errorf("%s# %s: %w", h.Name, c, err)
		}
	}
	return nil
}

// run types a command and shows what it prints, in a terminal of its own.
func (r *recorder) run(ctx context.Context, h *lab.Host, command string) error {
	r.show(pause, fmt.Sprintf("\x1b[1m%s#\x1b[0m ", h.Name))
	r.show(reading/3, command)
	r.show(reading, "\r\n")
	cmd := exec.CommandContext(ctx, "nsenter", "-a", "-t", strconv.Itoa(h.Pid()), "--", "sh", "-c", command)
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=", "PATH="+filepath.Dir(h.CtlPath())+":"+os.Getenv("PATH"))
	// Not its controlling terminal: virsh would look for somebody to type a password there.
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd.Stdin = null
	size := &pty.Winsize{Rows: uint16(r.rows), Cols: uint16(r.cols)}
	term, err := pty.StartWithAttrs(cmd, size, &syscall.SysProcAttr{Setsid: true})
	if err != nil {
		return err
	}
	defer term.Close()
	last := time.Now()
	buf := make([]byte, 4096)
	for {
		n, err := term.Read(buf)
		if n > 0 {
			now := time.Now()
			r.show(now.Sub(last), string(buf[:n]))
			last = now
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) { // how a terminal ends
			break
		}
		if err != nil {
			return err
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == notProtected) {
		return err
	}
	return nil
}
