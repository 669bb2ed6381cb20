package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// numbered is a stream as a guest sends it with numbered.
func numbered(words int) []byte {
	var b []byte
	for i := range words {
		b = binary.LittleEndian.AppendUint64(b, uint64(i+1)*numberStep)
	}
	return b
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	const words = receiveBytes/8 + 1000 // more than is read at once
	if err := check(bytes.NewReader(numbered(words)), words*8); err != nil {
		t.Errorf("what is right: %v", err)
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"a bit":         {func(b []byte) []byte { b[12345] ^= 4; return b }, "at byte 12344 of the stream"},
		"a later word":  {func(b []byte) []byte { copy(b[80:88], b[800:]); return b }, "word 101 instead of 11"},
		"an older page": {func(b []byte) []byte { copy(b[receiveBytes:], b[:4096]); return b }, "word 1 instead of 131073"},
		"nothing":       {func(b []byte) []byte { clear(b[8000:8008]); return b }, "word 0 instead of 1001"},
		"an end":        {func(b []byte) []byte { return b[:len(b)-1] }, "unexpected EOF"},
	} {
		err := check(bytes.NewReader(c.change(numbered(words))), words*8)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestDiscard(t *testing.T) {
	for name, c := range map[string]struct {
		missing int64
		want    error
	}{"all": {0, nil}, "an end": {1, io.ErrUnexpectedEOF}} {
		a, b, err := loopback(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const n = 3*receiveBytes + 5
		wrote := make(chan error, 1)
		go func() {
			_, err := a.Write(make([]byte, n-c.missing))
			wrote <- errors.Join(err, a.Close())
		}()
		if err := discard(b.(*net.TCPConn), n); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := errors.Join(<-wrote, b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestMoversMove makes sure that what is measured is the pages arriving.
func TestMoversMove(t *testing.T) {
	p, err := newPools()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	want := bytes.Join(p.pages, nil)
	if bytes.Equal(want, p.from) {
		t.Fatal("the pages are in order")
	}
	movers := []*mover{p.memcpy()}
	for _, n := range counts() {
		for _, mode := range []zcstream.Mode{zcstream.ModeAuto, zcstream.ModeOff, zcstream.ModeForce} {
			m, err := p.streams(t.Context(), n, "stream", mode)
			if err != nil {
				t.Fatal(err)
			}
			movers = append(movers, m)
		}
		m, err := p.session(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		movers = append(movers, m)
	}
	for _, m := range movers {
		clear(p.to)
		c, err := measure(t.Context(), m, poolBytes)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.to, want) {
			t.Errorf("%s, %d streams: other bytes arrived", m.name, m.streams)
		}
		if c.bytes != poolBytes || c.ns <= 0 {
			t.Errorf("%s: %+v", m.name, c)
		}
		m.close()
	}
}

func TestIperf3(t *testing.T) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("iperf3 is missing (run make deps)")
	}
	p, err := startIperf3(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counts() { // one server for all
		c, err := p.move(t.Context(), n, 32<<20)
		if err != nil {
			t.Fatal(err)
		}
		// It ends when so much was sent, whatever of that has arrived.
		if c.bytes < 1<<20 || c.bytes > 64<<20 || c.ns <= 0 {
			t.Errorf("%d streams: %+v", n, c)
		}
	}
	p.close()
	if _, err := p.move(t.Context(), 1, 1<<20); err == nil || !strings.Contains(err.Error(), "iperf3") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("without its server: %v", err)
	}
}

func TestParseIperf3(t *testing.T) {
	c, err := parseIperf3([]byte(`{"start":{},"intervals":[],"end":{"sum_sent":{"seconds":1,"bytes":9},"sum_received":{"start":0,"end":0.5,"seconds":0.5,"bytes":1000,"bits_per_second":16000}}}`))
	if err != nil || c.ns != 5e8 || c.bytes != 1000 {
		t.Errorf("%+v, %v", c, err)
	}
	for text, want := range map[string]string{
		`{"error":"unable to connect"}`: "unable to connect",
		`{"end":{}}`:                    "0 bytes in 0 s",
		`{"end":`:                       "unexpected end",
		``:                              "unexpected end",
		`{"end":{"sum_received":{"seconds":-1,"bytes":5}}}`: "5 bytes in -1 s",
	} {
		if _, err := parseIperf3([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSummarize(t *testing.T) {
	const gib = 1 << 30
	of := func(busyMs, vcpuMs int64, wallMs int64, zc, copied uint64) sent {
		return sent{Bytes: gib, BusyNs: busyMs * 1e6, vcpuNs: vcpuMs * 1e6, WallNs: wallMs * 1e6,
			SelfUserNs: 1e6, SelfSystemNs: busyMs*1e6 - 1e6, ZeroCopyBytes: zc * gib / 10, Completions: zc, Copied: copied}
	}
	g := summarize([]pair{
		{of(1000, 900, 2000, 0, 0), of(500, 300, 1000, 10, 1)},
		{of(100, 100, 500, 0, 0), of(60, 50, 400, 10, 0)}, // a quicker moment of the machine
		{of(200, 100, 500, 0, 0), of(140, 60, 250, 10, 0)},
	})
	if g.Rounds != 3 || g.CPURatio != .6 || g.VCPURatio != .5 || g.ProcessRatio != .6 || g.ThroughputRatio != 2 || g.NotCopiedShare != .967 {
		t.Errorf("%+v", g)
	}
	if g.Plain.BusyMs != 200 || g.Plain.Completions != 0 || g.ZeroCopy.BusyMs != 140 || g.ZeroCopy.Copied != 1 || g.ZeroCopy.ZeroCopyShare != 1 {
		t.Errorf("%+v", g)
	}
}

func TestNICSaysWhatItLacks(t *testing.T) {
	if why := (nic{Name: "eth0", SG: true, Checksum: true}).lacks(); why != "" {
		t.Error(why)
	}
	for _, n := range []nic{{Name: "eth0", SG: true}, {Name: "eth0", Checksum: true, TSO: true}, {SG: true, Checksum: true, Error: "refused"}} {
		if n.lacks() == "" {
			t.Errorf("%+v can do it", n)
		}
	}
}
