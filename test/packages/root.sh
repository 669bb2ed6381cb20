#!/bin/bash
# Makes a root of Debian 12 with systemd, and with what virt-ft's package depends on,
# but without that:
#
#	root.sh DIR
#
# It takes some minutes and half a gigabyte, once: DIR/made says that it is whole. The
# mirror is that of this machine's apt.
set -euo pipefail
dir=$1
[ ! -e "$dir/made" ] || exit 0

mirror=$(apt-get update --print-uris 2>/dev/null |
    sed -nE "s,^'(.*)/dists/(bookworm|oldstable|stable)/InRelease'.*,\1,p" | sed -n 1p)
[ -n "$mirror" ] || { echo "root.sh: apt knows no mirror of Debian 12" >&2; exit 3; }

rm -rf "$dir"
mkdir -p "$dir"
debootstrap --variant=minbase --include=systemd-sysv,dbus,procps,iproute2,apparmor bookworm "$dir/root" "$mirror"
printf '#!/bin/sh\nexit 101\n' >"$dir/root/usr/sbin/policy-rc.d"
chmod 755 "$dir/root/usr/sbin/policy-rc.d"
if [ -e /etc/resolv.conf ]; then cp -L /etc/resolv.conf "$dir/root/etc/resolv.conf"; fi
# What is mounted for it ends with it.
unshare --mount bash -euc '
    mount -t proc proc "$1/proc"
    chroot "$1" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 sh -euc "
        apt-get -qq update
        apt-get -y -qq install --no-install-recommends libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
        apt-get clean"
' root "$dir/root"
rm "$dir/root/usr/sbin/policy-rc.d"
touch "$dir/made"
