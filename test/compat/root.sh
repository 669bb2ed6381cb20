#!/bin/bash
# Makes build/compat/SUITE: a root directory of another Debian with its QEMU and
# libvirt, for hosts of the lab. Needs root, debootstrap and a mirror; says in one
# line what is missing, and exits with 3 then.
#
#     test/compat/root.sh [SUITE]      prints the directory
set -euo pipefail
suite=${1:-trixie}
self=$(realpath "$0")
cd "$(dirname "$0")/../.."
out=$PWD/build/compat/$suite
stamp=$(cksum <"$self")
if [ "$(cat "$out/virt-ft-stamp" 2>/dev/null)" = "$stamp" ]; then
    echo "$out"
    exit 0
fi
lacks() { echo "compat: skipped: $*" >&2; exit 3; }
[ "$(id -u)" = 0 ] || lacks "only root can make a Debian root directory"
command -v debootstrap >/dev/null || lacks "debootstrap is missing (apt-get install debootstrap)"

# The mirror that apt has this Debian from.
mirror=$(apt-get update --print-uris 2>/dev/null | sed -nE "s,^'(.*)/dists/(bookworm|trixie|forky|sid|testing|stable|oldstable)/InRelease'.*,\1,p" | sed -n 1p)
[ -n "$mirror" ] || lacks "apt has no Debian from anywhere"
mkdir -p build/compat
work=$(mktemp -d "$PWD/build/compat/.new.XXXXXX")
trap 'umount "$work/proc" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
chmod 0755 "$work"
echo "compat: making $suite from $mirror" >&2
debootstrap --variant=minbase "$suite" "$work" "$mirror" >"$out.log" 2>&1 ||
    lacks "debootstrap of $suite from $mirror failed: $(grep -m1 '^E:' "$out.log" || tail -n 1 "$out.log")"
# How this machine reaches its mirror is right for the other root, too; nothing is
# to be started in there.
for f in /etc/resolv.conf /etc/apt/apt.conf.d/*prox*; do
    [ -e "$f" ] && cp -L "$f" "$work$f"
done
printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
chmod 0755 "$work/usr/sbin/policy-rc.d"
mount -t proc proc "$work/proc"
DEBIAN_FRONTEND=noninteractive chroot "$work" sh -c '
    apt-get -qq update &&
    apt-get -y -qq install --no-install-recommends qemu-system-x86 qemu-utils libnbd-bin e2fsprogs iproute2 \
        libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients' >>"$out.log" 2>&1 ||
    lacks "installing QEMU and libvirt of $suite failed: $(tail -n 1 "$out.log")"
umount "$work/proc"
rm -rf "$work/var/cache/apt/archives" "$work/var/lib/apt/lists"
echo "$stamp" >"$work/virt-ft-stamp"
rm -rf --one-file-system "$out"
mv "$work" "$out"
rm -f "$out.log"
trap - EXIT
echo "$out"
