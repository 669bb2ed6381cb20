package replica

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// FuzzStream feeds a whole stream to each kind of connection: 0 is the control
// connection, others the first and another data connection. The checksums of the
// first header are put right, or the fuzzer would never get past them.
func FuzzStream(f *testing.F) {
	var all []byte
	for _, m := range samples() {
		b, _ := AppendMessage(nil, testHeader(), m)
		for kind := range byte(3) {
			f.Add(kind, b)
		}
		all = append(all, b...)
	}
	f.Add(byte(0), all)
	for _, send := range []func(c *Conn) error{
		func(c *Conn) error {
			runs, data := samplePages()
			return c.SendPages(context.Background(), testStamp, runs, [][]byte{data}, nil)
		},
		func(c *Conn) error {
			runs, _ := samplePages()
			return c.SendPacked(context.Background(), testStamp, runs, PageSize, samplePacked())
		},
		func(c *Conn) error {
			runs, data := sampleDiskWrites()
			return c.SendDiskWrites(context.Background(), testStamp, runs, [][]byte{data}, nil)
		},
	} {
		c, w := wireConn(DataChannel)
		if err := send(c); err != nil {
			f.Fatal(err)
		}
		f.Add(byte(1), bytes.Clone(w.Bytes()))
		f.Add(byte(2), bytes.Clone(w.Bytes()))
	}
	f.Fuzz(func(t *testing.T, kind byte, stream []byte) {
		if len(stream) >= HeaderBytes {
			stream = fixPayloadCRC(bytes.Clone(stream))
		}
		var c *Conn
		var w *wire
		if kind %= 3; kind == 0 {
			c, w = wireConn(ControlChannel)
		} else {
			c, w = wireStream(int(kind) - 1)
		}
		c.protection = UUID{}
		w.Buffer.Write(stream)
		for {
			_, err := c.RecvInto(context.Background(), func(f Frame, n int) ([][]byte, error) {
				if n <= 0 || n > MaxPageData || n != int(f.Msg.(runsMessage).announced()) {
					t.Fatalf("asked for a place of %d bytes for %+v", n, f.Msg)
				}
				given := make([]byte, n)
				return [][]byte{given[:n/3], given[n/3 : n/2], given[n/2:]}, nil
			})
			if err != nil {
				var ce *ConnError
				if !errors.As(err, &ce) || ce.Kind == nil {
					t.Fatalf("unclassified %v", err)
				}
				return
			}
		}
	})
}
