package virt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// migrationBlocker is the name of our node in QEMU's block graph. It is what the operator reads: "The vdi
	// format used by node 'virt-ft-protected' does not support live migration".
	migrationBlocker = "virt-ft-protected"
	// blockerFdset is the descriptor set through which QEMU gets the image, for the time of one command. QEMU
	// and libvirt count theirs from 0.
	blockerFdset = 0x76667473
)

// BlockMigration makes QEMU refuse to be migrated, saved or snapshotted with its memory, until AllowMigration
// or the end of QEMU. libvirt 8.6 and later asks QEMU for such blockers first and shows them; before, QEMU's
// own refusal is shown. It may be called again, also by another process: what is there stays. It fails while a
// migration is under way, and under QEMU's -only-migratable.
//
// QEMU has no command for this. Some image formats block migration while a node of theirs exists (block/vdi.c,
// vdi_open), so that a read-only node of 1 KiB, used by no device, does it. Of those formats vdi is one that
// distributions leave in QEMU when they take others out. The image is a sealed memfd, passed to QEMU over its
// monitor: no path is opened, so neither file permissions nor QEMU's mount namespace nor AppArmor, which does
// not judge memfds, are asked. QEMU does not stop for it, and a checkpoint does not see it: block nodes have no
// device state, and nodes that are read-only are not flushed.
func (d *Domain) BlockMigration(ctx context.Context) error {
	there, err := d.migrationBlocked(ctx)
	if err != nil || there {
		return err
	}
	image, err := blockerImage()
	if err != nil {
		return &CallError{"block migration", d.name, err}
	}
	defer image.Close()
	set := map[string]int{"fdset-id": blockerFdset}
	if _, err := d.QMPWithFiles(ctx, "add-fd", set, image); err != nil {
		return err
	}
	_, err = d.QMP(ctx, "blockdev-add", map[string]any{
		"driver": "vdi", "node-name": migrationBlocker, "read-only": true,
		"file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/dev/fdset/%d", blockerFdset), "locking": "off"},
	})
	var refusal *QMPError
	if errors.As(err, &refusal) { // by a node of this name, perhaps, that somebody else added meanwhile
		if there, again := d.migrationBlocked(ctx); again == nil && there {
			err = nil
		}
	}
	// The node has a duplicate, with which the empty set goes. What stays in the set after an error goes with
	// the next call, or when libvirtd disconnects from QEMU.
	_, closed := d.QMP(ctx, "remove-fd", set)
	return errors.Join(err, closed)
}

// AllowMigration undoes BlockMigration. A domain that is not blocked, does not run or is not known any more is
// no error.
func (d *Domain) AllowMigration(ctx context.Context) error {
	_, err := d.QMP(ctx, "blockdev-del", map[string]string{"node-name": migrationBlocker})
	var refusal *QMPError
	if errors.As(err, &refusal) {
		if there, again := d.migrationBlocked(ctx); again != nil || !there {
			err = again
		}
	}
	if errors.Is(err, ErrNoDomain) || errors.Is(err, ErrNotRunning) {
		return nil
	}
	return err
}

// migrationBlocked asks QEMU whether our node is there.
func (d *Domain) migrationBlocked(ctx context.Context) (bool, error) {
	raw, err := d.QMP(ctx, "query-named-block-nodes", map[string]bool{"flat": true})
	if err != nil {
		return false, err
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := json.Unmarshal(raw, &nodes); err != nil {
		return false, &CallError{"QMP query-named-block-nodes", d.name, err}
	}
	for _, n := range nodes {
		if n.Name == migrationBlocker {
			return true, nil
		}
	}
	return false, nil
}

// blockerImage returns the image in a memfd, open for reading only: QEMU takes from a descriptor set what is
// open as it wants it.
func blockerImage() (_ *os.File, err error) {
	fd, err := unix.MemfdCreate(migrationBlocker, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	w := os.NewFile(uintptr(fd), migrationBlocker)
	defer w.Close()
	if _, err := w.Write(emptyVDI()); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a memfd: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
}

// emptyVDI returns an image of no sectors: the header, little endian, and a block map of no entries. The block
// size is the only one that QEMU takes.
//
//	0x40 signature, version, header size, type   0x154 offset of the map, of the data
//	0x168 sector size   0x170 disk size (u64)   0x178 block size
func emptyVDI() []byte {
	const sector = 512
	image := make([]byte, 2*sector)
	copy(image, "<<< virt-ft: this guest is protected >>>\n")
	for at, v := range map[int]uint32{0x40: 0xbeda107f, 0x44: 0x00010001, 0x48: 0x180, 0x4c: 1,
		0x154: sector, 0x158: 2 * sector, 0x168: sector, 0x178: 1 << 20} {
		binary.LittleEndian.PutUint32(image[at:], v)
	}
	return image
}
