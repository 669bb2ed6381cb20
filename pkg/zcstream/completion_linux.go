package zcstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlBytes holds one report of the error queue: a header, the error, the
// offender's address, and a time stamp if somebody switched those on.
const controlBytes = 512

// errNoReport says that control data holds no zero-copy report: it is about
// something else, an ICMP error for instance.
var errNoReport = errors.New("no zero-copy report in the control data")

// report is the kernel's word that it is through with the memory of the
// zero-copy calls lo to hi of a socket.
type report struct {
	lo, hi uint32
	copied bool // it had to copy after all
}

// parseReport finds the report in control data of an error queue, see
// Documentation/networking/msg_zerocopy.rst ("Notification Parsing"): a struct
// sock_extended_err (linux/errqueue.h) of level SOL_IP or SOL_IPV6.
func parseReport(control []byte) (report, error) {
	const head = int(unsafe.Sizeof(unix.Cmsghdr{}))
	for len(control) >= head {
		var h unix.Cmsghdr // a copy, because control need not be aligned
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), head), control)
		size := uint64(h.Len) // of 32 bits on some architectures
		if size < uint64(head) || size > uint64(len(control)) {
			return report{}, fmt.Errorf("control message of %d bytes in %d", size, len(control))
		}
		body := control[unix.CmsgLen(0):max(uint64(unix.CmsgLen(0)), size)]
		if h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR || h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR {
			return parseExtended(body)
		}
		next := uint64(unix.CmsgSpace(int(size) - unix.CmsgLen(0)))
		if next >= uint64(len(control)) {
			break
		}
		control = control[next:]
	}
	return report{}, errNoReport
}

// parseExtended decodes a struct sock_extended_err:
//
//	u32 errno | u8 origin | u8 type | u8 code | u8 pad | u32 info | u32 data | ...
func parseExtended(b []byte) (report, error) {
	if len(b) < int(unsafe.Sizeof(unix.SockExtendedErr{})) {
		return report{}, fmt.Errorf("extended error of %d bytes", len(b))
	}
	if b[4] != unix.SO_EE_ORIGIN_ZEROCOPY || binary.NativeEndian.Uint32(b) != 0 {
		return report{}, errNoReport
	}
	return report{
		lo: binary.NativeEndian.Uint32(b[8:]), hi: binary.NativeEndian.Uint32(b[12:]),
		copied: b[6]&unix.SO_EE_CODE_ZEROCOPY_COPIED != 0,
	}, nil
}
