package diskrep

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// sumsPerChunk is what emit gets at a time, at most.
	sumsPerChunk = 4096
	// sumUnitBlocks are read and hashed at a time.
	sumUnitBlocks = 16
	sumWorkers    = 2
)

// Sums gives emit the sums of all blocks of a disk, in order: SumBytes for each
// block from first on, at most 4096 of them at a time, in a buffer that is used
// again. Nothing may write to the image meanwhile. Holes are not read.
func (t *Target) Sums(ctx context.Context, disk int, emit func(first uint64, sums []byte) error) error {
	if disk < 0 || disk >= len(t.images) {
		return fmt.Errorf("sums of disk %d of %d", disk, len(t.images))
	}
	im := t.images[disk]
	s := summer{im: im, zero: SumOf(make([]byte, BlockBytes))}
	blocks := (im.disk.SizeBytes + BlockBytes - 1) / BlockBytes
	out := make([]byte, min(blocks, sumsPerChunk)*SumBytes)
	for first := int64(0); first < blocks; first += sumsPerChunk {
		n := min(sumsPerChunk, blocks-first)
		if err := s.chunk(ctx, first, out[:n*SumBytes]); err != nil {
			return fmt.Errorf("sums of disk %s: %w", im.disk.Name, err)
		}
		if err := emit(uint64(first), out[:n*SumBytes]); err != nil {
			return err
		}
	}
	return nil
}

// summer hashes one image.
type summer struct {
	im   *image
	zero Sum // of a block of zeros
}

// chunk fills out with the sums of the blocks from first on. Two goroutines
// share the work, unit by unit.
func (s *summer) chunk(ctx context.Context, first int64, out []byte) error {
	blocks := int64(len(out) / SumBytes)
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, sumWorkers)
	for i := range errs {
		wg.Go(func() {
			var buf []byte
			for errs[i] == nil {
				from := next.Add(sumUnitBlocks) - sumUnitBlocks
				if from >= blocks {
					return
				}
				n := min(sumUnitBlocks, blocks-from)
				if buf == nil {
					buf = make([]byte, sumUnitBlocks*BlockBytes)
				}
				errs[i] = ctx.Err()
				if errs[i] == nil {
					errs[i] = s.unit(first+from, out[from*SumBytes:(from+n)*SumBytes], buf)
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// unit sums some blocks by way of buf.
func (s *summer) unit(first int64, out, buf []byte) error {
	off := first * BlockBytes
	n := min(int64(len(out)/SumBytes)*BlockBytes, s.im.disk.SizeBytes-off)
	data := true
	if !s.im.device {
		at, err := unix.Seek(s.im.fd(), off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			data = false // only holes from here on
		case err == nil:
			data = at < off+n
		} // else the file system does not know of holes
	}
	if !data && n == int64(len(out)/SumBytes)*BlockBytes {
		for i := 0; i < len(out); i += SumBytes {
			copy(out[i:], s.zero[:])
		}
		return nil
	}
	buf = buf[:n]
	if err := s.im.readFull(buf, off); err != nil {
		return err
	}
	for i := 0; i < len(out); i += SumBytes {
		full := sha256.Sum256(buf[:min(len(buf), BlockBytes)])
		copy(out[i:i+SumBytes], full[:])
		buf = buf[min(len(buf), BlockBytes):]
	}
	return nil
}
