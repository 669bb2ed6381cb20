package virt

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// HostInfo describes a host.
type HostInfo struct {
	Hostname       string `json:"hostname"`
	URI            string `json:"uri"`
	LibvirtVersion string `json:"libvirtVersion"` // "9.0.0"
	QEMUVersion    string `json:"qemuVersion"`    // of libvirt's default emulator
	// MemoryAvailableBytes is what new processes can get without swapping (MemAvailable).
	MemoryAvailableBytes uint64 `json:"memoryAvailableBytes"`
	MemoryTotalBytes     uint64 `json:"memoryTotalBytes"`
}

// Host describes this host. The first call after a start of libvirtd may take seconds, as libvirtd then
// probes QEMU.
func (c *Conn) Host(ctx context.Context) (HostInfo, error) {
	return call(ctx, c, "describe host", "", func(l *link) (HostInfo, error) {
		info := HostInfo{URI: c.uri}
		var err error
		if info.Hostname, err = l.conn.GetHostname(); err != nil {
			return info, err
		}
		lib, err := l.conn.GetLibVersion()
		if err != nil {
			return info, err
		}
		qemu, err := l.conn.GetVersion()
		if err != nil {
			return info, err
		}
		info.LibvirtVersion, info.QEMUVersion = version(lib), version(qemu)
		info.MemoryTotalBytes, info.MemoryAvailableBytes, err = memInfo()
		return info, err
	}, nil)
}

// version unfolds libvirt's major*1000000 + minor*1000 + release.
func version(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000)
}

// memInfo asks the kernel: libvirt's free memory leaves out the page cache.
func memInfo() (totalBytes, availableBytes uint64, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			totalBytes = kib << 10
		case "MemAvailable:":
			availableBytes = kib << 10
		}
	}
	return totalBytes, availableBytes, lines.Err()
}
