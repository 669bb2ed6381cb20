package daemon

import (
	"errors"

	"github.com/virt-ft/virt-ft/internal/replica"
)

// replaceImage copies the memory to img, which is the memory from then on.
func (b *backup) replaceImage(img *image) error {
	b.imgMu.Lock()
	defer b.imgMu.Unlock()
	err := img.copyFrom(b.img)
	if err == nil {
		err = img.streamAll()
	}
	if err == nil {
		b.img.close()
		b.img = img
		b.followMemory(img)
	}
	return err
}

// setImage makes img the memory that epochs are written into.
func (b *backup) setImage(img *image) {
	b.imgMu.Lock()
	defer b.imgMu.Unlock()
	b.img = img
	b.followMemory(img)
}

// closeImage lets go of the memory when nobody writes into it.
func (b *backup) closeImage() {
	b.imgMu.Lock()
	defer b.imgMu.Unlock()
	if b.img != nil {
		b.img.close()
		b.img = nil
	}
	b.endMemory()
}

// settleInitial does what is left to do for a part of the first epoch whose
// contents are in the memory.
func (b *backup) settleInitial(in *inbound, runs []replica.Run) error {
	if in.ctx.Err() != nil {
		return in.ctx.Err()
	}
	if b.img == nil {
		return errStandbyGone
	}
	return b.img.placed(runs)
}

var errStandbyGone = errors.New("the standby is gone")
