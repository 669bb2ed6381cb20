// Command hooks is the libvirt hook of virt-ft, installed as
// /etc/libvirt/hooks/qemu.d/virt-ft. libvirtd runs it whenever a domain is about
// to start, has started or ended (https://libvirt.org/hooks.html), as
//
//	virt-ft [-config FILE] NAME OPERATION SUBOPERATION EXTRA
//
// with the domain's XML on its standard input, and waits for it. Before a start
// ("prepare") it may refuse: with a status other than zero, and a reason that
// libvirt shows to who wanted the start. It does so when the guest may run, or
// may come to run, on another host: that must hold after a reboot, too, before
// virt-ft's daemon is there, so it reads the daemon's files itself. Where they
// object only the daemon may let the guest start.
//
// Everything else is told to the daemon, and ends with zero, whatever happens:
// a "reconnect" hook that fails kills the guest. Nothing is ever written to
// standard output, which is a new XML for the domain that is restored or
// migrated. It never calls libvirt, which waits for it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/virt-ft/virt-ft/internal/hookd"
)

const (
	// waitMax bounds all waiting for others: for libvirt's XML, for the daemon.
	waitMax = 100 * time.Millisecond
	// filesMax bounds the reading of a few small files on this host's own disk. It
	// is longer: a guest that has nothing to do with us must start on a host that
	// is busy, and one that has must not, as long as that can be found out at all.
	filesMax = time.Second
	// endMax is for mistakes in all of the above: the process ends.
	endMax = waitMax + filesMax + 100*time.Millisecond
)

func main() {
	h := newHook(os.Args[1:])
	time.AfterFunc(endMax, func() { os.Exit(h.giveUp()) })
	os.Exit(h.run())
}

// hook is one run of the program.
type hook struct {
	call   hookd.Call // without UUID
	config string     // the daemon's
	stdin  io.Reader
	stderr io.Writer
	ask    func(ctx context.Context, path string, c hookd.Call) (hookd.Answer, error)
	tell   func(ctx context.Context, path string, c hookd.Call) error
}

// argsOfLibvirt is how many arguments a hook gets from libvirt.
const argsOfLibvirt = 4

func newHook(args []string) *hook {
	h := &hook{config: configPath, stdin: os.Stdin, stderr: os.Stderr, ask: hookd.Ask, tell: hookd.Tell}
	if len(args) == 2+argsOfLibvirt && args[0] == "-config" {
		h.config, args = args[1], args[2:]
	}
	for i, field := range []*string{&h.call.Name, &h.call.Op, &h.call.Subop, &h.call.Extra} {
		if i < len(args) { // a later libvirt may give more
			*field = args[i]
		}
	}
	return h
}

// asks tells whether this call is one that may be refused.
func (h *hook) asks() bool { return h.call.Op == hookd.OpPrepare && h.call.Subop == "begin" }

// run returns the exit status.
func (h *hook) run() int {
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if !h.asks() {
		h.inform(ctx)
		return 0
	}
	if refusal := h.judge(ctx); refusal != "" {
		return h.refuse(refusal)
	}
	return 0
}

func (h *hook) refuse(refusal string) int {
	fmt.Fprintf(h.stderr, "virt-ft: %s\n", refusal)
	return 1
}

// giveUp returns the exit status when nothing is known.
func (h *hook) giveUp() int {
	if !h.asks() {
		return 0
	}
	return h.refuse(refusal(h.call, "the hook did not come to an end: try again"))
}

// inform tells the daemon, if there is one.
func (h *hook) inform(ctx context.Context) {
	c := h.call
	// Without a UUID the daemon hears at least the name.
	c.UUID, _ = bounded(ctx, func() (string, error) { return readUUID(h.stdin) })
	_, _ = bounded(ctx, func() (struct{}, error) {
		return struct{}{}, h.tell(ctx, readDirs(h.config).socket(), c)
	})
}

// bounded returns what f returns, or ctx's error when that ends first; f is left
// alone then, and ends with the process.
func bounded[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
