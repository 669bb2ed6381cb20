#!/bin/bash
# Installs what building and testing need on Debian, if anything is missing.
# When it may not install, it prints the command that would, and exits 1.
#
#	deps.sh		building and testing
#	deps.sh packages	building packages, and testing those
set -euo pipefail

# libvirt-daemon-system makes the user libvirt-qemu, without which libvirtd's
# QEMU driver does not start, whatever user its configuration names.
packages=(qemu-system-x86 qemu-utils libnbd-bin nbdkit iperf3 etcd-server fence-agents e2fsprogs libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
    libvirt-dev pkg-config gcc libc6-dev iproute2 make git ca-certificates debhelper chromium)
[ "${1:-}" != packages ] ||
    packages=(debhelper dpkg-dev fakeroot lintian rpm rpmlint debootstrap systemd util-linux)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The mirror that apt has Debian 12 from also has its backports. This downloads
# nothing, and needs no package lists.
backports() {
    local site
    site=$(apt-get update --print-uris 2>/dev/null |
        sed -nE "s,^'(.*)/dists/(bookworm|oldstable|stable)/InRelease'.*,\1,p" | sed -n 1p)
    [ -n "$site" ] && echo "deb $site bookworm-backports main"
}

# Any Go from 1.21 on fetches by itself the version that go.mod names.
go_usable() {
    local version minor
    version=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return 1
    minor=${version#go1.}
    minor=${minor%%[!0-9]*}
    [ "${minor:-0}" -ge 21 ]
}

if ! command -v dpkg-query apt-get >/dev/null; then
    for tool in qemu-system-x86_64 qemu-img libvirtd virsh pkg-config gcc git; do
        command -v "$tool" >/dev/null || lacking="${lacking:-} $tool"
    done
    go_usable || lacking="${lacking:-} go>=1.21"
    [ -z "${lacking:-}" ] && exit 0
    echo "deps: this is not Debian; please install:$lacking and the libvirt headers" >&2
    exit 1
fi

missing=()
for p in "${packages[@]}"; do
    case $p in
    pkg-config) installed pkgconf || installed pkg-config || missing+=("$p") ;;
    *) installed "$p" || missing+=("$p") ;;
    esac
done

# Debian 12's own Go is 1.19; its backports have a newer one.
sources=
if ! go_usable; then
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$codename" != bookworm ]; then
        missing+=(golang-go)
    else
        missing+=(golang-go/bookworm-backports golang-src/bookworm-backports)
        apt-cache policy 2>/dev/null | grep -q bookworm-backports || sources=/etc/apt/sources.list.d/bookworm-backports.list
    fi
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ -n "$sources" ]; then
    line=$(backports) || { echo "deps: Go >= 1.21 is missing, and apt knows no Debian 12 mirror: install Go from https://go.dev/dl/" >&2; exit 1; }
fi

if [ "$(id -u)" != 0 ]; then
    if [ -n "$sources" ]; then
        echo "Go >= 1.21 is missing: install it from https://go.dev/dl/, or let apt find it:" >&2
        echo "echo '$line' | sudo tee $sources && sudo apt-get update" >&2
    fi
    echo "sudo apt-get install --no-install-recommends ${missing[*]}"
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# Nothing of this is to be started now: tests start their own.
export RUNLEVEL=1
install() { apt-get -y -qq install --no-install-recommends "${missing[@]}"; }
echo "deps: installing ${missing[*]}"
if [ -n "$sources" ]; then
    echo "deps: adding $sources for Go"
    echo "$line" >"$sources"
    apt-get -qq update
elif [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ]; then
    apt-get -qq update
fi
# The mirror may have moved on since the lists were fetched.
install || { apt-get -qq update && install; }
go_usable || { echo "deps: Go is still older than 1.21: install it from https://go.dev/dl/" >&2; exit 1; }
