package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// receiveBytes is read at once.
const receiveBytes = 1 << 20

// numberStep times the number of a word is the word; as in test/guest.
const numberStep = 0x9e3779b97f4a7c15

// discard takes n bytes from the connection and lets the kernel throw them
// away: MSG_TRUNC does not even copy them to us (tcp(7)).
func discard(c *net.TCPConn, n int64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, receiveBytes) // says how much, and is not written to
	for n > 0 {
		got := 0
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			got, _, rerr = unix.Recvfrom(int(fd), buf[:min(n, receiveBytes)], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err = errors.Join(err, rerr); err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("%d bytes are missing: %w", n, io.ErrUnexpectedEOF)
		}
		n -= int64(got)
	}
	return nil
}

// check takes n bytes and makes sure that each word of them is the one that
// belongs there.
func check(r io.Reader, n int64) error {
	buf := make([]byte, receiveBytes)
	for off := int64(0); off < n; {
		b := buf[:min(n-off, receiveBytes)]
		if got, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("after %d bytes: %w", off+int64(got), err)
		}
		for at := 0; at+8 <= len(b); at += 8 {
			number := uint64(off+int64(at))/8 + 1
			if got := binary.LittleEndian.Uint64(b[at:]); got != number*numberStep {
				return fmt.Errorf("at byte %d of the stream is word %d instead of %d", off+int64(at), got*numberInverse, number)
			}
		}
		off += int64(len(b))
	}
	return nil
}

// numberInverse undoes numberStep: their product is 1, modulo 2^64. So a wrong
// word says which one it is, if it is of the stream at all.
const numberInverse = 0xf1de83e19937733d
