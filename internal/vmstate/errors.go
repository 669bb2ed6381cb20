package vmstate

import (
	"errors"
	"fmt"
)

var (
	// ErrIncomplete says that a stream ends before its end mark: QEMU had not
	// finished writing it, or died.
	ErrIncomplete = errors.New("stream ends early")
	// ErrFinished is returned for any use of an Incoming after Finish.
	ErrFinished = errors.New("incoming stream is finished")
	// ErrUnknownBlock names a RAM block that was not given to NewIncoming.
	ErrUnknownBlock = errors.New("unknown RAM block")
	// ErrUnaligned is an offset, length or block size that is not a multiple of PageSize.
	ErrUnaligned = errors.New("not a multiple of the page size")
	// ErrOutOfRange is a range of pages that does not lie within its RAM block.
	ErrOutOfRange = errors.New("outside the RAM block")
	// ErrBounds is a name, count or size beyond what the format or this package allows.
	ErrBounds = errors.New("beyond the format's bounds")
	// ErrSection says that a section is not there, is there twice, or is not of
	// the version and size that this package, or a CPULayout, knows.
	ErrSection = errors.New("not as expected")
	// ErrLayout is a description of a cpu section that cannot be used.
	ErrLayout = errors.New("unusable description of section \"cpu\"")
)

// FormatError says where in a stream something is wrong. Err is ErrIncomplete
// if the stream ends there.
type FormatError struct {
	Offset int64  // bytes from the start of the stream
	Field  string // what was being read
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("QEMU stream: %s at offset %d: %v", e.Field, e.Offset, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }
