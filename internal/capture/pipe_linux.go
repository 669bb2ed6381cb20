package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/ptracer"
	"golang.org/x/sys/unix"
)

const (
	brakeBytes = 4096 // what QEMU can write, at least, before it blocks

	// brakeMaxBytes is the most; half of what the kernel allows by default.
	brakeMaxBytes = 512 << 10
	flowBytes     = 1 << 20 // fs.pipe-max-size; a pipe that may not grow only drains slower
	// highFds is how many numbers below the limit we regard as ours, and
	// fdCeiling keeps QEMU's descriptor table small where the limit is huge.
	highFds   = 64
	fdCeiling = 16384
	fdsetID   = 0x76_66_74 // "vft"; only between add-fd and remove-fd
	fdOpaque  = "virt-ft"
	maxFds    = 1 << 20
)

// pipe is our pipe and its place in QEMU.
type pipe struct {
	pid, pidfd int
	link       string // "pipe:[INODE]"
	read       int    // our end, non-blocking; -1 once closed
	remote     int    // number of the write end in QEMU, -1 before it is there
	wake       int    // eventfd: the monitor has replied
}

// installPipe gives QEMU the write end of a new pipe under a high number.
func installPipe(ctx context.Context, pid int, mon Monitor, log *slog.Logger) (*pipe, error) {
	p := &pipe{pid: pid, pidfd: -1, read: -1, remote: -1, wake: -1}
	if err := p.install(ctx, mon, log); err != nil {
		return nil, errors.Join(err, p.remove(context.WithoutCancel(ctx)))
	}
	return p, nil
}

func (p *pipe) install(ctx context.Context, mon Monitor, log *slog.Logger) error {
	var err error
	if p.pidfd, err = unix.PidfdOpen(p.pid, 0); err != nil {
		return fmt.Errorf("%w: pidfd: %w", ErrGuestGone, err)
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	base, limit, err := highNumbers(p.pid)
	if err != nil {
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	p.read = ends[0]
	w := os.NewFile(uintptr(ends[1]), "checkpoint pipe")
	defer w.Close()
	var st unix.Stat_t
	// QEMU opens the pipe anew through /proc as the user it runs as.
	err = errors.Join(unix.SetNonblock(p.read, true), unix.Fchmod(p.read, 0o666), unix.Fstat(p.read, &st))
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	p.link = fmt.Sprintf("pipe:[%d]", st.Ino)
	if p.remote, err = p.pass(ctx, mon, w, base); err != nil {
		return err
	}
	if p.remote >= limit {
		return fmt.Errorf("QEMU's descriptors %d to %d are all taken", base, limit)
	}
	// Only now, so that our number is not one that a command of the
	// predecessor, if it is still queued somewhere, could name.
	if err := p.clearLeftovers(ctx, base, mon, log); err != nil {
		return fmt.Errorf("remove what a predecessor left: %w", err)
	}
	return p.verify()
}

// pass hands w to QEMU and returns its number there, at least base.
func (p *pipe) pass(ctx context.Context, mon Monitor, w *os.File, base int) (int, error) {
	raw, err := mon.QMPWithFiles(ctx, "add-fd", map[string]any{"fdset-id": fdsetID, "opaque": fdOpaque}, w)
	if err != nil {
		return -1, fmt.Errorf("add-fd: %w", err)
	}
	var added struct {
		Fd int `json:"fd"`
	}
	if err := json.Unmarshal(raw, &added); err != nil {
		return -1, fmt.Errorf("add-fd answered %.100q: %w", raw, err)
	}
	n, err := ptracer.Remote(ctx, p.pid, ptracer.Call{Nr: unix.SYS_FCNTL, Args: [6]uint64{uint64(added.Fd), unix.F_DUPFD_CLOEXEC, uint64(base)}})
	// QEMU closes its descriptors of fdsets when a monitor disconnects; ours
	// must not be one of them.
	_, rerr := mon.QMP(context.WithoutCancel(ctx), "remove-fd", map[string]any{"fdset-id": fdsetID, "fd": added.Fd})
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor in QEMU: %w", err)
	}
	if rerr != nil {
		return int(n), fmt.Errorf("remove-fd: %w", rerr)
	}
	return int(n), nil
}

// highNumbers returns the numbers [base, limit) that are ours in pid. Its limit is
// read where everybody may: prlimit(2) on a process of another user, even to ask,
// takes CAP_SYS_RESOURCE.
func highNumbers(pid int) (base, limit int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("descriptor limit of QEMU: %w", err)
	}
	limit, err = softDescriptors(string(text))
	if err != nil {
		return 0, 0, fmt.Errorf("descriptor limit of QEMU: %w", err)
	}
	limit = min(limit, fdCeiling)
	return max(limit-highFds, limit/2), limit, nil
}

// softDescriptors finds the soft limit of open files in a /proc/PID/limits.
func softDescriptors(limits string) (int, error) {
	for line := range strings.Lines(limits) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		switch {
		case len(fields) == 0:
		case fields[0] == "unlimited":
			return fdCeiling, nil
		default:
			return strconv.Atoi(fields[0])
		}
	}
	return 0, errors.New("no such line in its limits")
}

// verify makes sure that the number still is our pipe.
func (p *pipe) verify() error {
	if p.read < 0 && !p.gone() {
		return ErrLostPipe
	}
	is, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, p.remote))
	if p.gone() {
		return ErrGuestGone
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLostPipe, err)
	}
	if is != p.link {
		return fmt.Errorf("%w: descriptor %d is %s now, not %s", ErrLostPipe, p.remote, is, p.link)
	}
	return nil
}

// remove takes the pipe out of QEMU and closes our descriptors. A pipe that had
// to be broken stays in QEMU, which may be at it: the next Open removes it.
func (p *pipe) remove(ctx context.Context) error {
	var err error
	if p.remote >= 0 && p.read >= 0 {
		// Only what still is our pipe is closed.
		if is, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, p.remote)); is == p.link && !p.gone() {
			err = closeRemote(ctx, p.pid, p.remote)
		}
		if p.gone() {
			err = nil
		}
	}
	p.closeRead()
	for _, fd := range []*int{&p.wake, &p.pidfd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	return err
}

// closeRead breaks the pipe: QEMU, if it writes, fails and starts the guest.
func (p *pipe) closeRead() {
	if p.read >= 0 {
		unix.Close(p.read)
		p.read = -1
	}
}

func closeRemote(ctx context.Context, pid, fd int) error {
	_, err := ptracer.Remote(ctx, pid, ptracer.Call{Nr: unix.SYS_CLOSE, Args: [6]uint64{uint64(fd)}})
	if err != nil {
		return fmt.Errorf("close descriptor %d in QEMU: %w", fd, err)
	}
	return nil
}

// clearLeftovers closes the pipes of sessions whose process was killed: write
// ends without any reader, in our range of numbers or in an fdset of our name.
// QEMU has answered a monitor command before this, so that it is not in the
// middle of one that uses them.
func (p *pipe) clearLeftovers(ctx context.Context, base int, mon Monitor, log *slog.Logger) error {
	if err := p.clearFdsets(ctx, mon); err != nil {
		return err
	}
	links, err := p.descriptors()
	if err != nil {
		return err
	}
	dead := map[string]bool{}
	for n, link := range links {
		if n >= base && p.orphan(n) {
			dead[link] = true
		}
	}
	// The same pipe under a low number: when the pipe breaks, QEMU (7.2)
	// forgets to close what it opened, and nothing in it refers to that any
	// more. Pipes we do not know from our range are none of our business. Low
	// numbers first: should we be killed here, the high one still tells.
	for _, n := range slices.Sorted(maps.Keys(links)) {
		if !dead[links[n]] || !p.orphan(n) {
			continue
		}
		log.Info("closing the pipe of a session that ended unexpectedly", "fd", n)
		if err := closeRemote(ctx, p.pid, n); err != nil {
			return err
		}
	}
	return nil
}

// descriptors lists the pipes among QEMU's descriptors by number.
func (p *pipe) descriptors() (map[int]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd/", p.pid)
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxFds)
	if err != nil {
		return nil, err
	}
	links := map[int]string{}
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if link, err := os.Readlink(dir + name); err == nil && strings.HasPrefix(link, "pipe:[") {
			links[n] = link
		}
	}
	return links, nil
}

// clearFdsets removes what a predecessor passed and did not come to duplicate.
func (p *pipe) clearFdsets(ctx context.Context, mon Monitor) error {
	raw, err := mon.QMP(ctx, "query-fdsets", nil)
	if err != nil {
		return fmt.Errorf("query-fdsets: %w", err)
	}
	var sets []struct {
		ID  int64 `json:"fdset-id"`
		Fds []struct {
			Fd     int    `json:"fd"`
			Opaque string `json:"opaque"`
		} `json:"fds"`
	}
	if err := json.Unmarshal(raw, &sets); err != nil {
		return fmt.Errorf("query-fdsets: %w", err)
	}
	for _, set := range sets {
		for _, f := range set.Fds {
			if f.Opaque != fdOpaque || !p.orphan(f.Fd) {
				continue
			}
			if _, err := mon.QMP(ctx, "remove-fd", map[string]any{"fdset-id": set.ID, "fd": f.Fd}); err != nil {
				return fmt.Errorf("remove-fd: %w", err)
			}
		}
	}
	return nil
}

// orphan reports whether descriptor n of QEMU is the write end of a pipe that
// nobody can read any more.
func (p *pipe) orphan(n int) bool {
	fd, err := unix.PidfdGetfd(p.pidfd, n, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != unix.O_WRONLY {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(fd)}}
	k, err := unix.Poll(fds, 0)
	for err == unix.EINTR {
		k, err = unix.Poll(fds, 0)
	}
	return err == nil && k == 1 && fds[0].Revents&unix.POLLERR != 0
}

// gone reports whether the QEMU process has ended.
func (p *pipe) gone() bool { return p.pidfd < 0 || p.waitGone(0) }

// waitGone waits for the QEMU process to end, but no longer than timeoutMs.
func (p *pipe) waitGone(timeoutMs int) bool {
	fds := [1]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Duration(timeoutMs) * time.Millisecond); ; {
		n, err := unix.Poll(fds[:], max(0, int(time.Until(end).Milliseconds())))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

// resize sets the pipe's capacity. It fails when more is in it than fits.
func (p *pipe) resize(bytes int) error {
	_, err := unix.FcntlInt(uintptr(p.read), unix.F_SETPIPE_SZ, bytes)
	return err
}

// drain reads what is in the pipe now and appends it to dst, as long as dst
// stays within limit; what is beyond is thrown away and over is true.
func (p *pipe) drain(dst []byte, limit int) (out []byte, over bool, err error) {
	for {
		if len(dst) == cap(dst) && len(dst) < limit {
			dst = append(dst, make([]byte, min(len(dst)+flowBytes, limit-len(dst)))...)[:len(dst)]
		}
		room := dst[len(dst):min(cap(dst), limit)]
		if len(room) == 0 {
			over, room = true, dst[:min(cap(dst), flowBytes)]
			dst = dst[:0]
		}
		n, err := unix.Read(p.read, room)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == nil && n == 0:
			return dst, over, nil
		case err != nil:
			return dst, over, fmt.Errorf("read checkpoint pipe: %w", err)
		case !over:
			dst = dst[:len(dst)+n]
		}
	}
}

// event is what wait has seen.
type event struct{ data, replied, gone bool }

// wait blocks until there is data in the pipe, the monitor has replied, QEMU
// has ended or timeoutMs have passed (-1: no limit).
func (p *pipe) wait(timeoutMs int) (event, error) {
	fds := [3]unix.PollFd{
		{Fd: int32(p.read), Events: unix.POLLIN},
		{Fd: int32(p.wake), Events: unix.POLLIN},
		{Fd: int32(p.pidfd), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds[:], timeoutMs)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return event{}, fmt.Errorf("poll checkpoint pipe: %w", err)
		}
		ev := event{fds[0].Revents&unix.POLLIN != 0, fds[1].Revents != 0, fds[2].Revents != 0}
		if fds[0].Revents != 0 && ev == (event{}) {
			fds[0].Fd = -1 // QEMU has closed the pipe: only the others tell more
			continue
		}
		return ev, nil
	}
}

// hold waits for d, or until the monitor has replied or QEMU has ended.
func (p *pipe) hold(d time.Duration) error {
	for end := time.Now().Add(d); d > 0; d = time.Until(end) {
		fds := [2]unix.PollFd{{Fd: int32(p.wake), Events: unix.POLLIN}, {Fd: int32(p.pidfd), Events: unix.POLLIN}}
		ts := unix.NsecToTimespec(d.Nanoseconds())
		n, err := unix.Ppoll(fds[:], &ts, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("hold the guest: %w", err)
		}
		if n > 0 {
			return nil // what it means is seen by who looks next
		}
	}
	return nil
}

func (p *pipe) ring() {
	one := [8]byte{1}
	_, _ = unix.Write(p.wake, one[:]) // a counter at 1 cannot overflow
}

func (p *pipe) unring() {
	var b [8]byte
	_, _ = unix.Read(p.wake, b[:]) // EAGAIN if it was not rung
}
