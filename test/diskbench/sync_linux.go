package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// copies is what protecting a guest with a large disk costs, twice.
type copies struct {
	DiskMiB int     `json:"disk_mib"`
	DataMiB int     `json:"data_mib"`
	First   copying `json:"first"`  // to a fresh image
	Resync  copying `json:"resync"` // to the same once more
}

// copying is one of them.
type copying struct {
	ProtectS float64 `json:"protect_s"`  // the command, memory and rehearsal included
	DiskS    float64 `json:"disk_s"`     // until the disk was mirrored, by the daemon's log
	MBps     float64 `json:"mb_per_s"`   // of the disk's size
	Sent     uint64  `json:"sent_bytes"` // of the disk
	Equal    uint64  `json:"equal_bytes"`
}

// copies boots the guest with the large disk in the place of the other.
func (b *bench) copies(ctx context.Context) (*copies, error) {
	if _, err := b.lab.A.Virsh(ctx, "destroy", b.guest.Name); err != nil {
		return nil, err
	}
	shape := b.o.boot
	shape.Name = "large"
	disk := lab.GuestDisk{Target: diskName, SizeMiB: b.o.syncMiB, Path: "/var/lib/libvirt/images/large-vda.raw"}
	shape.Disks = []lab.GuestDisk{disk}
	c := &copies{DiskMiB: b.o.syncMiB, DataMiB: b.o.syncMiB / 2}
	if err := halfData(ctx, b.lab.A.ImagePath(disk.Path), int64(b.o.syncMiB)<<20); err != nil {
		return nil, err
	}
	guest, err := b.start(ctx, shape)
	if err != nil {
		return nil, err
	}
	for _, to := range []*copying{&c.First, &c.Resync} {
		if *to, err = b.copyOnce(ctx, guest.Name, int64(b.o.syncMiB)<<20); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// copyOnce protects the guest, looks what that took, and ends it.
func (b *bench) copyOnce(ctx context.Context, guest string, bytes int64) (c copying, err error) {
	before, err := os.Stat(b.lab.A.Daemon.LogPath())
	if err != nil {
		return c, err
	}
	type leaving = func(context.Context) error
	began := time.Now()
	leave, err := inTime(ctx, func(ctx context.Context) (leaving, error) { return b.protect(ctx, guest, memory.String()) })
	if err != nil {
		return c, err
	}
	c.ProtectS = tool.Round3(time.Since(began).Seconds())
	out, err := b.lab.A.Ctl(ctx, "status", "-o", "json", guest)
	if err != nil {
		return c, err
	}
	var all []struct {
		Disks []struct {
			Sent  uint64 `json:"sent_bytes"`
			Equal uint64 `json:"equal_bytes"`
		} `json:"disks"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 || len(all[0].Disks) != 1 {
		return c, errors.Join(fmt.Errorf("status says nothing of one disk: %s", out), err)
	}
	c.Sent, c.Equal = all[0].Disks[0].Sent, all[0].Disks[0].Equal
	took, err := mirroredAfter(b.lab.A.Daemon.LogPath(), before.Size())
	if err != nil {
		return c, err
	}
	c.DiskS = tool.Round3(took.Seconds())
	c.MBps = tool.Round3(float64(bytes) / 1e6 / took.Seconds())
	_, err = inTime(ctx, func(ctx context.Context) (any, error) { return nil, leave(ctx) })
	return c, err
}

// mirroredAfter is how long the copy took that a daemon's log tells of behind
// an offset.
func mirroredAfter(path string, from int64) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if took, ok := findMirrored(lines.Text()); ok {
			return took, nil
		}
	}
	return 0, errors.Join(fmt.Errorf("%s does not say how long the disk's copy took", path), lines.Err())
}

// halfData makes an image in which every other MiB is data.
func halfData(ctx context.Context, path string, size int64) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{1}) // the same on every machine
	block := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(2 * len(block)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, _ = rng.Read(block) // never fails
		if _, err := f.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (c *copies) print(w io.Writer) {
	fmt.Fprintf(w, "\na disk of %d MiB, %d of them data:\n", c.DiskMiB, c.DataMiB)
	for _, l := range []struct {
		name string
		c    copying
	}{{"first copy", c.First}, {"resync", c.Resync}} {
		fmt.Fprintf(w, "  %-10s  %6.1f s of %.1f s for all of protect, %.0f MB/s of disk, %.1f MB sent, %.1f MB equal\n",
			l.name, l.c.DiskS, l.c.ProtectS, l.c.MBps, float64(l.c.Sent)/1e6, float64(l.c.Equal)/1e6)
	}
}
