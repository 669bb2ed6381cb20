package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// chatter is a client's side of a connection: it sends what it is told, in
// pieces, and reads until the server has closed.
func chatter(t *testing.T, s *served, pieces ...[]byte) []byte {
	t.Helper()
	nc, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	go func() {
		for _, p := range pieces {
			if _, err := nc.Write(p); err != nil {
				return // the server has had enough
			}
		}
		_ = nc.(*net.UnixConn).CloseWrite()
	}()
	b, _ := io.ReadAll(nc) // it may be reset with something of ours unread
	return b
}

// FuzzNegotiation: whatever a client says, it is greeted, and the connection ends
// when it has no more to say.
func FuzzNegotiation(f *testing.F) {
	for _, o := range [][]byte{
		optionBytes(optList, nil), optionBytes(optGo, goData("vda", 3)), optionBytes(optInfo, goData("vdb")),
		optionBytes(optExportName, []byte("vda")), optionBytes(optStructuredReply, nil), optionBytes(99, []byte("x")),
		bytes.Join([][]byte{optionBytes(optStructuredReply, nil), optionBytes(optSetMeta, metaData("vda", allocationContext)),
			optionBytes(optListMeta, metaData("vda")), optionBytes(optAbort, nil)}, nil),
	} {
		f.Add(append(u32(3), o...))
		f.Add(append(u32(0), o...))
	}
	s, _ := fuzzServer(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		out := chatter(t, s, data)
		// It may be reset before anything was read, when it was closed at once.
		hello := append([]byte("NBDMAGICIHAVEOPT"), 0, 3)
		if !bytes.HasPrefix(hello, out[:min(len(out), len(hello))]) {
			t.Errorf("greeting %x", out)
		}
	})
}

// FuzzTransmission: any requests, cut anywhere, are answered in the same way and
// reach the backend in the same way. The backend checks ranges and buffers.
func FuzzTransmission(f *testing.F) {
	write := func(off, n int) []byte {
		return append(requestHead(request{kind: cmdWrite, cookie: 1, off: uint64(off), length: uint32(n)}), bytes.Repeat([]byte{7}, n)...)
	}
	f.Add(false, uint16(5), bytes.Join([][]byte{write(0, 512), write(4096, 4096), write(8192, 4096), requestHead(request{kind: cmdFlush})}, nil))
	f.Add(true, uint16(4124), bytes.Join([][]byte{write(100, 5000), write(fuzzSize-10, 20), requestHead(request{kind: cmdRead, off: 90, length: 30})}, nil))
	f.Add(true, uint16(30), bytes.Join([][]byte{requestHead(request{kind: cmdTrim, length: 4096}), requestHead(request{kind: cmdBlockStatus, length: fuzzSize}),
		requestHead(request{kind: cmdWriteZeroes, off: 7, length: 77, flags: cmdFlagNoHole}), requestHead(request{kind: cmdDisc})}, nil))
	s, m := fuzzServer(f)
	f.Fuzz(func(t *testing.T, structured bool, cut uint16, data []byte) {
		if len(data) > 1<<17 {
			return
		}
		hello := u32(3)
		if structured {
			hello = bytes.Join([][]byte{hello, optionBytes(optStructuredReply, nil), optionBytes(optSetMeta, metaData("vda", allocationContext))}, nil)
		}
		hello = append(hello, optionBytes(optGo, goData("vda"))...)
		at := min(int(cut), len(data))

		whole := chatter(t, s, hello, data)
		<-s.closed
		disk, calls := m.reset()
		pieces := chatter(t, s, hello, data[:at], data[at:])
		<-s.closed
		disk2, calls2 := m.reset()
		if !slices.Equal(calls, calls2) || !bytes.Equal(disk, disk2) {
			t.Errorf("whole: %q\ncut at %d: %q", calls, at, calls2)
		}
		// A reset may take the last replies with it.
		if !bytes.HasPrefix(whole, pieces) && !bytes.HasPrefix(pieces, whole) {
			t.Errorf("whole: %x\ncut at %d: %x", whole, at, pieces)
		}
	})
}

const fuzzSize = 64<<10 + 9

func fuzzServer(f *testing.F) (*served, *fuzzDisk) {
	m := &fuzzDisk{data: make([]byte, fuzzSize)}
	s := &served{socket: filepath.Join(f.TempDir(), "nbd"), closed: make(chan error, 1)}
	s.Server = NewServer(Options{Closed: func(_ string, err error) {
		select {
		case s.closed <- err:
		default: // nobody waits
		}
	}})
	if err := s.Add("vda", m); err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("unix", s.socket)
	if err != nil {
		f.Fatal(err)
	}
	go s.Serve(ln)
	f.Cleanup(func() { s.Close() })
	return s, m
}

// fuzzDisk notes every call.
type fuzzDisk struct {
	mu    sync.Mutex // between the test and the calls, which come one at a time
	data  []byte
	calls []string
}

func (d *fuzzDisk) reset() (disk []byte, calls []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	disk, calls = bytes.Clone(d.data), d.calls
	clear(d.data)
	d.calls = nil
	return disk, calls
}

// note is called with mu held.
func (d *fuzzDisk) note(method string, off, n int64) {
	d.calls = append(d.calls, method)
	if off < 0 || n <= 0 || off > fuzzSize-n {
		panic(method + " out of range") // there is no test to tell it to
	}
}

func (d *fuzzDisk) SizeBytes() int64 { return fuzzSize }

func (d *fuzzDisk) Read(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("read", off, int64(len(p)))
	copy(p, d.data[off:])
	return nil
}

func (d *fuzzDisk) Write(_ context.Context, off int64, data []byte, release func(), _ bool) error {
	defer release()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("write", off, int64(len(data)))
	copy(d.data[off:], data)
	return nil
}

func (d *fuzzDisk) Zero(_ context.Context, off, n int64, _, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("zero", off, n)
	clear(d.data[off : off+n])
	return nil
}

func (d *fuzzDisk) Trim(_ context.Context, off, n int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("trim", off, n)
	return nil
}

func (d *fuzzDisk) Flush(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("flush", 0, 1)
	return nil
}

func (d *fuzzDisk) Extents(_ context.Context, off, n int64, add func(Extent) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("extents", off, n)
	for half := n/2 + 1; n > 0; n -= half {
		if half = min(half, n); !add(Extent{Bytes: half, Hole: n%2 == 0}) {
			break
		}
	}
	return nil
}
