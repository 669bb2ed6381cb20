package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// kvmName is the emulator's name in SharedDir. It is the same for each lab, as
// libvirtd keeps one answer for a path, see lendCapabilities.
const kvmName = "qemu-kvm"

// kvmScript is an emulator that libvirtd takes for one that only emulates, as
// /dev/kvm is covered on a host: it would ask each QEMU for many seconds otherwise.
// The cover is taken off for a domain's QEMU alone, in a mount namespace that
// nobody else sees: who asks QEMU something else, as without a guest's name, is
// not deceived. The process stays the one that libvirtd started.
const kvmScript = `#!/bin/sh
before= domain= kvm=
for arg; do
	shift
	case "$before $arg" in
	"-name guest="*) domain=1 ;;
	"-accel tcg") [ -n "$domain" ] && arg=kvm kvm=1 ;;
	esac
	set -- "$@" "$arg"
	before=$arg
done
[ -z "$kvm" ] && exec ` + qemuPath + ` "$@"
exec unshare -m sh -c 'umount /dev/kvm && exec "$0" "$@"' ` + qemuPath + ` "$@"
`

// InstallKVM puts where both hosts see it an emulator that runs domains under KVM
// although hosts have no /dev/kvm, and returns its path there. The domains are
// of the type "qemu" all the same.
func (l *Lab) InstallKVM() (emulator string, err error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "", &MissingError{What: "/dev/kvm", Remedy: "it needs a processor that virtualizes, and a kernel with KVM"}
	}
	f.Close()
	if err := os.WriteFile(filepath.Join(l.sharedDir(), kvmName), []byte(kvmScript), 0o755); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return filepath.Join(SharedDir, kvmName), nil
}
