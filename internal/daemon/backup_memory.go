package daemon

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/hostmem"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// standbyProcessBytes is what a standby's QEMU takes beside its guest's memory.
const standbyProcessBytes = 32 << 20

// reserveMemory asks for the memory of a standby before there is one.
func (b *backup) reserveMemory() error {
	page, err := virt.HugePageBytes(b.setup.SourceXML)
	if err != nil {
		return err
	}
	need := standbyNeed(page)
	for _, block := range b.setup.Blocks {
		addBlock(&need, block.Name, block.UsedBytes)
	}
	release, err := b.d.memory.Reserve(b.name, need)
	var short *hostmem.ShortError
	if errors.As(err, &short) {
		return fmt.Errorf("%w: %s", err, short.Remedy())
	}
	if err == nil {
		b.imgMu.Lock()
		b.release = release
		b.imgMu.Unlock()
	}
	return err
}

// standbyNeed is what a standby takes without its memory.
func standbyNeed(hugePageBytes uint64) hostmem.Need {
	return hostmem.Need{Bytes: standbyProcessBytes, HugePageBytes: hugePageBytes}
}

// addBlock adds a RAM block to what a standby takes.
func addBlock(need *hostmem.Need, name string, usedBytes uint64) {
	if page := need.HugePageBytes; page > 0 && ofGuest(name) {
		need.HugeBytes += (usedBytes + page - 1) / page * page
	} else {
		need.Bytes += usedBytes
	}
}

// ofGuest tells whether QEMU takes a RAM block from the guest's memory backing;
// firmware and video memory are not.
func ofGuest(block string) bool {
	return strings.HasSuffix(block, ".ram") || strings.HasPrefix(block, "ram-node") || strings.Contains(block, "dimm")
}

// followMemory lets the ledger ask how much of img is resident. imgMu is held.
func (b *backup) followMemory(img *image) {
	var files []*os.File
	for _, m := range img.shared {
		if m != nil {
			files = append(files, m.File())
		}
	}
	b.d.memory.Follow(b.name, func() uint64 {
		n, err := hostmem.ResidentBytes(files...)
		if err != nil {
			return 0 // it is being closed: all of it counts as promised for a moment
		}
		return n + standbyProcessBytes
	})
}

// endMemory ends the promise. imgMu is held.
func (b *backup) endMemory() {
	if b.release != nil {
		b.release()
		b.release = nil
	}
}

// checkMemory tells how much memory standbys can have here.
func (d *Daemon) checkMemory() control.Finding {
	r, err := d.memory.Report()
	if err != nil {
		return failed("host.memory", "memory for standbys", "", err)
	}
	if room, _ := r.RoomBytes(); room < standbyProcessBytes {
		return control.Finding{ID: "host.memory", Item: "memory for standbys", Level: control.LevelWarn, Text: r.String(), Remedy: "no guest can be protected to this host"}
	}
	return okay("host.memory", "memory for standbys", "%s", r)
}
