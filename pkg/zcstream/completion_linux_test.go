package zcstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// controlMessage returns control data with one message, as the kernel makes it
// on a machine of 64 bits.
func controlMessage(level, kind int32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(16+len(body)))
	b = binary.NativeEndian.AppendUint32(b, uint32(level))
	b = binary.NativeEndian.AppendUint32(b, uint32(kind))
	b = append(b, body...)
	return append(b, make([]byte, -len(b)&7)...)
}

// extended returns a struct sock_extended_err and an address behind it.
func extended(errno uint32, origin, code byte, lo, hi uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, errno)
	b = append(b, origin, 0, code, 0)
	b = binary.NativeEndian.AppendUint32(b, lo)
	b = binary.NativeEndian.AppendUint32(b, hi)
	return append(b, make([]byte, 16)...)
}

func TestParseReport(t *testing.T) {
	if unix.SizeofCmsghdr != 16 {
		t.Skip("the messages of this test are those of 64 bits")
	}
	zc := extended(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 5, 9)
	copied := extended(0, unix.SO_EE_ORIGIN_ZEROCOPY, unix.SO_EE_CODE_ZEROCOPY_COPIED, 1<<32-1, 2)
	stamp := controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 48))
	long := controlMessage(unix.SOL_IP, unix.IP_RECVERR, zc)
	binary.NativeEndian.PutUint64(long, 1<<40)
	short := controlMessage(unix.SOL_IP, unix.IP_RECVERR, zc)
	binary.NativeEndian.PutUint64(short, 15)
	for name, c := range map[string]struct {
		control []byte
		want    report
		fails   bool
		other   bool // and is not about zero-copy
	}{
		"IPv4":              {control: controlMessage(unix.SOL_IP, unix.IP_RECVERR, zc), want: report{5, 9, false}},
		"IPv6":              {control: controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, copied), want: report{1<<32 - 1, 2, true}},
		"behind a stamp":    {control: append(bytes.Clone(stamp), controlMessage(unix.SOL_IP, unix.IP_RECVERR, zc)...), want: report{5, 9, false}},
		"only a stamp":      {control: stamp, fails: true, other: true},
		"nothing":           {fails: true, other: true},
		"an ICMP error":     {control: controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(111, unix.SO_EE_ORIGIN_ICMP, 0, 5, 9)), fails: true, other: true},
		"of another origin": {control: controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(0, unix.SO_EE_ORIGIN_TIMESTAMPING, 0, 5, 9)), fails: true, other: true},
		"cut off":           {control: controlMessage(unix.SOL_IP, unix.IP_RECVERR, zc[:15]), fails: true},
		"too long":          {control: long, fails: true},
		"too short":         {control: short, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseReport(c.control)
			if (err != nil) != c.fails || errors.Is(err, errNoReport) != c.other || got != c.want {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// FuzzParseReport looks for panics, reads past the end, and reports that the
// ledger then believes although nothing was lent.
func FuzzParseReport(f *testing.F) {
	f.Add(controlMessage(unix.SOL_IP, unix.IP_RECVERR, extended(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 5, 9)), uint32(5))
	f.Add(append(controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 48)),
		controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, extended(0, unix.SO_EE_ORIGIN_ZEROCOPY, 1, 1<<32-1, 1<<32-2))...), uint32(0))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 11, 0, 0, 0}, uint32(1))
	f.Fuzz(func(t *testing.T, control []byte, base uint32) {
		r, err := parseReport(control)
		if err != nil {
			return
		}
		const lent = 8
		l := ledger{base: base}
		lo := new(loan)
		for range lent {
			l.took(l.lend(lo), 1)
		}
		if _, err := l.giveBack(nil, r.lo, r.hi); err != nil {
			if l.bytes != lent || lo.open != lent {
				t.Fatalf("refused, but %d bytes and %d calls are lent", l.bytes, lo.open)
			}
			return
		}
		if n := r.hi - r.lo + 1; n == 0 || n > lent || uint64(n) != lent-l.bytes {
			t.Fatalf("%+v gave back %d bytes", r, lent-l.bytes)
		}
	})
}
