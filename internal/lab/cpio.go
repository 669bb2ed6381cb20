package lab

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" format that the kernel unpacks as
// initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
// Parent directories are added by themselves. The first error sticks.
type cpioWriter struct {
	w    io.Writer
	at   int64
	ino  uint32
	dirs map[string]bool
	err  error
}

// File types of an entry's mode.
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioChar    = 0o020000
)

func newCPIO(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{".": true, "": true}}
}

// file adds a regular file; name is relative to the root, perm its permissions.
func (c *cpioWriter) file(name string, perm uint32, data []byte) {
	c.parents(name)
	c.entry(name, cpioRegular|perm, 0, 0, data)
}

// dir adds a directory, once.
func (c *cpioWriter) dir(name string) {
	if c.dirs[name] {
		return
	}
	c.dirs[name] = true
	c.parents(name)
	c.entry(name, cpioDir|0o755, 0, 0, nil)
}

// char adds a character device; the kernel wants /dev/console before init runs.
func (c *cpioWriter) char(name string, perm, major, minor uint32) {
	c.parents(name)
	c.entry(name, cpioChar|perm, major, minor, nil)
}

func (c *cpioWriter) parents(name string) { c.dir(path.Dir(strings.TrimPrefix(name, "/"))) }

func (c *cpioWriter) entry(name string, mode, major, minor uint32, data []byte) {
	if c.err == nil && int64(len(data)) > math.MaxUint32 {
		c.err = fmt.Errorf("lab: %s: %d bytes do not fit into an archive entry", name, len(data))
	}
	name = strings.TrimPrefix(name, "/")
	c.ino++
	ino, links := c.ino, 1
	if name == cpioTrailer {
		ino = 0
	}
	if mode&cpioDir != 0 {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0))
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(data)
	c.pad()
}

const cpioTrailer = "TRAILER!!!"

// close writes the trailer and returns the first error of all.
func (c *cpioWriter) close() error {
	c.entry(cpioTrailer, 0, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	var n int
	n, c.err = c.w.Write(b)
	c.at += int64(n)
}

// pad aligns to 4 bytes, as headers and data must be.
func (c *cpioWriter) pad() { c.write(bytes.Repeat([]byte{0}, int(-c.at&3))) }
