package ptracer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const (
	mapsBytesMax = 16 << 20  // of /proc/PID/maps
	scanBytesMax = 256 << 20 // of executable memory searched
	scanChunk    = 1 << 20
)

// gadgets are the instructions of the target that the chain runs through.
type gadgets struct {
	call    uint64 // syscall ; ret
	restore uint64 // mov $15,%rax ; syscall
}

func callBytes() []byte    { return []byte{0x0f, 0x05, 0xc3} }
func restoreBytes() []byte { return []byte{0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05} }

// mapping is one line of /proc/PID/maps.
type mapping struct {
	start, end uint64
	perms      string
	path       string
}

// findGadgets searches the executable mappings of pid, libc first: it has both.
func findGadgets(pid int) (g gadgets, err error) {
	maps, err := readMaps(pid)
	if err != nil {
		return g, err
	}
	scanned := uint64(0)
	for _, m := range codeMappings(maps) {
		if scanned += m.end - m.start; scanned > scanBytesMax {
			break
		}
		if g.call == 0 {
			g.call = findBytes(pid, m, callBytes())
		}
		if g.restore == 0 {
			g.restore = findBytes(pid, m, restoreBytes())
		}
		if g.call != 0 && g.restore != 0 {
			return g, nil
		}
	}
	return g, errors.New("no `syscall; ret` or no __restore_rt in its code")
}

// verify checks that the gadgets are still there: the process may have called
// exec since they were found.
func (g gadgets) verify(pid int) error {
	for addr, want := range map[uint64][]byte{g.call: callBytes(), g.restore: restoreBytes()} {
		got := make([]byte, len(want))
		if err := readMemory(pid, addr, got); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("its code changed")
		}
	}
	return nil
}

// codeMappings are the read-only executable mappings, most promising first.
func codeMappings(maps []mapping) []mapping {
	code := slices.DeleteFunc(slices.Clone(maps), func(m mapping) bool {
		return !strings.HasPrefix(m.perms, "r-x") || m.path == "" || m.path == "[vsyscall]"
	})
	rank := func(m mapping) int {
		base := m.path[strings.LastIndexByte(m.path, '/')+1:]
		switch {
		case strings.HasPrefix(base, "libc.") || strings.HasPrefix(base, "libc-"):
			return 0
		case strings.HasPrefix(base, "ld-"):
			return 1
		case base == "[vdso]":
			return 2
		}
		return 3
	}
	slices.SortStableFunc(code, func(a, b mapping) int { return rank(a) - rank(b) })
	return code
}

// findBytes returns the address of the first occurrence of want in m, or 0.
func findBytes(pid int, m mapping, want []byte) uint64 {
	buf := make([]byte, scanChunk)
	for at := m.start; at+uint64(len(want)) <= m.end; {
		chunk := buf[:min(scanChunk, m.end-at)]
		if readMemory(pid, at, chunk) != nil {
			return 0
		}
		if i := bytes.Index(chunk, want); i >= 0 {
			return at + uint64(i)
		}
		at += uint64(len(chunk) - len(want) + 1) // overlap, for a match across chunks
	}
	return 0
}

func readMaps(pid int) ([]mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mapsBytesMax))
	if err != nil {
		return nil, err
	}
	return parseMaps(string(data)), nil
}

// parseMaps reads the text of /proc/PID/maps, leaving out lines it does not understand.
func parseMaps(text string) []mapping {
	var maps []mapping
	for line := range strings.Lines(text) {
		var m mapping
		var offset, dev, inode string
		n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s", &m.start, &m.end, &m.perms, &offset, &dev, &inode)
		if n != 6 || m.end < m.start {
			continue
		}
		// The path follows the inode and may contain spaces.
		if i := strings.IndexAny(line, "/["); i >= 0 {
			m.path = strings.TrimSpace(line[i:])
		}
		maps = append(maps, m)
	}
	return maps
}
