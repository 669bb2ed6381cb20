package nbd

import (
	"context"
	"errors"
	"syscall"
)

// Backend is one exported disk. Its methods are called one at a time, also when
// several clients use the export, and for one client in the order in which its
// requests came. Ranges are within the size and never empty. A method that waits
// must return when ctx ends, which it does when the connection is dropped.
//
// The client is told of an error by its errno, if it has one in its chain that
// NBD knows (EPERM, EIO, ENOMEM, EINVAL, ENOSPC, ESHUTDOWN), else as EIO.
type Backend interface {
	// SizeBytes is asked once, by Add.
	SizeBytes() int64
	// Read fills p from off on.
	Read(ctx context.Context, p []byte, off int64) error
	// Write owns data until it calls release, which it must do once, also when it
	// fails; it may do so after it returned, and from any goroutine. The buffer
	// behind data has at most twice its size, or 4 KiB if that is more.
	Write(ctx context.Context, off int64, data []byte, release func(), fua bool) error
	// Zero makes n bytes from off on read as zeros. mayTrim allows a hole.
	Zero(ctx context.Context, off, n int64, mayTrim, fua bool) error
	// Trim is told that the client does not need n bytes from off on any more.
	Trim(ctx context.Context, off, n int64, fua bool) error
	// Flush returns when all that was answered before is durable.
	Flush(ctx context.Context) error
}

// Extents is a Backend that knows its holes: clients may ask for base:allocation.
type Extents interface {
	Backend
	// Extents calls add for the extents from off on, in order and without gaps,
	// until n bytes are described, add returns false, or it does not want to look
	// further; at least once. It is called as the methods of Backend are.
	Extents(ctx context.Context, off, n int64, add func(Extent) bool) error
}

// Extent is a range of a disk whose bytes have the same status.
type Extent struct {
	Bytes int64 // positive
	Hole  bool  // not allocated
	Zero  bool  // reads as zeros
}

// errno is an error as NBD numbers them, which is as Linux does.
type errno uint32

const (
	nbdEPERM     errno = 1
	nbdEIO       errno = 5
	nbdENOMEM    errno = 12
	nbdEINVAL    errno = 22
	nbdENOSPC    errno = 28
	nbdEOVERFLOW errno = 75
	nbdENOTSUP   errno = 95
	nbdESHUTDOWN errno = 108
)

// errnoOf tells what a client is told of an error of its backend.
func errnoOf(err error) errno {
	if err == nil {
		return 0
	}
	if errors.Is(err, context.Canceled) {
		return nbdESHUTDOWN
	}
	var e syscall.Errno
	if !errors.As(err, &e) {
		return nbdEIO
	}
	switch e {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return nbdEPERM
	case syscall.ENOMEM:
		return nbdENOMEM
	case syscall.EINVAL:
		return nbdEINVAL
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return nbdENOSPC
	case syscall.ESHUTDOWN:
		return nbdESHUTDOWN
	default:
		return nbdEIO
	}
}
