package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const libvirtdPath = "/usr/sbin/libvirtd"

// qemuConf makes libvirt's QEMU driver content with a host that has neither
// cgroups nor security labels nor virtlogd.
const qemuConf = `user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
`

// libvirtdConf leaves access to the socket's permissions: there is no polkit.
// Both hosts share a machine, and so its UUID, which libvirt uses to tell hosts
// apart: each gets one of its own.
const libvirtdConf = `auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "%s"
`

// listenConf opens a port on the replication network, which exists only within
// the lab, see Options.Migration.
const listenConf = `listen_tls = 0
listen_tcp = 1
listen_addr = "%s"
auth_tcp = "none"
`

// files is what the host's first process writes over the machine's files.
func (h *Host) files() map[string]string {
	libvirtd := fmt.Sprintf(libvirtdConf, h.side.uuid)
	if h.lab.listen {
		libvirtd += fmt.Sprintf(listenConf, h.Repl)
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s host-a\n%s host-b\n", ReplicationA, ReplicationB)
	return map[string]string{
		"/etc/libvirt/qemu.conf":     qemuConf,
		"/etc/libvirt/libvirtd.conf": libvirtd,
		"/etc/hosts":                 hosts,
		"/etc/machine-id":            strings.ReplaceAll(h.side.uuid, "-", "") + "\n",
	}
}

func (h *Host) newLibvirtd() *Service {
	argv := []string{libvirtdPath}
	if h.lab.listen {
		argv = append(argv, "--listen")
	}
	return &Service{host: h, name: "libvirtd", argv: argv, ready: func(ctx context.Context) error {
		socket, err := h.Root("/run/libvirt/libvirt-sock")
		if err != nil {
			return err
		}
		if _, err := os.Stat(socket); err != nil {
			return err // cheaper than asking virsh in vain
		}
		_, err = h.Virsh(ctx, "uri")
		return err
	}}
}

// QEMU returns the process id, as seen from outside, of the QEMU of a running
// domain.
func (h *Host) QEMU(domain string) (int, error) {
	path, err := h.Root("/run/libvirt/qemu/" + domain + ".pid")
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("lab: %s: domain %s does not run: %w", h.Name, domain, err)
	}
	inner := strings.TrimSpace(string(text))
	pids, err := h.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				ids := strings.Fields(rest)
				if len(ids) > 1 && ids[len(ids)-1] == inner {
					return pid, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("lab: %s: QEMU of %s (process %s there) is gone", h.Name, domain, inner)
}

// Processes lists the host's processes by their ids outside, the first process
// included.
func (h *Host) Processes() ([]int, error) {
	own, err := h.Root("")
	if err != nil {
		return nil, err
	}
	ns, err := os.Readlink(filepath.Join(filepath.Dir(own), "ns", "pid"))
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	return processesIn("pid", ns)
}

// processesIn lists the processes whose namespace of a kind is ns.
func processesIn(kind, ns string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil && link == ns {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
