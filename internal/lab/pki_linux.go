package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/pki"
)

// PlainTransport goes in front of DaemonOptions.Extra where figures are taken that
// are to be compared with those of before the daemons spoke TLS here.
const PlainTransport = "transport.mode = \"plain\"\n"

// CADir is where the lab's certificate authority is, as `virt-ft pki ca` makes one,
// for tests that issue more. Who has it can be any of the hosts.
func (l *Lab) CADir() string { return filepath.Join(l.Dir, "ca") }

// certify gives h what libvirt's TLS needs, where libvirt has it, unless it has
// it already.
func (h *Host) certify() error {
	if err := pki.CreateCA(h.lab.CADir(), "lab", time.Now()); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("lab: %w", err)
	}
	root, err := h.Root("/")
	if err != nil {
		return err
	}
	if _, err := os.Stat(pki.Libvirt().Under(root).ServerKey); err == nil {
		return nil
	}
	addr, err := netip.ParseAddr(h.Repl)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	tree := filepath.Join(h.lab.Dir, "pki-"+h.Name)
	if _, err := pki.CreateHost(h.lab.CADir(), h.Name, []netip.Addr{addr}, tree, time.Now()); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("lab: %w", err)
	}
	return copyTree(tree, root)
}

// copyTree copies directories and files, with their modes, over what is at to.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if e.IsDir() {
			return os.MkdirAll(target, info.Mode().Perm())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, info.Mode().Perm())
	})
}
