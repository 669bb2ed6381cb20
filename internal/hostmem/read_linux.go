package hostmem

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// fileMaxBytes bounds each file of the kernel's that is read.
	fileMaxBytes = 1 << 20
	// groupDepthMax bounds how deep a control group may lie.
	groupDepthMax = 64
	hugeDir       = "/sys/kernel/mm/hugepages"
	// machineSlice is where systemd puts guests. QEMU's own memory is charged
	// there, and what a guest first touches after a take-over; what a daemon
	// writes into a standby's memory is charged to the daemon's group.
	machineSlice = "/machine.slice"
)

// Read looks at this host and at the control groups of this process and of
// guests.
func Read() (Memory, error) {
	text, err := readFile("/proc/meminfo")
	if err != nil {
		return Memory{}, fmt.Errorf("hostmem: %w", err)
	}
	m, err := parseMeminfo(text)
	if err != nil {
		return m, err
	}
	if m.Huge, err = readPools(hugeDir); err != nil {
		return m, err
	}
	own, err := readFile("/proc/self/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil // a kernel without them
	}
	mounts, merr := readFile("/proc/self/mountinfo")
	if err = errors.Join(err, merr); err != nil {
		return m, fmt.Errorf("hostmem: %w", err)
	}
	for _, h := range hierarchies(mounts) {
		for _, path := range []string{h.pathOf(own), machineSlice} {
			m.Groups = h.limits(m.Groups, path, m.TotalBytes)
		}
	}
	return m, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, fileMaxBytes))
}

// parseMeminfo reads what /proc/meminfo says. MemAvailable is there since Linux
// 3.14.
func parseMeminfo(text []byte) (Memory, error) {
	var m Memory
	missing := map[string]*uint64{"MemTotal:": &m.TotalBytes, "MemAvailable:": &m.AvailableBytes}
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) < 2 || missing[words[0]] == nil {
			continue
		}
		kib, err := strconv.ParseUint(words[1], 10, 53) // in bytes it still fits
		if err != nil {
			return m, fmt.Errorf("hostmem: /proc/meminfo: %s %w", words[0], err)
		}
		*missing[words[0]] = kib << 10
		delete(missing, words[0])
	}
	for name := range missing {
		return m, fmt.Errorf("hostmem: /proc/meminfo has no line %q", name)
	}
	return m, nil
}

// readPools reads the kernel's pools of huge pages; see its hugetlbpage.rst. A
// page that a mapping has reserved is still counted as free there.
func readPools(dir string) ([]Pool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("hostmem: %w", err)
	}
	var pools []Pool
	for _, e := range entries {
		size, ok := strings.CutPrefix(e.Name(), "hugepages-")
		kib, err := strconv.ParseUint(strings.TrimSuffix(size, "kB"), 10, 40)
		if !ok || err != nil {
			continue
		}
		var pages [3]uint64
		for i, name := range [...]string{"nr_hugepages", "free_hugepages", "resv_hugepages"} {
			if pages[i], err = readNumber(filepath.Join(dir, e.Name(), name)); err != nil {
				return nil, fmt.Errorf("hostmem: huge pages: %w", err)
			}
		}
		page := kib << 10
		pools = append(pools, Pool{PageBytes: page, TotalBytes: pages[0] * page, FreeBytes: less(pages[1], pages[2]) * page})
	}
	return pools, nil
}

func readNumber(path string) (uint64, error) {
	text, err := readFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// hierarchy is a mounted tree of control groups that limit memory: version 2, or
// version 1's for memory.
type hierarchy struct {
	mount, root string // of the mount: which part of the tree it shows
	v1          bool
}

// hierarchies finds them in /proc/self/mountinfo; proc(5) has its format.
func hierarchies(mountinfo []byte) []hierarchy {
	var hs []hierarchy
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := strings.Cut(string(line), " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(place) < 5 || len(kind) < 3 {
			continue
		}
		h := hierarchy{root: place[3], mount: place[4]}
		switch kind[0] {
		case "cgroup2":
		case "cgroup":
			if !strings.Contains(","+kind[2]+",", ",memory,") {
				continue
			}
			h.v1 = true
		default:
			continue
		}
		hs = append(hs, h)
	}
	return hs
}

// pathOf returns where in h a process is, from its /proc/PID/cgroup; "/" if that
// does not say.
func (h hierarchy) pathOf(cgroup []byte) string {
	for line := range bytes.Lines(cgroup) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		if h.v1 && strings.Contains(","+controllers+",", ",memory,") || !h.v1 && id == "0" && controllers == "" {
			return filepath.Clean("/" + path)
		}
	}
	return "/"
}

// limits adds to gs each group from path upwards that has a limit below the
// host's memory. One that vanishes meanwhile has none.
func (h hierarchy) limits(gs []Group, path string, total uint64) []Group {
	if rest, below := strings.CutPrefix(path, h.root); below {
		path = filepath.Clean("/" + rest)
	}
	for range groupDepthMax {
		if g, ok := h.group(filepath.Join(h.mount, path)); ok && g.MaxBytes < total && !has(gs, g.Path) {
			gs = append(gs, g)
		}
		if path == "/" {
			break
		}
		path = filepath.Dir(path)
	}
	return gs
}

func has(gs []Group, path string) bool {
	for _, g := range gs {
		if g.Path == path {
			return true
		}
	}
	return false
}

// group reads one group. What the kernel would drop before it fails an
// allocation, clean pages of files that nobody used lately, does not count as
// used.
func (h hierarchy) group(dir string) (Group, bool) {
	limit, used, inactive := "memory.max", "memory.current", "inactive_file "
	if h.v1 {
		limit, used, inactive = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "
	}
	g := Group{Path: dir}
	var err error
	if g.MaxBytes, err = readNumber(filepath.Join(dir, limit)); err != nil {
		return g, false // none: version 2 says "max" then
	}
	if g.UsedBytes, err = readNumber(filepath.Join(dir, used)); err != nil {
		return g, false
	}
	stat, err := readFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return g, false
	}
	lines := bufio.NewScanner(bytes.NewReader(stat))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), inactive); ok {
			if n, err := strconv.ParseUint(rest, 10, 64); err == nil {
				g.UsedBytes = less(g.UsedBytes, n)
			}
		}
	}
	return g, true
}

// statBlockBytes is the unit of st_blocks, whatever the file system's own is; see
// stat(2).
const statBlockBytes = 512

// ResidentBytes is how much memory the files of guests' memory (memfds) take.
// Holes take none.
func ResidentBytes(files ...*os.File) (uint64, error) {
	var sum uint64
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return 0, fmt.Errorf("hostmem: %s: %w", f.Name(), err)
		}
		sum += uint64(st.Blocks) * statBlockBytes
	}
	return sum, nil
}
