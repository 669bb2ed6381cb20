package nbd

import (
	"bytes"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func metaData(export string, queries ...string) []byte {
	b := append(u32(uint32(len(export))), export...)
	b = append(b, u32(uint32(len(queries)))...)
	for _, q := range queries {
		b = append(append(b, u32(uint32(len(q)))...), q...)
	}
	return b
}

// TestOptions: the final reply to each option, after which the connection goes on.
func TestOptions(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 1<<20), "plain": blind{newMemory(t, 512)}})
	long := string(bytes.Repeat([]byte("x"), nameBytesMax+1))
	manyQueries := make([]string, queriesMax+1)
	for i := range manyQueries {
		manyQueries[i] = "base:"
	}
	for _, test := range []struct {
		name    string
		option  uint32
		data    []byte
		replies []uint32
	}{
		{"list", optList, nil, []uint32{repServer, repServer, repAck}},
		{"list with data", optList, []byte{1}, []uint32{repErrInvalid}},
		{"info", optInfo, goData("vda", 3), []uint32{repInfo, repInfo, repAck}},
		{"info of nothing", optInfo, goData("vdb"), []uint32{repErrUnknown}},
		{"info of the default", optInfo, goData(""), []uint32{repErrUnknown}},
		{"info without data", optInfo, nil, []uint32{repErrInvalid}},
		{"info with a short name", optInfo, u32(10), []uint32{repErrInvalid}},
		{"info with a long name", optInfo, goData(long), []uint32{repErrInvalid}},
		{"info with a name of 4 GiB", optInfo, u32(1<<32 - 1), []uint32{repErrInvalid}},
		{"info with a name that is not UTF-8", optInfo, goData("\xff"), []uint32{repErrInvalid}},
		{"info with too few requests", optInfo, append(goData("vda")[:7], 0, 9), []uint32{repErrInvalid}},
		{"info with a tail", optInfo, append(goData("vda"), 1), []uint32{repErrInvalid}},
		{"go to nothing", optGo, goData("vdb"), []uint32{repErrUnknown}},
		{"metadata too early", optSetMeta, metaData("vda", "base:allocation"), []uint32{repErrInvalid}},
		{"structured with data", optStructuredReply, []byte{0}, []uint32{repErrInvalid}},
		{"structured", optStructuredReply, nil, []uint32{repAck}},
		{"metadata", optSetMeta, metaData("vda", "base:allocation", "qemu:allocation-depth"), []uint32{repMeta, repAck}},
		{"metadata of another kind", optSetMeta, metaData("vda", "x-other:thing"), []uint32{repAck}},
		{"metadata that cannot be selected", optSetMeta, metaData("vda", "base:"), []uint32{repAck}},
		{"metadata, none", optSetMeta, metaData("vda"), []uint32{repAck}},
		{"metadata of nothing", optSetMeta, metaData("vdb", "base:allocation"), []uint32{repErrUnknown}},
		{"metadata of one that has none", optSetMeta, metaData("plain", "base:allocation"), []uint32{repAck}},
		{"metadata without namespace", optSetMeta, metaData("vda", "allocation"), []uint32{repErrInvalid}},
		{"metadata, cut", optSetMeta, metaData("vda", "base:allocation")[:20], []uint32{repErrInvalid}},
		{"metadata, many", optSetMeta, metaData("vda", manyQueries...), []uint32{repErrTooBig}},
		{"metadata list", optListMeta, metaData("vda"), []uint32{repMeta, repAck}},
		{"metadata list by namespace", optListMeta, metaData("vda", "base:"), []uint32{repMeta, repAck}},
		{"TLS", 5, nil, []uint32{repErrUnsup}},
		{"unknown", 4711, make([]byte, optionBytesMax), []uint32{repErrUnsup}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t).greet()
			if test.option >= optListMeta && test.option <= optSetMeta && test.name != "metadata too early" {
				c.option(optStructuredReply, nil)
				c.wantReply(optStructuredReply, repAck)
			}
			c.option(test.option, test.data)
			for _, want := range test.replies {
				c.wantReply(test.option, want)
			}
			c.option(optAbort, []byte("ignored"))
			c.wantReply(optAbort, repAck)
			if rest := c.wantClosed(); len(rest) > 0 {
				t.Errorf("%x after the end", rest)
			}
		})
	}
	if len(s.closed) > 0 {
		t.Error("Closed was called for a connection that chose no export")
	}
}

// TestInfo: what a client learns of an export.
func TestInfo(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 1<<20+1)})
	c := s.dial(t).greet()
	c.option(optInfo, goData("vda"))
	_, export := c.replyData(optInfo)
	if want := append(append(u16(0), u64(1<<20+1)...), u16(0x086d)...); !bytes.Equal(export, want) {
		t.Errorf("export %x, want %x", export, want)
	}
	_, sizes := c.replyData(optInfo)
	if want := bytes.Join([][]byte{u16(3), u32(1), u32(4096), u32(32 << 20)}, nil); !bytes.Equal(sizes, want) {
		t.Errorf("block sizes %x, want %x", sizes, want)
	}
}

// TestExportName: the way of old clients, with the zeros that they expect.
func TestExportName(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 4096)})
	for _, test := range []struct {
		flags  uint32
		zeroes int
	}{{0, 124}, {1, 124}, {3, 0}} {
		c := s.dial(t)
		c.take(18)
		c.put(u32(test.flags), optionBytes(optExportName, []byte("vda")))
		want := append(append(u64(4096), u16(0x086d)...), make([]byte, test.zeroes)...)
		if got := c.take(len(want)); !bytes.Equal(got, want) {
			t.Errorf("flags %d: %x", test.flags, got)
		}
		c.put(requestHead(request{kind: cmdFlush, cookie: 7}))
		c.wantSimple(7, 0)
		c.put(requestHead(request{kind: cmdDisc}))
		c.wantClosed()
		if err := <-s.closed; err != nil {
			t.Error(err)
		}
	}
}

// TestHandshakeMisuse: what ends a connection at once.
func TestHandshakeMisuse(t *testing.T) {
	s := serve(t, Options{}, map[string]Backend{"vda": newMemory(t, 4096)})
	for _, test := range []struct {
		name string
		send []byte
	}{
		{"unknown flags", u32(4)},
		{"bad magic", append(u32(3), "IHAVENOT________"...)},
		{"long option", append(u32(3), optionBytes(optList, make([]byte, optionBytesMax+1))[:16]...)},
		{"option of 4 GiB", append(append(append(u32(3), "IHAVEOPT"...), u32(99)...), u32(1<<32-1)...)},
		{"old export name", append(u32(3), optionBytes(optExportName, []byte("vdb"))...)},
		{"option without fixed newstyle", append(u32(0), optionBytes(optList, nil)...)},
		{"too many options", append(u32(3), bytes.Repeat(optionBytes(4, nil), optionsMax)...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t)
			c.take(18)
			c.put(test.send)
			c.wantClosed()
		})
	}
}

// TestNegotiateMax: a client that says nothing does not stay.
func TestNegotiateMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Options{})
		ours, theirs := net.Pipe()
		s.accept(theirs)
		defer s.Close()
		began := time.Now()
		if _, err := ours.Read(make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		if _, err := ours.Read(make([]byte, 1)); err == nil {
			t.Fatal("the server said more")
		}
		if took := time.Since(began); took != defaultNegotiateMax {
			t.Errorf("it stayed for %v", took)
		}
	})
}

func TestAdd(t *testing.T) {
	s := NewServer(Options{})
	m := newMemory(t, 512)
	if err := s.Add("vda", m); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "vda", "\xff", "a\x00b", string(make([]byte, nameBytesMax+1))} {
		if s.Add(name, m) == nil {
			t.Errorf("%.20q was added", name)
		}
	}
	s.Close()
	if s.Add("vdb", m) == nil {
		t.Error("added to a closed server")
	}
}
