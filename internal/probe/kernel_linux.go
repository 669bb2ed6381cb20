package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// minMajor.minMinor is the first Linux that tracks written pages as we need it, and fastMinor the first
	// in which its fast path loses nothing that was swapped out.
	minMajor, minMinor, fastMinor = 6, 7, 9
	// settingBytesMax bounds what is read of a file in /proc or /sys.
	settingBytesMax = 64 << 10
)

// Release returns the kernel's release, such as "6.18.1".
func Release() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid pointer
	return unix.ByteSliceToString(u.Release[:])
}

// Kernel judges a release by its number alone; whether it can do what is needed is tried elsewhere.
func Kernel(release string) Finding {
	const id, item = "host.kernel", "kernel"
	major, minor, ok := parseRelease(release)
	switch {
	case !ok:
		return Finding{id, item, Warn, "Linux " + release + ": a release that cannot be read", "see whether dirty page tracking works"}
	case major < minMajor || major == minMajor && minor < minMinor:
		return Finding{id, item, Warn, fmt.Sprintf("Linux %s: older than %d.%d, the first that tracks written pages as virt-ft needs it", release, minMajor, minMinor),
			"boot Linux 6.7 or newer (Debian 12: the backports kernel)"}
	case major == minMajor && minor < fastMinor:
		return Finding{id, item, Warn, fmt.Sprintf("Linux %s: its fast tracking loses writes to pages that were swapped out, so a slower one is used", release),
			"boot Linux 6.9 or newer for shorter pauses"}
	}
	return Finding{id, item, OK, "Linux " + release, ""}
}

// parseRelease reads the two numbers with which a release begins.
func parseRelease(release string) (major, minor int, ok bool) {
	first, rest, found := strings.Cut(release, ".")
	if !found {
		return 0, 0, false
	}
	if end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		rest = rest[:end]
	}
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(rest)
	return major, minor, err1 == nil && err2 == nil
}

// Memory judges the settings of the kernel's memory management under root.
func Memory(root string) []Finding {
	var fs []Finding
	if text, err := setting(root, "sys/kernel/mm/transparent_hugepage/enabled"); err == nil {
		f := Finding{ID: "host.thp", Item: "transparent huge pages", Level: OK}
		switch chosen(text) {
		case "always", "madvise":
			f.Text = chosen(text) + ": the first write to each of a guest's splits it while it is tracked; pages of 4 KiB travel"
		case "never":
			f.Text = "never: guests run slower than they could, and more page tables are scanned at each checkpoint"
		default:
			f.Level, f.Text, f.Remedy = Warn, fmt.Sprintf("%q is not understood", strings.TrimSpace(text)), "report this"
		}
		fs = append(fs, f)
	}
	switch text, err := setting(root, "proc/sys/vm/overcommit_memory"); {
	case err != nil:
	case strings.TrimSpace(text) == "2":
		fs = append(fs, Finding{"host.overcommit", "overcommit", Warn,
			"vm.overcommit_memory is 2: a standby's memory, and a second copy during its rehearsal, are accounted before they are used, and may be refused",
			"set vm.overcommit_memory to 0 in /etc/sysctl.d, or raise vm.overcommit_ratio"})
	default:
		fs = append(fs, Finding{"host.overcommit", "overcommit", OK, "memory is accounted when it is used", ""})
	}
	return fs
}

// chosen returns the word in brackets of a setting such as "always [madvise] never".
func chosen(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	word, _, found := strings.Cut(rest, "]")
	if !found {
		return ""
	}
	return word
}

// setting reads a small file.
func setting(root, path string) (string, error) {
	b, err := readBounded(filepath.Join(root, path))
	return string(b), err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, settingBytesMax)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		if n += m; m == 0 || err != nil {
			break
		}
	}
	return b[:n], nil
}

// Rights judges what this process may do: nice is the priority that it is to have.
func Rights(root string, nice int) []Finding {
	fs := []Finding{trace(root)}
	status, err := setting(root, "proc/self/status")
	effective, ok := capabilities(status)
	if err != nil || !ok {
		return append(fs, Finding{"host.capabilities", "capabilities", Warn, "cannot be told from /proc/self/status", "report this"})
	}
	var missing []string
	for _, c := range []struct {
		name  string
		bits  []int // one of them is enough
		needs bool
	}{
		{"CAP_SYS_PTRACE (reads guests' memory, and what QEMU is made to do)", []int{unix.CAP_SYS_PTRACE}, true},
		{"CAP_NET_ADMIN (holds guests' frames)", []int{unix.CAP_NET_ADMIN}, true},
		{"CAP_NET_RAW (performs them)", []int{unix.CAP_NET_RAW}, true},
		{"CAP_BPF (holds guests' frames)", []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, true},
		{"CAP_SYS_NICE (key nice)", []int{unix.CAP_SYS_NICE}, nice < 0},
	} {
		has := !c.needs
		for _, bit := range c.bits {
			has = has || effective&(1<<bit) != 0
		}
		if !has {
			missing = append(missing, c.name)
		}
	}
	f := Finding{"host.capabilities", "capabilities", OK, "all that are needed", ""}
	if len(missing) > 0 {
		f.Level, f.Text, f.Remedy = Fail, "the daemon lacks "+strings.Join(missing, ", "), "run it by its unit virt-ft.service, or as root"
		if len(missing) == 1 && strings.HasPrefix(missing[0], "CAP_SYS_NICE") {
			f.Level, f.Remedy = Warn, "run it by its unit virt-ft.service, or set nice = 0"
		}
	}
	fs = append(fs, f)
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		fs = append(fs, openFiles(files.Cur))
	}
	return fs
}

// filesMin is enough for about as many guests as the daemon may have sessions.
const filesMin = 4096

func openFiles(limit uint64) Finding {
	if limit < filesMin {
		return Finding{"host.open_files", "open files", Warn, fmt.Sprintf("the daemon may open %d, which few guests with disks use up", limit),
			fmt.Sprintf("set LimitNOFILE=%d or more in its unit", filesMin)}
	}
	return Finding{"host.open_files", "open files", OK, fmt.Sprintf("up to %d", limit), ""}
}

// trace judges Yama's restriction of ptrace(2), which no capability lifts when it is 3.
func trace(root string) Finding {
	const id, item = "host.ptrace", "tracing QEMU"
	text, err := setting(root, "proc/sys/kernel/yama/ptrace_scope")
	switch {
	case err != nil:
		return Finding{id, item, OK, "not restricted by Yama", ""}
	case strings.TrimSpace(text) == "3":
		return Finding{id, item, Fail, "kernel.yama.ptrace_scope is 3: no process may trace another until the next boot", "set it to 2 or less in /etc/sysctl.d, and boot"}
	}
	return Finding{id, item, OK, "kernel.yama.ptrace_scope is " + strings.TrimSpace(text) + ", which CAP_SYS_PTRACE passes", ""}
}

// capabilities reads the effective set out of /proc/PID/status.
func capabilities(status string) (uint64, bool) {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return set, err == nil
		}
	}
	return 0, false
}

// Memfd tries to make memory of the kind that standbys have.
func Memfd() Finding {
	const id, item = "host.memfd", "memfd"
	fd, err := unix.MemfdCreate("virt-ft-check", unix.MFD_CLOEXEC)
	if err != nil {
		return Finding{id, item, Fail, "memfd_create: " + err.Error(), "see whether a seccomp filter of the daemon's unit forbids it"}
	}
	_ = unix.Close(fd)
	return Finding{id, item, OK, "can be made", ""}
}

// ZeroCopy tries whether a TCP socket sends without copying.
func ZeroCopy() Finding {
	const id, item = "host.zerocopy", "zero-copy sending"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
	}
	if err != nil {
		return Finding{id, item, Warn, "SO_ZEROCOPY: " + err.Error() + ": pages are copied once more on their way", "none needed"}
	}
	return Finding{id, item, OK, "works; used with transport plain where the network card takes it", ""}
}

// Time tells whether something keeps this host's clock right.
func Time() Finding {
	const id, item = "host.time_sync", "time synchronisation"
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return Finding{id, item, Warn, "cannot be told: " + err.Error(), "make sure that chrony or ntpd runs"}
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return Finding{id, item, Warn, "nothing tells the kernel that its clock is right: after a failover a guest's clock is as wrong as the hosts' differ", "run chrony or ntpd on both hosts"}
	}
	return Finding{id, item, OK, fmt.Sprintf("the kernel's clock is kept, and at most %d ms wrong", t.Maxerror/1000), ""}
}
