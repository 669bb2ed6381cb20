package guestram

import (
	"bufio"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is one line of /proc/PID/maps.
type mapping struct {
	start, end, off uint64
	shared          bool
	dev, inode      uint64 // dev as stat reports it
	path            string
}

type mappings []mapping // sorted by address, as the kernel prints them

func (ms mappings) find(addr uint64) *mapping {
	i := sort.Search(len(ms), func(i int) bool { return ms[i].end > addr })
	if i == len(ms) || ms[i].start > addr {
		return nil
	}
	return &ms[i]
}

func readMaps(pid int) (mappings, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out mappings
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 8192), 8192) // a path has at most 4096 bytes
	for sc.Scan() {
		m, err := parseMapping(sc.Text())
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, sc.Err()
}

// parseMapping reads "START-END PERMS OFFSET MAJ:MIN INODE   PATH".
func parseMapping(l string) (mapping, error) {
	var m mapping
	f := strings.Fields(l)
	if len(f) < 5 || len(f[1]) != 4 {
		return m, fmt.Errorf("maps: line %.100q", l)
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	major, minor, _ := strings.Cut(f[3], ":")
	var err error
	hex := func(s string) uint64 {
		v, e := strconv.ParseUint(s, 16, 64)
		if e != nil && err == nil {
			err = fmt.Errorf("maps: line %.100q: %w", l, e)
		}
		return v
	}
	m.start, m.end, m.off = hex(lo), hex(hi), hex(f[2])
	m.dev = unix.Mkdev(uint32(hex(major)), uint32(hex(minor)))
	m.shared = f[1][3] == 's'
	ino, e := strconv.ParseUint(f[4], 10, 64)
	if e != nil {
		return m, fmt.Errorf("maps: line %.100q: %w", l, e)
	}
	m.inode = ino
	if len(f) > 5 {
		m.path = strings.Join(f[5:], " ")
	}
	return m, err
}

// attachMappings fills in how each migratable block is mapped, and checks that
// it is mapped whole.
func attachMappings(pid int, blocks []Block) error {
	maps, err := readMaps(pid)
	if err != nil {
		return err
	}
	for i := range blocks {
		b := &blocks[i]
		if !b.Migratable || b.Used == 0 {
			continue
		}
		m := maps.find(b.Host)
		if m == nil {
			return fmt.Errorf("RAM block %s: nothing is mapped at %#x: %w", b.Name, b.Host, ErrLayout)
		}
		for at := m; at.end < b.Host+b.Used; {
			next := maps.find(at.end)
			if next == nil || next.inode != m.inode || next.shared != m.shared {
				return fmt.Errorf("RAM block %s: not mapped whole at %#x: %w", b.Name, at.end, ErrLayout)
			}
			at = next
		}
		if m.shared {
			b.Shared, b.MemfdInode, b.MemfdDev = true, m.inode, m.dev
			b.FileOff = m.off + b.Host - m.start
		} else if m.inode != 0 {
			return &UnsupportedError{"RAM block " + b.Name, "a private mapping of the file " + m.path + "; make it anonymous, or a memfd with share=on"}
		}
	}
	return nil
}
