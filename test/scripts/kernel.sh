#!/bin/bash
# Puts a Debian kernel and the modules that a lab guest may load into
# build/kernel. Nothing is installed into the system; root is not needed.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$0")/../.."
out=$PWD/build/kernel
stamp=$(cksum <"$self")
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0

die() { echo "kernel: $*" >&2; exit 1; }
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing: this script knows Debian only.
Put a kernel at build/kernel/vmlinuz and its modules (uncompressed) below build/kernel/modules by hand."
done

# Without package lists of its own, a non-root user can only say so.
package=$(apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
if [ -z "$package" ]; then
    [ "$(id -u)" = 0 ] || die "apt knows no kernel package; run: sudo apt-get update"
    apt-get -qq update
    package=$(apt-cache depends linux-image-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
fi
[ -n "$package" ] || die "apt does not say what linux-image-amd64 depends on"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt drops privileges for downloads when it can.
chmod 0755 "$work"
[ "$(id -u)" = 0 ] && id _apt >/dev/null 2>&1 && chown _apt "$work"
echo "kernel: downloading $package"
if ! (cd "$work" && apt-get -qq download "$package"); then
    [ "$(id -u)" = 0 ] || die "download failed; perhaps: sudo apt-get update"
    # The mirror has moved on since the lists were fetched.
    apt-get -qq update
    (cd "$work" && apt-get -qq download "$package")
fi

# What the list of modules in internal/lab needs, and then some: other releases
# cut their modules differently. Patterns that match nothing are fine.
mkdir "$work/root"
cat >"$work/patterns" <<'PATTERNS'
./boot/vmlinuz-*
*/modules.builtin
*/kernel/block/*
*/kernel/crypto/crc*
*/kernel/fs/ext4/*
*/kernel/fs/jbd2/*
*/kernel/fs/mbcache.ko*
*/kernel/lib/*
*/kernel/net/core/*
*/kernel/drivers/ata/*ahci*
*/kernel/drivers/ata/libata.ko*
*/kernel/drivers/block/virtio*
*/kernel/drivers/char/hw_random/*
*/kernel/drivers/char/virtio*
*/kernel/drivers/misc/pvpanic/*
*/kernel/drivers/net/*failover.ko*
*/kernel/drivers/net/ethernet/intel/e1000*
*/kernel/drivers/net/ethernet/realtek/8139*
*/kernel/drivers/net/mii.ko*
*/kernel/drivers/net/virtio_net.ko*
*/kernel/drivers/pps/*
*/kernel/drivers/ptp/*
*/kernel/drivers/scsi/scsi_common.ko*
*/kernel/drivers/scsi/scsi_mod.ko*
*/kernel/drivers/scsi/sd_mod.ko*
*/kernel/drivers/scsi/virtio_scsi.ko*
*/kernel/drivers/virtio/*
*/kernel/drivers/watchdog/i6300esb.ko*
*/kernel/drivers/watchdog/watchdog.ko*
PATTERNS
dpkg-deb --fsys-tarfile "$work"/*.deb |
    tar -x -C "$work/root" --wildcards -T "$work/patterns" 2>"$work/tar.err" || true
ls "$work"/root/boot/vmlinuz-* "$work"/root/lib/modules/*/modules.builtin >/dev/null ||
    { cat "$work/tar.err" >&2; die "$package is not laid out as expected"; }

# Debian 13 compresses modules.
find "$work/root" -name '*.ko.xz' -exec xz -d {} +
find "$work/root" -name '*.ko.zst' -exec zstd -q -d --rm {} +
rm -rf "$out"
mkdir -p "$out"
mv "$work"/root/lib/modules/* "$out/modules"
mv "$work"/root/boot/vmlinuz-* "$out/vmlinuz"

# A guest without hardware help spends half of its boot unpacking its kernel;
# QEMU can start the ELF file inside (PVH). Without xz the packed one must do.
for at in $(LC_ALL=C grep -abo $'\xfd7zXZ' "$out/vmlinuz" | cut -d : -f 1); do
    tail -c "+$((at + 1))" "$out/vmlinuz" | xz -dc >"$work/vmlinux" 2>/dev/null || true
    if [ "$(head -c 4 "$work/vmlinux")" = $'\x7fELF' ]; then
        mv "$work/vmlinux" "$out/vmlinux"
        break
    fi
done
# Last, because it says that all is there.
echo "$stamp" >"$out/stamp"
