package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nicWait bounds how long the first network interface may take to appear.
const nicWait = 3 * time.Second

func mountAll() error {
	for _, m := range [...]struct{ fs, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		// The kernel may have mounted /dev itself.
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	return nil
}

// loadModules inserts what /modules/list names, in its order. A module that
// will not load is reported and skipped: the guest must come up without it.
func loadModules(say func(string, ...any)) {
	list, err := os.ReadFile("/modules/list")
	if err != nil {
		say("no module list: %v", err)
		return
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := loadModule("/modules/" + name); err != nil && !errors.Is(err, unix.EEXIST) {
			say("module %s: %v", name, err)
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// firstNIC waits for an Ethernet interface and returns its name.
func firstNIC() (string, error) {
	for deadline := time.Now().Add(nicWait); ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir("/sys/class/net")
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			kind, _ := os.ReadFile("/sys/class/net/" + e.Name() + "/type")
			if strings.TrimSpace(string(kind)) == "1" {
				return e.Name(), nil
			}
		}
		if time.Now().After(deadline) {
			return "", errors.New("no network interface")
		}
	}
}

// ifreq is struct ifreq with the union as plain bytes.
type ifreq struct {
	name  [unix.IFNAMSIZ]byte
	union [24]byte
}

// configure gives the interface its address and brings it up.
func configure(nic string, prefix netip.Prefix) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mask := uint32(0xffffffff) << (32 - prefix.Bits())
	addr := prefix.Addr().As4()
	sockaddr := func(ip [4]byte) (u [24]byte) {
		binary.NativeEndian.PutUint16(u[:], unix.AF_INET)
		copy(u[4:], ip[:])
		return u
	}
	var flags [24]byte
	binary.NativeEndian.PutUint16(flags[:], unix.IFF_UP|unix.IFF_RUNNING)
	for _, step := range [...]struct {
		what  string
		code  uintptr
		union [24]byte
	}{
		{"address", unix.SIOCSIFADDR, sockaddr(addr)},
		{"netmask", unix.SIOCSIFNETMASK, sockaddr([4]byte(binary.BigEndian.AppendUint32(nil, mask)))},
		{"up", unix.SIOCSIFFLAGS, flags},
	} {
		req := ifreq{union: step.union}
		copy(req.name[:unix.IFNAMSIZ-1], nic)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), step.code, uintptr(unsafe.Pointer(&req))); e != 0 {
			return fmt.Errorf("%s: %s: %w", nic, step.what, e)
		}
	}
	return nil
}

// clockNs reads a clock of this guest.
func clockNs(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// reap collects orphans, as process 1 must.
func reap(signals <-chan os.Signal) {
	for range signals {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}
