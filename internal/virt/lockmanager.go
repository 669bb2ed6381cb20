package virt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

const (
	qemuConf         = "/etc/libvirt/qemu.conf"
	maxQEMUConfBytes = 1 << 20
)

// LockManager tells whether libvirt takes leases on disk images. It reads qemu.conf: neither domain XML nor
// libvirt's API shows the setting. libvirt gives leases up when a guest stops and does not take them again
// when QEMU resumes by itself, as it does after each checkpoint.
func (c *Conn) LockManager(ctx context.Context) Finding {
	const item = "lock manager"
	if err := ctx.Err(); err != nil {
		return Finding{item, Fail, err.Error(), "try again"}
	}
	f, err := os.Open(qemuConf)
	if errors.Is(err, fs.ErrNotExist) {
		return lockManagerFinding("")
	}
	if err != nil {
		return Finding{item, Fail, "cannot be told: " + err.Error(), "let virt-ft read " + qemuConf}
	}
	defer f.Close()
	name, err := lockManager(io.LimitReader(f, maxQEMUConfBytes))
	if err != nil {
		return Finding{item, Fail, fmt.Sprintf("cannot be told: %s: %v", qemuConf, err), "check that file"}
	}
	return lockManagerFinding(name)
}

func lockManagerFinding(name string) Finding {
	if name == "" || name == "nop" {
		return Finding{"lock manager", OK, "none", ""}
	}
	return Finding{
		"lock manager", Fail,
		fmt.Sprintf("libvirt uses %q; its leases are given up at each checkpoint and not taken again", name),
		"remove lock_manager from " + qemuConf + " and restart libvirtd",
	}
}

// lockManager returns the value of the last lock_manager line.
func lockManager(conf io.Reader) (string, error) {
	name := ""
	lines := bufio.NewScanner(conf)
	for lines.Scan() {
		key, value, found := strings.Cut(lines.Text(), "=")
		if !found || strings.TrimSpace(key) != "lock_manager" {
			continue
		}
		value = strings.TrimSpace(value)
		if value == "" || (value[0] != '"' && value[0] != '\'') {
			return "", fmt.Errorf("lock_manager = %s: value is not quoted", value)
		}
		name, _, found = strings.Cut(value[1:], value[:1])
		if !found {
			return "", fmt.Errorf("lock_manager = %s: quote is not closed", value)
		}
	}
	return name, lines.Err()
}
