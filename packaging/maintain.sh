# Shell functions of the scripts that run when virt-ft's package is installed,
# upgraded and removed: of the .deb and of the .rpm. They never stop a guest, and
# what they cannot do does not fail the package, unless a guest would be harmed.
# shellcheck shell=sh

# virt_ft_dir KEY DEFAULT: a directory of the daemon's configuration, as the hook reads it.
virt_ft_dir() {
    dir=
    if [ -r "${DPKG_ROOT:-}/etc/virt-ft/virt-ft.toml" ]; then
        dir=$(sed -n -e '/^[[:space:]]*\[/q' -e "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*[\"']\([^\"']*\)[\"'].*/\1/p" "${DPKG_ROOT:-}/etc/virt-ft/virt-ft.toml" | tail -n 1)
    fi
    echo "${DPKG_ROOT:-}${dir:-$2}"
}

# virt_ft_protected prints the domains that a protection of this host is not over
# for: a marker that has not ended says so, and so does a gate that is pinned. It
# fails if there is none.
virt_ft_protected() {
    found=
    for marker in "$(virt_ft_dir state_dir /var/lib/virt-ft)"/*.json; do
        [ -f "$marker" ] || continue
        grep -q '"phase": *"ended"' "$marker" && continue
        name=$(sed -n 's/.*"domain": *"\([^"]*\)".*/\1/p' "$marker" | head -n 1)
        found="$found ${name:-$(basename "$marker" .json)}"
    done
    for pins in "$(virt_ft_dir run_dir /run/virt-ft)"/bpf/*/; do
        [ -d "$pins" ] || continue
        uuid=$(basename "$pins")
        [ -f "$(virt_ft_dir state_dir /var/lib/virt-ft)/$uuid.json" ] || found="$found $uuid"
    done
    [ -n "$found" ] || return 1
    echo "${found# }"
}

virt_ft_apparmor_local=${DPKG_ROOT:-}/etc/apparmor.d/local/abstractions/libvirt-qemu
virt_ft_apparmor_line='include if exists <abstractions/virt-ft-qemu>'

# virt_ft_apparmor_remove takes the line away again.
virt_ft_apparmor_remove() {
    [ -f "$virt_ft_apparmor_local" ] || return 0
    grep -vxF "$virt_ft_apparmor_line" "$virt_ft_apparmor_local" >"$virt_ft_apparmor_local.virt-ft" || true
    cat "$virt_ft_apparmor_local.virt-ft" >"$virt_ft_apparmor_local"
    rm -f "$virt_ft_apparmor_local.virt-ft"
}

# What follows is not in the script that purges.

# virt_ft_refuse WHAT fails, with the remedy, while a domain is protected from or to this host.
virt_ft_refuse() {
    domains=$(virt_ft_protected) || return 0
    cat >&2 <<EOF
virt-ft: $1 is refused: a protection is not over for: $domains
Without the daemon a guest that is protected from here is not heard any more, and
the other host goes on with its copy; a standby that is here is lost.
Try: virt-ft status; virt-ft unprotect DOMAIN, on the host where the guest runs.
EOF
    return 1
}

virt_ft_systemd() { [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; }

# virt_ft_reload_libvirt has libvirt look for hooks again, which it does only when
# it starts or is told to. Its guests go on.
virt_ft_reload_libvirt() {
    virt_ft_systemd || return 0
    for unit in libvirtd.service virtqemud.service; do
        if systemctl -q is-active "$unit" 2>/dev/null; then
            systemctl reload "$unit" || echo "virt-ft: $unit was not reloaded: it runs our hook only after the next start" >&2
        fi
    done
}

# virt_ft_apparmor lets QEMU reach our sockets, by a line in the file that libvirt
# keeps for what is particular to a site. A guest that runs gets it when it is
# started again, or when its profile is loaded by hand.
virt_ft_apparmor() {
    [ -f "${DPKG_ROOT:-}/etc/apparmor.d/abstractions/libvirt-qemu" ] || return 0
    grep -qsxF "$virt_ft_apparmor_line" "$virt_ft_apparmor_local" && return 0
    mkdir -p "$(dirname "$virt_ft_apparmor_local")"
    echo "$virt_ft_apparmor_line" >>"$virt_ft_apparmor_local"
    for profile in /etc/apparmor.d/libvirt/libvirt-*-*; do
        [ -f "$profile" ] || continue
        case $profile in *.files) continue ;; esac
        if grep -qs "^$(basename "$profile") " /sys/kernel/security/apparmor/profiles; then
            echo "virt-ft: a guest runs that cannot be protected with its disks before: apparmor_parser -r $profile" >&2
        fi
    done
}

# virt_ft_ready fails, with what to do, while the daemon cannot start: TLS is the default, and needs certificates.
virt_ft_ready() {
    config=${DPKG_ROOT:-}/etc/virt-ft/virt-ft.toml
    grep -qsE '^[[:space:]]*(transport\.)?mode[[:space:]]*=[[:space:]]*["'\'']plain' "$config" && return 0
    grep -qsE '^[[:space:]]*(transport\.)?server_cert[[:space:]]*=' "$config" && return 0
    [ -f "${DPKG_ROOT:-}/etc/pki/libvirt/servercert.pem" ] && return 0
    cat >&2 <<'EOF'
virt-ft: not started: this host has no certificate, /etc/pki/libvirt/servercert.pem.
When there is one, and /etc/virt-ft/virt-ft.toml names an arbiter: systemctl start virt-ft
EOF
    return 1
}
