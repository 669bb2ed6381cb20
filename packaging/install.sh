#!/bin/bash
# Builds virt-ft and puts its files below $DESTDIR: what `make install` does, and
# with it both packages. Where distributions differ, the environment says so:
#
#	UNITDIR, ZSHDIR, HOOK (link or copy), GOFLAGS_BUILD, LDFLAGS_BUILD
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

DESTDIR=${DESTDIR:-}
UNITDIR=${UNITDIR:-/usr/lib/systemd/system}
ZSHDIR=${ZSHDIR:-/usr/share/zsh/site-functions}
GOFLAGS_BUILD=${GOFLAGS_BUILD--trimpath -buildmode=pie}
LDFLAGS_BUILD=${LDFLAGS_BUILD--s -w}
control=github.com/virt-ft/virt-ft/internal/control

version=$(packaging/version.sh version)
revision=$(packaging/version.sh revision)
stamp="-X $control.release=$version -X $control.releaseRevision=$revision"

put() { install -D -m "$1" "$2" "$DESTDIR$3"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What git would stamp is given instead, so that a tarball builds the same program.
# shellcheck disable=SC2086
go build $GOFLAGS_BUILD -buildvcs=false -ldflags="$LDFLAGS_BUILD -extldflags '-Wl,-z,relro,-z,now' $stamp" -o "$work/virt-ft" ./cmd/virt-ft
# shellcheck disable=SC2086
CGO_ENABLED=0 go build $GOFLAGS_BUILD -buildvcs=false -ldflags="$LDFLAGS_BUILD" -o "$work/virt-ft-hook" ./hooks
put 755 "$work/virt-ft" /usr/sbin/virt-ft
put 755 "$work/virt-ft-hook" /usr/sbin/virt-ft-hook

# libvirt runs what it finds in qemu.d. A link, so that it is replaced with the
# package, and no configuration that an administrator is asked about;
# libvirtd's AppArmor profile runs programs of /usr/sbin unconfined.
install -d "$DESTDIR/etc/libvirt/hooks/qemu.d"
ln -sf /usr/sbin/virt-ft-hook "$DESTDIR/etc/libvirt/hooks/qemu.d/virt-ft"

# The socket is for the group that sysusers makes; all else is the default.
"$work/virt-ft" daemon --print-config >"$work/defaults"
sed '/^\[control\]/,/^\[/s/^#group = ""$/group = "virt-ft"/' "$work/defaults" >"$work/virt-ft.toml"
grep -qx 'group = "virt-ft"' "$work/virt-ft.toml" || { echo "install: the example configuration has no #group in [control]" >&2; exit 1; }
put 644 "$work/virt-ft.toml" /etc/virt-ft/virt-ft.toml

put 644 packaging/systemd/virt-ft.service "$UNITDIR/virt-ft.service"
put 644 packaging/systemd/bpf.mount "$UNITDIR/run-virt\\x2dft-bpf.mount"
put 644 packaging/systemd/sysusers.conf /usr/lib/sysusers.d/virt-ft.conf
put 644 packaging/systemd/tmpfiles.conf /usr/lib/tmpfiles.d/virt-ft.conf
put 644 packaging/maintain.sh /usr/lib/virt-ft/maintain.sh

"$work/virt-ft" man "$work/man"
for page in "$work"/man/*.8 packaging/man/*.8; do put 644 "$page" "/usr/share/man/man8/$(basename "$page")"; done
{
    cat packaging/man/virt-ft.toml.5.head
    sed -e 's/\\/\\e/g' -e 's/-/\\-/g' -e "s/^\([.']\)/\\\\\&\1/" "$work/defaults"
    cat packaging/man/virt-ft.toml.5.tail
} >"$work/virt-ft.toml.5"
put 644 "$work/virt-ft.toml.5" /usr/share/man/man5/virt-ft.toml.5

for shell in bash zsh fish; do "$work/virt-ft" completion $shell >"$work/$shell"; done
put 644 "$work/bash" /usr/share/bash-completion/completions/virt-ft
put 644 "$work/zsh" "$ZSHDIR/_virt-ft"
put 644 "$work/fish" /usr/share/fish/vendor_completions.d/virt-ft.fish

for f in packaging/prometheus/* packaging/grafana/*; do
    if [ -f "$f" ]; then put 644 "$f" "/usr/share/virt-ft/${f#packaging/}"; fi
done
for f in packaging/selinux/*; do put 644 "$f" "/usr/share/virt-ft/${f#packaging/}"; done
