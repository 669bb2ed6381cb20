package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// hookPath is where libvirt looks for a hook of virt-ft's; that it is a file of
// its own in a directory leaves the operator's own hook alone.
const hookPath = "/etc/libvirt/hooks/qemu.d/virt-ft"

// InstallHook puts the hook program binary on the host's disk, where it stays
// when the power is lost. libvirtd looks for hooks when it starts, and again
// only on SIGHUP, whose end nobody is told of; so one that runs is restarted.
// The host's guests go on.
func (h *Host) InstallHook(ctx context.Context, binary string) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return &MissingError{What: binary, Remedy: "run make build"}
	}
	path := filepath.Join(h.Dir, "disk", hookPath)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	// Under another name first: one that runs is not written over.
	temp := filepath.Join(h.Dir, "virt-ft-hook.new")
	if err := os.WriteFile(temp, program, 0o755); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	if h.Libvirtd.Process() == nil {
		return nil
	}
	return h.Libvirtd.Restart(ctx)
}

// RemoveHook takes it away again; libvirtd does without it at once.
func (h *Host) RemoveHook() error {
	if err := os.Remove(filepath.Join(h.Dir, "disk", hookPath)); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	return nil
}
