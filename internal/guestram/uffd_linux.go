package guestram

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/userfaultfd.h and linux/fs.h of Linux 6.7, which x/sys lacks.
const (
	uffdAPI          = 0xaa
	uffdUserModeOnly = 1

	featPagefaultFlagWP  = 1 << 0
	featWPHugetlbfsShmem = 1 << 12
	featWPUnpopulated    = 1 << 13
	featWPAsync          = 1 << 15
	uffdFeatures         = featPagefaultFlagWP | featWPHugetlbfsShmem | featWPUnpopulated | featWPAsync
	uffdioRegisterModeWP = 1 << 1
	uffdioWriteprotectWP = 1 << 0
	uffdioAPI            = 0xc018aa3f
	uffdioRegister       = 0xc020aa00
	uffdioWriteprotect   = 0xc018aa06
	pagemapScan          = 0xc0606610
	pmScanWPMatching     = 1 << 0
	pmScanCheckWPAsync   = 1 << 1
	pageIsWritten        = 1 << 1
	pageIsPresent        = 1 << 3
	pageIsSwapped        = 1 << 4
)

type uffdioAPIArg struct{ api, features, ioctls uint64 }
type uffdioRegisterArg struct{ start, len, mode, ioctls uint64 }
type uffdioWriteprotectArg struct{ start, len, mode uint64 }

type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyof, ret                              uint64
}

// pageRegion is struct page_region: addresses, and what the pages are.
type pageRegion struct{ start, end, categories uint64 }

func ioctl(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// uffdHandshake enables on fd the features that tracking needs.
func uffdHandshake(fd int) error {
	arg := uffdioAPIArg{api: uffdAPI, features: uffdFeatures}
	if _, err := ioctl(fd, uffdioAPI, unsafe.Pointer(&arg)); err != nil {
		return needsKernel("this kernel's userfaultfd has no asynchronous write protection", err)
	}
	return nil
}

func uffdRegister(fd int, start, length uint64) error {
	arg := uffdioRegisterArg{start: start, len: length, mode: uffdioRegisterModeWP}
	_, err := ioctl(fd, uffdioRegister, unsafe.Pointer(&arg))
	return err
}

// uffdProtect arms [start, start+length), pages that do not exist included.
func uffdProtect(fd int, start, length uint64) error {
	arg := uffdioWriteprotectArg{start: start, len: length, mode: uffdioWriteprotectWP}
	for {
		// EAGAIN: the process is changing its mappings at this moment.
		_, err := ioctl(fd, uffdioWriteprotect, unsafe.Pointer(&arg))
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return err
	}
}

func needsKernel(what string, err error) error {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid pointer
	return &UnsupportedError{"dirty page tracking", fmt.Sprintf(
		"needs Linux >= 6.7 (userfaultfd WP_ASYNC and PAGEMAP_SCAN); %s on Linux %s: %v",
		what, unix.ByteSliceToString(u.Release[:]), err)}
}

// ProbeUffd tells whether this kernel can track writes as TrackUffd does, by
// doing it to one page of our own. A kernel that cannot yields an error that
// matches ErrUnsupported and says what is needed.
func ProbeUffd() error {
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if e != 0 {
		return needsKernel("userfaultfd", e)
	}
	defer unix.Close(int(fd))
	if err := uffdHandshake(int(fd)); err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, 2*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("probe page: %w", err)
	}
	defer unix.Munmap(mem)
	pm, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/self/pagemap: %w", err)
	}
	defer unix.Close(pm)
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	if err := uffdRegister(int(fd), start, uint64(len(mem))); err != nil {
		return needsKernel("register", err)
	}
	mem[0] = 1
	var vec [8]pageRegion
	var pin runtime.Pinner // the kernel gets this address inside a struct
	pin.Pin(&vec)
	defer pin.Unpin()
	arg := scanArg(start, start+uint64(len(mem)), vec[:], scanAll)
	for pass, want := range []uint64{start, start + PageSize} {
		arg.start = start
		n, err := ioctl(pm, pagemapScan, unsafe.Pointer(&arg))
		if err != nil {
			return needsKernel("PAGEMAP_SCAN", err)
		}
		if !slicesContain(vec[:n], want) {
			return needsKernel("PAGEMAP_SCAN", fmt.Errorf("write %d was not seen", pass+1))
		}
		mem[PageSize] = 1
	}
	return nil
}

func slicesContain(vec []pageRegion, addr uint64) bool {
	for _, r := range vec {
		if r.categories&pageIsWritten != 0 && r.start <= addr && addr < r.end {
			return true
		}
	}
	return false
}

// query is what a scan asks for. All of them re-arm the written pages they
// report, but for the last two.
//
// Pages that are not present are asked for because a page that was thrown away
// may otherwise be missed: there are kernels for which a page-table hole, as
// MADV_DONTNEED of a whole huge page leaves one, is not PAGE_IS_WRITTEN.
type query int

const (
	scanAll         query = iota // written, or not present; and which of it
	scanWritten                  // written; the kernel has a fast path for just this
	scanWrittenSure              // the same, without that path
	scanNew                      // written, and something is there: not holes
	scanHoles                    // neither present nor swapped out nor marked
	scanPresent                  // present; arms nothing
	scanThere                    // present, swapped out or marked; arms nothing
)

func scanArg(start, end uint64, vec []pageRegion, q query) pmScanArg {
	a := pmScanArg{
		size: uint64(unsafe.Sizeof(pmScanArg{})), flags: pmScanWPMatching | pmScanCheckWPAsync,
		start: start, end: end,
		vec: uint64(uintptr(unsafe.Pointer(&vec[0]))), vecLen: uint64(len(vec)),
		ret: pageIsWritten | pageIsPresent | pageIsSwapped,
	}
	switch q {
	case scanAll:
		a.inverted, a.anyof = pageIsPresent, pageIsWritten|pageIsPresent
	case scanWritten:
		a.mask, a.ret = pageIsWritten, pageIsWritten
	case scanWrittenSure:
		a.mask, a.ret = pageIsWritten, pageIsWritten|pageIsPresent
	case scanNew:
		a.mask, a.anyof = pageIsWritten, pageIsPresent|pageIsSwapped
	case scanHoles:
		a.inverted, a.mask = pageIsPresent|pageIsSwapped, pageIsPresent|pageIsSwapped
	case scanPresent:
		a.flags, a.mask, a.ret = 0, pageIsPresent, pageIsPresent
	case scanThere:
		a.flags, a.anyof, a.ret = 0, pageIsPresent|pageIsSwapped, pageIsPresent|pageIsSwapped
	}
	return a
}

var errStuck = errors.New("PAGEMAP_SCAN makes no progress")

// writtenQuery is how this kernel is asked for what was written. Before Linux 6.9
// (and 6.8.10) the fast path takes some pages that were written and are swapped
// out, or being moved, for armed ones (mended by commit 2c7ad9a590d1).
func writtenQuery() query {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid pointer
	return queryFor(unix.ByteSliceToString(u.Release[:]))
}

// queryFor is writtenQuery for a kernel of that release. One whose release says
// nothing is not trusted.
func queryFor(release string) query {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n == 2 && (major > 6 || major == 6 && minor >= 9) {
		return scanWritten
	}
	return scanWrittenSure
}

// holesAreWritten tells whether q, a scan for what was written, reports and arms
// page-table holes of this kernel too, as Linux 6.18 does: then a discarded
// huge page needs no walk of its own. It tries, on memory of our own.
func holesAreWritten(q query) (bool, error) {
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if e != 0 {
		return false, needsKernel("userfaultfd", e)
	}
	defer unix.Close(int(fd))
	if err := uffdHandshake(int(fd)); err != nil {
		return false, err
	}
	mem, err := unix.Mmap(-1, 0, 2*regionBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return false, fmt.Errorf("probe region: %w", err)
	}
	defer unix.Munmap(mem)
	pm, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open /proc/self/pagemap: %w", err)
	}
	defer unix.Close(pm)
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	if err := uffdRegister(int(fd), start, uint64(len(mem))); err != nil {
		return false, needsKernel("register", err)
	}
	l := newLane()
	whole := (start + regionBytes - 1) / regionBytes * regionBytes
	for _, want := range []uint64{regionBytes, 0} { // and only once
		found := uint64(0)
		err := l.scan(pm, whole, whole+regionBytes, q, func(r pageRegion) error {
			found += r.end - r.start
			return nil
		})
		if err != nil {
			return false, needsKernel("PAGEMAP_SCAN", err)
		}
		if found != want {
			return false, nil
		}
	}
	return true, nil
}
