#!/bin/bash
# Puts promtool, which checks the alert rules, into build/tools. Nothing is
# installed into the system: Debian's package would start a Prometheus here.
# Without it a test skips, so nothing here fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/build/tools/promtool
[ ! -x "$out" ] && ! command -v promtool >/dev/null || exit 0
command -v apt-get dpkg-deb >/dev/null || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work" # apt drops privileges for downloads when it can
[ "$(id -u)" = 0 ] && id _apt >/dev/null 2>&1 && chown _apt "$work"
echo "promtool: downloading it with Debian's prometheus"
if (cd "$work" && apt-get -qq download prometheus) && dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work" ./usr/bin/promtool; then
    mkdir -p "$(dirname "$out")"
    mv "$work/usr/bin/promtool" "$out"
else
    echo "promtool: not there; the test of the alert rules will skip" >&2
fi
