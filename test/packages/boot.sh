#!/bin/bash
# The first process of a machine for tests: in namespaces of its own (unshare), it
# makes BASE its root, with changes kept in DIR, and with devices, /proc, /sys and
# control groups of its own, and becomes systemd.
#
#	boot.sh BASE DIR NAME
set -euo pipefail
base=$1 dir=$2 name=$3
root=$dir/root

mount --make-rprivate /
hostname "$name"
mkdir -p "$root" "$dir/changes" "$dir/work"
mount -t overlay -o "lowerdir=$base,upperdir=$dir/changes,workdir=$dir/work" overlay "$root"
echo "$name" >"$root/etc/hostname"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
if grep -q 'name=systemd' /proc/self/cgroup; then # the host has version 1
    mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
else
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
fi

# Only what is needed: no terminal of the host's, and no KVM, which guests of the
# tests do without and libvirt would ask about for long.
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
for d in null zero full random urandom tty net/tun; do
    touch "$root/dev/$d"
    mount --bind "/dev/$d" "$root/dev/$d"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs tmpfs "$root/dev/shm"

cd "$root"
mkdir -p .old
pivot_root . .old
umount -l /.old
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal --show-status=0
