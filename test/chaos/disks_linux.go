package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// The guest's disks: small, so that a round is short.
const (
	recordsDisk, recordsMiB = "vda", 8
	filesDisk, filesMiB     = "vdb", 16
	// What the guest does with them, beside what clients make it do.
	recordsPerS, recordsBytes = 100, 8192
	filesPerS                 = 20
)

// Looks that cost more are taken every so many rounds, not in the same ones.
const (
	fsckEvery    = 3
	compareEvery = 4
)

func guestDisks() []lab.GuestDisk {
	return []lab.GuestDisk{
		{Target: recordsDisk, SizeMiB: recordsMiB},
		{Target: filesDisk, SizeMiB: filesMiB, FS: "ext4"},
	}
}

// loadDisks lets the guest write to its disks from now on.
func (c *chaos) loadDisks(ctx context.Context) error {
	for _, line := range []string{
		fmt.Sprintf("disk %s load %d %d", recordsDisk, recordsPerS, recordsBytes),
		fmt.Sprintf("disk %s load %d", filesDisk, filesPerS),
	} {
		if _, err := c.lab.Command(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

// eraseSome discards or zeroes a part of the disk, or leaves it.
func (c *chaos) eraseSome(ctx context.Context, rng *rand.Rand) error {
	word := []string{"", "trim", "zero"}[rng.IntN(3)]
	if word == "" {
		return nil
	}
	_, err := c.lab.Command(ctx, "disk "+recordsDisk+" "+word)
	return err
}

// quiet calls f while nobody makes the guest write, and nothing that it wrote is
// under way.
func (c *chaos) quiet(ctx context.Context, f func() error) error {
	return c.client.Quiet(func() error {
		if _, err := c.lab.Command(ctx, "disk quiet"); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		return c.loadDisks(ctx)
	})
}

// askDisks lets the guest compare its disks with its memory. Records come first:
// a file system may be damaged beyond any comparison.
func (c *chaos) askDisks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	var all error
	for _, d := range guestDisks() {
		f, err := c.askDisk(ctx, d.Target)
		if err == nil && d.Target == recordsDisk && f.Whole == 0 {
			err = fmt.Errorf("the guest found nothing on its disk %s", d.Target)
		}
		all = errors.Join(all, err, c.report.diskFound("the guest, of "+d.Target+",", f))
	}
	return all
}

func (c *chaos) askDisk(ctx context.Context, target string) (f diskFindings, err error) {
	answer, err := c.lab.Command(ctx, "disk "+target+" check")
	if err != nil {
		return f, err
	}
	text, err := json.Marshal(answer)
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	return f, err
}

// lookAtImages compares the image under the guest with what clients were told.
func (c *chaos) lookAtImages(ctx context.Context, round int) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	return c.quiet(ctx, func() error {
		image, err := c.home.DiskImage(ctx, c.guest.Name, recordsDisk)
		if err != nil {
			return err
		}
		r, err := lab.CheckRecords(image.Path, 0, c.client.Journal)
		if err != nil {
			return err
		}
		c.report.DiskRecords = r.Acked
		err = c.report.diskFound("a look at the image on "+c.home.Name, diskFindings{
			Whole: r.Whole, Missing: r.Missing, Foreign: r.Foreign, Torn: r.Torn, Texts: r.Findings})
		if err == nil && round%fsckEvery == 0 {
			err = c.fsck(ctx)
		}
		return err
	})
}

// fsck checks the file system that the guest has on its other disk.
func (c *chaos) fsck(ctx context.Context) error {
	image, err := c.home.DiskImage(ctx, c.guest.Name, filesDisk)
	if err != nil {
		return err
	}
	if err := lab.Fsck(ctx, image); err != nil {
		c.report.FsckErrors++
		return fmt.Errorf("the file system on %s of %s: %w", filesDisk, c.home.Name, err)
	}
	return nil
}

// compareImages waits, with the guest quiet, until the images of both hosts are
// equal: what was written last is on its way for a moment.
func (c *chaos) compareImages(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	return c.quiet(ctx, func() error {
		for _, d := range guestDisks() {
			ours, err := c.home.DiskImage(ctx, c.guest.Name, d.Target)
			if err != nil {
				return err
			}
			theirs, err := c.lab.Peer(c.home).DiskImage(ctx, c.guest.Name, d.Target)
			if err != nil {
				return err
			}
			c.report.ImagesCompared++
			for {
				err := lab.CompareImages(ctx, ours, theirs)
				if err == nil {
					break
				}
				if !errors.Is(err, lab.ErrDiffer) {
					return err
				}
				if pause(ctx, retryEvery) != nil {
					c.report.ImagesDiffer++
					return fmt.Errorf("disk %s does not become equal on both hosts: %w", d.Target, err)
				}
			}
		}
		return nil
	})
}
