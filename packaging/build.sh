#!/bin/bash
# Builds packages of this tree into build/packages:
#
#	build.sh dist	a source tarball with all Go modules in it
#	build.sh deb	with debhelper and dpkg-buildpackage
#	build.sh rpm	with rpmbuild
#
# Two builds of one commit are the same, bit for bit: all times are the commit's,
# and no path of the machine is in them.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

top=$PWD
out=$top/build/packages
what=${1:?dist, deb or rpm}
version=$(packaging/version.sh version)
revision=$(packaging/version.sh revision)
SOURCE_DATE_EPOCH=$(packaging/version.sh epoch)
maintainer=$(sed -n 's/^Maintainer: //p' packaging/deb/control)
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing: test/scripts/deps.sh packages" >&2; exit 1; }
    done
}

work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
tree=$work/virt-ft-$version
mkdir -p "$tree" "$out"

# What belongs to the tree, also what is not committed yet; a tarball has no git.
copy_tree() {
    if [ -f packaging/VERSION ]; then
        tar -c --exclude=./build . | tar -x -C "$tree"
    else
        git ls-files -co --exclude-standard -z |
            while IFS= read -r -d '' f; do if [ -e "$f" ]; then printf '%s\0' "$f"; fi; done |
            tar -c --null -T - | tar -x -C "$tree"
        printf 'version=%s\nrevision=%s\nepoch=%s\n' "$version" "$revision" "$SOURCE_DATE_EPOCH" >"$tree/packaging/VERSION"
    fi
}

# debian/ is packaging/deb, and a changelog that says what this is.
debianize() {
    cp -r packaging/deb "$tree/debian"
    cat >"$tree/debian/changelog" <<EOF
virt-ft ($version-1) unstable; urgency=medium

  * Built from revision
    $revision.
    What is new in it is in /usr/share/doc/virt-ft/changelog.gz.

 -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")
EOF
}

# Modules and compiled packages come from where this user's go has them, as builds
# of packages have a home of their own.
go_places() {
    GOCACHE=$(go env GOCACHE) GOMODCACHE=$(go env GOMODCACHE) GOPATH=$(go env GOPATH) GOTOOLCHAIN=$(go env GOTOOLCHAIN) GOPROXY=$(go env GOPROXY)
    export GOCACHE GOMODCACHE GOPATH GOTOOLCHAIN GOPROXY
    [ ! -d vendor ] || export GOFLAGS=-mod=vendor
}

# Tools bring times that are later down to SOURCE_DATE_EPOCH, and leave earlier ones.
same_times() { find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }

copy_tree
same_times
case $what in
dist)
    (cd "$tree" && GOFLAGS=-mod=mod go mod vendor)
    debianize # so that it is a Debian source tree, too
    same_times
    tar -c -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu "virt-ft-$version" | gzip -9n >"$work/dist.tar.gz"
    mv "$work/dist.tar.gz" "$out/virt-ft-$version.tar.gz"
    echo "$out/virt-ft-$version.tar.gz"
    ;;
deb)
    need dpkg-buildpackage dh
    debianize
    go_places
    (cd "$tree" && dpkg-buildpackage -b -uc -us ${DEB_CHECK_DEPENDS:--d} >"$work/log" 2>&1) || { cat "$work/log" >&2; exit 1; }
    mv "$work"/virt-ft_*.deb "$out/"
    ls "$out/virt-ft_$version-1_"*.deb
    ;;
rpm)
    need rpmbuild
    go_places
    mkdir -p "$work/rpm"
    rpmbuild -bb --quiet --define "_topdir $work/rpm" --define "tree $tree" --define "upstream $version" \
        --define "packager $maintainer" --define "committed $(date -d "@$SOURCE_DATE_EPOCH" '+%a %b %d %Y')" \
        --buildroot "$work/root" packaging/rpm/virt-ft.spec >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    mv "$work"/rpm/RPMS/*/*.rpm "$out/"
    ls "$out/virt-ft-$version-1."*.rpm
    ;;
*)
    echo "build.sh: dist, deb or rpm?" >&2
    exit 2
    ;;
esac
