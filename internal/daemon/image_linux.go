package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/vmstate"
)

// image is a guest's memory as the backup holds it. Blocks in the standby's
// memfd are written where the guest will find them; QEMU leaves them alone
// until it was given the device state. The others (video RAM, firmware) are
// kept here and streamed to the standby as they change. One goroutine owns it.
type image struct {
	blocks []replica.Block
	shared []*guestram.Memory // by block; nil where side is used
	side   [][]byte
	in     *vmstate.Incoming // the standby's stream; nil while there is none
}

// newImage maps the standby's memory. have are the blocks of the standby's
// QEMU, pid its process: every block of the source must be there, as large.
func newImage(blocks []replica.Block, pid int, have []guestram.Block) (*image, error) {
	im := &image{blocks: blocks, shared: make([]*guestram.Memory, len(blocks)), side: make([][]byte, len(blocks))}
	byName := make(map[string]guestram.Block, len(have))
	for _, h := range have {
		byName[h.Name] = h
	}
	for i, b := range blocks {
		h, ok := byName[b.Name]
		switch {
		case !ok:
			im.close()
			return nil, fmt.Errorf("RAM block %s is not in the standby: its devices differ from the primary's", b.Name)
		case h.Max < b.UsedBytes:
			im.close()
			return nil, fmt.Errorf("RAM block %s is %d bytes on the primary and at most %d in the standby", b.Name, b.UsedBytes, h.Max)
		}
		var err error
		if h.Shared {
			im.shared[i], err = guestram.OpenShared(pid, h)
		} else {
			im.side[i], err = unix.Mmap(-1, 0, int(b.UsedBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		}
		if err != nil {
			im.close()
			return nil, fmt.Errorf("RAM block %s: %w", b.Name, err)
		}
	}
	return im, nil
}

// streamed lists the blocks that the standby gets through its stream.
func (im *image) streamed() []vmstate.BlockSize {
	var bs []vmstate.BlockSize
	for i, b := range im.blocks {
		if im.side[i] != nil {
			bs = append(bs, vmstate.BlockSize{Name: b.Name, Used: b.UsedBytes})
		}
	}
	return bs
}

// places returns where the contents of runs go in the guest's memory. runs were
// checked against blocks.
func (im *image) places(runs []replica.Run) [][]byte {
	var ps [][]byte
	for _, r := range runs {
		if r.Flags&replica.RunZero != 0 {
			continue
		}
		mem := im.side[r.Block]
		if m := im.shared[r.Block]; m != nil {
			mem = m.Bytes()
		}
		ps = append(ps, mem[r.Off:r.Off+uint64(r.Pages)*replica.PageSize])
	}
	return ps
}

// placed does what is left to do for runs whose contents are in their places.
func (im *image) placed(runs []replica.Run) error {
	for _, r := range runs {
		n := uint64(r.Pages) * replica.PageSize
		var err error
		switch {
		case r.Flags&replica.RunZero != 0:
			err = im.write(int(r.Block), r.Off, n, nil)
		case im.shared[r.Block] == nil && im.in != nil:
			err = im.in.Pages(im.blocks[r.Block].Name, r.Off, im.side[r.Block][r.Off:r.Off+n])
		}
		if err != nil {
			return fmt.Errorf("RAM block %s at %#x: %w", im.blocks[r.Block].Name, r.Off, err)
		}
	}
	return nil
}

// apply writes the pages of one message. runs were checked against blocks.
func (im *image) apply(runs []replica.Run, data []byte) error {
	for _, r := range runs {
		n := uint64(r.Pages) * replica.PageSize
		zero := r.Flags&replica.RunZero != 0
		var src []byte
		if !zero {
			src, data = data[:n], data[n:]
		}
		if err := im.write(int(r.Block), r.Off, n, src); err != nil {
			return fmt.Errorf("RAM block %s at %#x: %w", im.blocks[r.Block].Name, r.Off, err)
		}
	}
	return nil
}

// write puts src, or n zero bytes if src is nil, at off of a block.
func (im *image) write(block int, off, n uint64, src []byte) error {
	if m := im.shared[block]; m != nil {
		if src == nil {
			// A hole reads as zeros and takes no memory of the host.
			return unix.Fallocate(int(m.File().Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
		}
		copy(m.Bytes()[off:off+n], src)
		return nil
	}
	dst := im.side[block][off : off+n]
	if src == nil {
		clear(dst)
	} else {
		copy(dst, src)
	}
	if im.in == nil {
		return nil
	}
	return im.in.Pages(im.blocks[block].Name, off, dst)
}

// streamAll sends all that is not in shared memory to a fresh standby.
func (im *image) streamAll() error {
	for i, s := range im.side {
		if s == nil {
			continue
		}
		if err := im.in.Pages(im.blocks[i].Name, 0, s); err != nil {
			return fmt.Errorf("RAM block %s: %w", im.blocks[i].Name, err)
		}
	}
	return im.in.Flush()
}

// copyFrom makes im, which is fresh and so all zero, equal to src.
func (im *image) copyFrom(src *image) error {
	for i := range im.blocks {
		switch {
		case im.shared[i] != nil && src.shared[i] != nil:
			if err := copyData(im.shared[i], src.shared[i], im.blocks[i].UsedBytes); err != nil {
				return fmt.Errorf("RAM block %s: %w", im.blocks[i].Name, err)
			}
		case im.side[i] != nil && src.side[i] != nil:
			copy(im.side[i], src.side[i])
		default:
			return fmt.Errorf("RAM block %s is shared in one standby and not in the other", im.blocks[i].Name)
		}
	}
	return nil
}

// copyData copies what is not a hole.
func copyData(dst, src *guestram.Memory, size uint64) error {
	fd := int(src.File().Fd())
	for off := int64(0); off < int64(size); {
		from, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil // only holes are left
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		to = min(to, int64(size))
		if from < to {
			copy(dst.Bytes()[from:to], src.Bytes()[from:to])
		}
		off = to
	}
	return nil
}

// close unmaps everything. The image is not to be used after it.
func (im *image) close() {
	for i, m := range im.shared {
		if m != nil {
			m.Close()
		}
		if im.side[i] != nil {
			unix.Munmap(im.side[i])
		}
	}
	im.shared, im.side, im.in = nil, nil, nil
}
