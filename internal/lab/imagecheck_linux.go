package lab

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image is a disk image by its path outside the hosts, see Host.ImagePath.
type Image struct {
	Path   string
	Format string // ["raw"]
}

func (i Image) format() string {
	if i.Format == "" {
		return "raw"
	}
	return i.Format
}

// DiskImage returns the image that libvirt has for a disk of a domain, running or
// standing by, on the host.
func (h *Host) DiskImage(ctx context.Context, domain, target string) (Image, error) {
	text, err := h.Virsh(ctx, "dumpxml", domain)
	if err != nil {
		return Image{}, err
	}
	var x struct {
		Disks []struct {
			Driver struct {
				Type string `xml:"type,attr"`
			} `xml:"driver"`
			Source struct {
				File string `xml:"file,attr"`
				Dev  string `xml:"dev,attr"`
			} `xml:"source"`
			Target struct {
				Dev string `xml:"dev,attr"`
			} `xml:"target"`
		} `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(text), &x); err != nil {
		return Image{}, fmt.Errorf("lab: %s: XML of %s: %w", h.Name, domain, err)
	}
	for _, d := range x.Disks {
		if path := d.Source.File + d.Source.Dev; d.Target.Dev == target && path != "" {
			return Image{Path: h.ImagePath(path), Format: d.Driver.Type}, nil
		}
	}
	return Image{}, fmt.Errorf("lab: %s: %s has no image for a disk %s", h.Name, domain, target)
}

// ErrDiffer is returned by CompareImages for images that are not equal.
var ErrDiffer = errors.New("lab: images differ")

// CompareImages compares what a guest would read from two images, whatever they
// look like. A guest that runs on one of them must be quiet. A difference is an
// ErrDiffer that says where the first is.
func CompareImages(ctx context.Context, a, b Image) error {
	// -U: a running QEMU holds a lock.
	out, err := tool(ctx, "qemu-img", "compare", "-U", "-f", a.format(), "-F", b.format(), a.Path, b.Path)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return fmt.Errorf("%w: %w", ErrDiffer, err)
	case err != nil:
		return fmt.Errorf("lab: comparing images: %w", err)
	case strings.Contains(out, "size mismatch"): // for qemu-img they are equal if what one has more is zero
		return fmt.Errorf("%w: %s and %s are not of one size", ErrDiffer, a.Path, b.Path)
	}
	return nil
}

// RawCopy writes what a guest would read from an image into a raw, sparse file.
func RawCopy(ctx context.Context, from Image, to string) error {
	if _, err := tool(ctx, "qemu-img", "convert", "-U", "-f", from.format(), "-O", "raw", from.Path, to); err != nil {
		return fmt.Errorf("lab: copying an image: %w", err)
	}
	return nil
}

// Fsck checks the ext4 file system on an image as the next mount would find it:
// its journal is replayed, on a copy, and then nothing may be wrong with it.
// Space for the copy is taken beside the image.
func Fsck(ctx context.Context, i Image) error {
	dir, err := os.MkdirTemp(filepath.Dir(i.Path), "fsck-")
	if err != nil {
		return fmt.Errorf("lab: fsck: %w", err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "image")
	if err := RawCopy(ctx, i, copied); err != nil {
		return err
	}
	// It ends with 1 if the journal had something in it.
	_, err = tool(ctx, "e2fsck", "-y", "-E", "journal_only", copied)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return fmt.Errorf("lab: fsck: replaying the journal: %w", err)
	}
	if _, err := tool(ctx, "e2fsck", "-f", "-n", copied); err != nil {
		return fmt.Errorf("lab: fsck: %w", err)
	}
	return nil
}
