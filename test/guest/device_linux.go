package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is what a workload does to a disk. Buffers, offsets and lengths are
// aligned to 4 KiB. Its methods may be called concurrently.
type device interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteAt(b []byte, off int64) (int, error)
	Sync() error                    // what was written before is durable
	Discard(off, n int64) error     // the content may become anything older, or zero
	WriteZeroes(off, n int64) error // it becomes zero
}

// blockDevice is a disk without the page cache.
type blockDevice struct {
	*os.File
	bytes int64
}

// openBlockDevice opens /dev/NAME past the page cache.
func openBlockDevice(name string) (*blockDevice, error) {
	f, err := os.OpenFile(filepath.Join("/dev", name), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	d := &blockDevice{File: f}
	if err := d.control("BLKGETSIZE64", unix.BLKGETSIZE64, unsafe.Pointer(&d.bytes)); err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

func (d *blockDevice) control(what string, code uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), code, uintptr(arg)); e != 0 {
		return fmt.Errorf("%s: %s: %w", d.Name(), what, e)
	}
	return nil
}

func (d *blockDevice) Sync() error { return unix.Fdatasync(int(d.Fd())) }

func (d *blockDevice) Discard(off, n int64) error {
	return d.control("BLKDISCARD", unix.BLKDISCARD, unsafe.Pointer(&[2]uint64{uint64(off), uint64(n)}))
}

func (d *blockDevice) WriteZeroes(off, n int64) error {
	return d.control("BLKZEROOUT", unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{uint64(off), uint64(n)}))
}

// diskWait bounds how long the disks may take to appear: SCSI and SATA are
// looked for in the background.
const diskWait = 30 * time.Second

// findDisk waits for the disk with a serial number and returns its name below
// /dev: the kernel gives names in the order in which it finds disks.
func findDisk(serial string, end time.Time) (string, error) {
	for ; ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir("/sys/block")
		if err != nil {
			return "", err
		}
		var seen []string
		for _, e := range entries {
			got := diskSerial(filepath.Join("/sys/block", e.Name()))
			if _, err := os.Stat(filepath.Join("/dev", e.Name())); got == serial && err == nil {
				return e.Name(), nil
			}
			seen = append(seen, fmt.Sprintf("%s (serial %q)", e.Name(), got))
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no disk has the serial number %q; there are %s", serial, strings.Join(seen, ", "))
		}
	}
}

func diskSerial(sys string) string {
	if b, err := os.ReadFile(filepath.Join(sys, "serial")); err == nil { // virtio
		return strings.TrimSpace(string(b))
	}
	// SCSI, and SATA as SCSI: vital product data, page 0x80, behind a header.
	b, err := os.ReadFile(filepath.Join(sys, "device", "vpd_pg80"))
	if err != nil || len(b) < 4 {
		return ""
	}
	return string(bytes.Trim(b[4:], " \x00"))
}
