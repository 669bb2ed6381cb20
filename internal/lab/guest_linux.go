package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Guest is a lab guest that runs as a libvirt domain on Host.
type Guest struct {
	Name  string
	Host  *Host // where it was started
	Ready guestapi.Ready
}

// consoleMaxBytes bounds how much console output is read.
const consoleMaxBytes = 16 << 20

// answerMaxBytes bounds one answer of the guest's command port.
const answerMaxBytes = 64 << 10

// InstallBoot puts kernel and initramfs where both hosts see them, under the
// same path, and returns GuestOptions that boot from them.
func (l *Lab) InstallBoot(a Assets) (GuestOptions, error) {
	o := GuestOptions{Kernel: filepath.Join(l.Dir, "vmlinuz"), Initrd: filepath.Join(l.Dir, "initramfs")}
	if err := lend(a.Kernel, o.Kernel); err != nil {
		return o, fmt.Errorf("lab: guest kernel: %w", err)
	}
	for path, modules := range map[string][]string{
		o.Initrd:             plainModules(),
		RichInitrd(o.Initrd): guestModules(),
		diskInitrd(o.Initrd): append(guestModules(), diskModules()...),
	} {
		if err := writeInitramfs(path, a, modules); err != nil {
			return o, err
		}
	}
	return o, nil
}

// lend makes a file appear at to as well, which it may do already: by another name if
// it can, for a kernel has tens of megabytes, and nobody writes to it.
func lend(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o644)
	}
	return err
}

// StartGuest creates the domain on the host and waits until the guest, unless it
// is a Firmware, has announced itself on its console. When that fails, the error
// carries the end of the console.
func (h *Host) StartGuest(ctx context.Context, o GuestOptions) (*Guest, error) {
	text, err := GuestXML(o)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults() // for its name and disks
	for _, d := range o.Disks {
		if err := h.makeDisk(ctx, d); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(h.lab.sharedDir(), o.Name+"."+h.Name+".xml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	start := time.Now()
	if _, err := h.Virsh(ctx, "create", file); err != nil {
		return nil, err
	}
	h.lab.log.Info("domain created", "host", h.Name, "domain", o.Name, "took", time.Since(start))
	g := &Guest{Name: o.Name, Host: h}
	for o.Firmware == "" {
		console, err := h.Console(o.Name)
		if err == nil {
			var ok bool
			if g.Ready, ok = guestapi.FindReady(console); ok {
				if g.Ready.Disks != len(o.Disks) {
					return nil, fmt.Errorf("lab: guest %s has %d of its %d disks; its console ends with %q",
						o.Name, g.Ready.Disks, len(o.Disks), console[max(0, len(console)-2000):])
				}
				return g, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lab: guest %s is not ready: %w; its console ends with %q",
				o.Name, ctx.Err(), console[max(0, len(console)-2000):])
		case <-time.After(readyPoll):
		}
	}
	return g, nil
}

// Console returns what the host's guest wrote on its serial console so far.
func (h *Host) Console(guest string) (string, error) {
	path := filepath.Join(h.Dir, "disk", ConsolePath(guest))
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("lab: console: %w", err)
	}
	if info.Size() > consoleMaxBytes {
		return "", fmt.Errorf("lab: console of %s: more than %d bytes", guest, consoleMaxBytes)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// Command sends one line to the command port of the guest, wherever it runs,
// and returns the decoded answer. An answer with an "error" is an error.
func (l *Lab) Command(ctx context.Context, line string) (map[string]any, error) {
	conn, err := l.Dial(ctx, "tcp4", net.JoinHostPort(GuestAddr, strconv.Itoa(guestapi.CommandPort)))
	if err != nil {
		return nil, fmt.Errorf("lab: guest command %q: %w", line, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return nil, fmt.Errorf("lab: guest command %q: %w", line, err)
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, answerMaxBytes)
	if !lines.Scan() {
		return nil, fmt.Errorf("lab: guest command %q: no answer: %w", line, errFirst(lines.Err(), ctx.Err(), net.ErrClosed))
	}
	var answer map[string]any
	if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("lab: guest command %q: %w", line, err)
	}
	if text, bad := answer["error"]; bad {
		return nil, fmt.Errorf("lab: guest command %q: %v", line, text)
	}
	return answer, nil
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
