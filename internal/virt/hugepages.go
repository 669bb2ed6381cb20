package virt

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// HugePageBytes is the size of the huge pages that a domain's XML asks for as its
// memory; 0 if it asks for none. Without a size it is this host's default.
func HugePageBytes(xml string) (uint64, error) {
	d, err := parseDomain(xml)
	if err != nil {
		return 0, err
	}
	if d.MemoryBacking == nil || d.MemoryBacking.MemoryHugePages == nil {
		return 0, nil
	}
	for _, p := range d.MemoryBacking.MemoryHugePages.Hugepages {
		unit, known := map[string]uint64{"": 1 << 10, "B": 1, "bytes": 1, "KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30, "G": 1 << 30}[p.Unit]
		if !known {
			return 0, fmt.Errorf("domain %s: huge pages in %q", d.Name, p.Unit)
		}
		return uint64(p.Size) * unit, nil
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Hugepagesize:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 40)
			return kib << 10, err
		}
	}
	return 0, nil // a kernel without them: QEMU will say so
}
