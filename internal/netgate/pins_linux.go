package netgate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Names of pins: nicN_map and nicN_link; a bpffs allows no dots.
const (
	pinPrefix = "nic"
	pinMap    = "_map"
	pinLink   = "_link"
)

func pinPath(dir string, index uint16, kind string) string {
	return filepath.Join(dir, pinPrefix+strconv.Itoa(int(index))+kind)
}

// MountPins makes dir and, if it is not in a bpffs, mounts one there. The mount
// lives as long as the mount namespace it was made in: a daemon whose service
// manager gives it one of its own loses the pins when it ends, and with them
// the gates. /sys/fs/bpf, mounted by most systems, has no such trap.
func MountPins(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("netgate: directory of pins: %w", err)
	}
	is, err := inBPFFS(dir)
	if err != nil || is {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return &UnsupportedError{"mounting a bpffs at " + dir, "needs CAP_SYS_ADMIN and CONFIG_BPF_SYSCALL", err}
	}
	return nil
}

func inBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("netgate: statfs %s: %w", dir, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// preparePins makes dir in a bpffs.
func preparePins(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("netgate: directory of pins: %w", err)
	}
	is, err := inBPFFS(dir)
	if err == nil && !is {
		err = &UnsupportedError{"pinning in " + dir, "mount a bpffs there", errors.New("not in a bpffs")}
	}
	return err
}

// Remove takes away what an earlier daemon pinned in dir: its guest's output
// flows again, what it held is lost. A directory that is not there is no error.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("netgate: pins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return wrap("removing pins", "", errors.Join(errs...))
}

// unpin removes one pin. A link is detached first: somebody else might have it
// open.
func unpin(path string) error {
	if strings.HasSuffix(path, pinLink) {
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			_ = l.Detach() // fails if the interface is gone, and is not needed then
			l.Close()
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeOthers removes pins of interfaces that the gate does not have any more.
func removeOthers(dir string, nics []NIC) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, n := range nics {
		keep[pinPath(dir, n.Index, pinMap)] = true
		keep[pinPath(dir, n.Index, pinLink)] = true
	}
	var errs []error
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); !keep[path] && strings.HasPrefix(e.Name(), pinPrefix) {
			errs = append(errs, unpin(path))
		}
	}
	return errors.Join(errs...)
}

// errStale means that pins are not of this interface: it, or the whole guest,
// was made anew.
var errStale = errors.New("not of this interface")

// loadPins returns what an earlier daemon pinned for this interface. An error
// matches fs.ErrNotExist if there is nothing, errStale if that does not concern
// this interface, and ErrLayout if it does but is of another version.
func loadPins(dir string, nic NIC, ifindex int) (*state, link.Link, error) {
	l, err := loadLink(pinPath(dir, nic.Index, pinLink), ifindex)
	if err != nil {
		return nil, nil, err
	}
	s, err := loadState(pinPath(dir, nic.Index, pinMap))
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return s, l, nil
}

func loadState(path string) (*state, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrLayout, err)
	}
	s, err := mapState(m)
	if err != nil {
		return nil, err
	}
	if got := s.word(wordLayout).Load(); got != layoutVersion {
		s.close()
		return nil, fmt.Errorf("%w: %#x", ErrLayout, got)
	}
	return s, nil
}

// loadLink returns a pinned link if it is of a gate before this interface.
func loadLink(path string, ifindex int) (link.Link, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return nil, err
	}
	info, err := l.Info()
	if err == nil {
		var gates map[link.ID]bool
		if gates, err = linksOn(ifindex); err == nil && !gates[info.ID] {
			err = errStale
		}
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// linksOn returns the links of gates on an interface's ingress.
func linksOn(ifindex int) (map[link.ID]bool, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return nil, err
	}
	gates := map[link.ID]bool{}
	for _, a := range q.Programs {
		prog, err := ebpf.NewProgramFromID(a.ID)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		info, err := prog.Info()
		prog.Close()
		if err != nil {
			return nil, err
		}
		if id, ok := a.LinkID(); ok && info.Name == gateProgram {
			gates[id] = true
		}
	}
	return gates, nil
}
