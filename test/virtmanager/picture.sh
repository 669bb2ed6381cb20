#!/bin/bash
# Takes pictures of what virt-manager shows of two libvirtds, on an X server of its
# own that nobody sees.
#
#     picture.sh SOCKET_A SOCKET_B DOMAIN STANDBY DIRECTORY
#
# STANDBY is the domain's name on B. Prints what is missing and exits with 3, if
# something is.
set -euo pipefail
if [ -z "${INSIDE:-}" ]; then
    for tool in virt-manager Xvfb xdotool import convert dbus-run-session; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if [ -n "${missing:-}" ]; then
        echo "virtmanager: ${missing[*]} missing: apt-get install --no-install-recommends virt-manager xvfb xdotool imagemagick dbus-x11 adwaita-icon-theme fonts-dejavu-core"
        exit 3
    fi
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
    mkfifo "$home/display"
    Xvfb -displayfd 3 -screen 0 1000x760x24 -nolisten tcp -noreset >"$home/xvfb.log" 2>&1 3>"$home/display" &
    x=$!
    trap 'kill $x; wait $x || true; rm -rf "$home"' EXIT
    read -r display <"$home/display"
    export INSIDE=1 DISPLAY=:$display HOME=$home XDG_CONFIG_HOME=$home XDG_CACHE_HOME=$home XDG_DATA_HOME=$home \
        XDG_RUNTIME_DIR=$home GSETTINGS_BACKEND=keyfile NO_AT_BRIDGE=1 GDK_BACKEND=x11 LANGUAGE=C LC_ALL=C.UTF-8
    dbus-run-session -- "$0" "$@" &
    session=$!
    trap 'kill $session 2>/dev/null; kill $x; wait || true; rm -rf "$home"' EXIT
    trap 'exit 130' INT TERM # which also ends the wait
    wait $session
    exit
fi

home=$HOME domain=$3 standby=$4 out=$5
# Short paths without a slash of their own: virt-manager drops those from the name
# under which it keeps what it knows of a connection.
ln -s "$1" "$home/a"
ln -s "$2" "$home/b"
uri() { echo "qemu+unix:///system?socket=$home/$1"; }
key() { uri "$1" | tr -d /; }
mkdir -p "$home/glib-2.0/settings"
cat >"$home/glib-2.0/settings/keyfile" <<KEYS
[org/virt-manager/virt-manager]
manager-window-width=560
manager-window-height=260
xmleditor-enabled=false
[org/virt-manager/virt-manager/connections]
uris=['$(uri a)', '$(uri b)']
autoconnect=['$(uri a)', '$(uri b)']
[org/virt-manager/virt-manager/conns/$(key a)]
pretty-name='host-a'
[org/virt-manager/virt-manager/conns/$(key b)]
pretty-name='host-b'
[org/virt-manager/virt-manager/stats]
enable-cpu-poll=false
[org/virt-manager/virt-manager/vmlist-fields]
cpu-usage=false
KEYS

# shot TITLE FILE [WIDTH HEIGHT] takes a picture of the window with that title when
# it has stood still for some seconds; those before show how it is being filled.
shot() {
    local id last= now same=0 tries
    id=$(timeout 60 xdotool search --sync --onlyvisible --name "$1" | tail -n 1)
    if [ -n "${3:-}" ]; then xdotool windowsize --sync "$id" "$3" "$4"; fi
    for tries in $(seq 60); do
        import -silent -window "$id" "$home/shot.png"
        now=$(convert "$home/shot.png" rgb:- | cksum)
        if [ "$now" = "$last" ]; then same=$((same + 1)); else same=0; fi
        [ $same -ge 3 ] && break
        last=$now
        sleep 1 # between two pictures
    done
    convert "$home/shot.png" -strip -colors 96 -define png:compression-level=9 "$out/$2.png"
    echo "$out/$2.png after $tries looks"
}

virt-manager --no-fork >"$home/manager.log" 2>&1 &
manager=$!
trap 'kill $manager 2>/dev/null; cat "$home/manager.log" >&2' ERR
shot 'Virtual Machine Manager' virt-manager
virt-manager --connect "$(uri a)" --show-domain-editor "$domain"
shot "$domain on" virt-manager-protected 780 560
virt-manager --connect "$(uri b)" --show-domain-editor "$standby"
shot 'standby of' virt-manager-standby 780 560
kill $manager
wait $manager || true
