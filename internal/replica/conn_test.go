package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// tcpPair returns two ends of a TCP connection over loopback.
func tcpPair(tb testing.TB) (a, b net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		tb.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func dataPair(tb testing.TB) (a, b *Conn) {
	x, y := tcpPair(tb)
	return newConn(x, x, DataChannel, testProtection), newConn(y, y, DataChannel, testProtection)
}

func TestPagesArrive(t *testing.T) {
	a, b := dataPair(t)
	runs := []Run{{0, 0, 300, 0x3000}, {1, RunZero, 1 << 20, 0}, {2, 0, 724, 1 << 40}}
	data := make([]byte, MaxPageData)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	sent := make(chan error, 2)
	go func() {
		cut := [][]byte{data[:4096], data[4096:5000], data[5000:]}
		if err := a.SendPages(t.Context(), testStamp, runs, cut, func(err error) { sent <- err }); err != nil {
			t.Errorf("SendPages: %v", err)
		}
		sent <- a.Send(t.Context(), testStamp, &EpochEnd{Pages: 5})
	}()
	arena := make([]byte, MaxPageData)
	f, err := b.RecvPages(t.Context(), func(n int) []byte { return arena[:n] })
	if err != nil {
		t.Fatal(err)
	}
	if f.Stamp != testStamp || !reflect.DeepEqual(f.Msg.(*Pages).Runs, runs) || !bytes.Equal(f.Data, data) || &f.Data[0] != &arena[0] {
		t.Error("pages differ, or are not in the arena")
	}
	if n := f.Msg.(*Pages).Count(); n != 1<<20+1024 {
		t.Errorf("%d pages", n)
	}
	if f, err = b.RecvPages(t.Context(), nil); err != nil || f.Type != TypeEpochEnd {
		t.Errorf("%v, %v", f.Type, err)
	}
	for range 2 {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

func TestSendPagesRefusals(t *testing.T) {
	a, _ := wireConn(DataChannel)
	control, _ := wireConn(ControlChannel)
	page := make([]byte, PageSize)
	for name, c := range map[string]struct {
		conn *Conn
		runs []Run
		data [][]byte
	}{
		"control":      {control, []Run{{Pages: 1}}, [][]byte{page}},
		"short data":   {a, []Run{{Pages: 2}}, [][]byte{page}},
		"data of zero": {a, []Run{{Pages: 1, Flags: RunZero}}, [][]byte{page}},
		"unaligned":    {a, []Run{{Pages: 1, Off: 5}}, [][]byte{page}},
		"no pages":     {a, []Run{{}}, nil},
		"overflow":     {a, []Run{{Pages: 2, Off: 1<<64 - PageSize, Flags: RunZero}}, nil},
		"flags":        {a, []Run{{Pages: 1, Flags: 2}}, [][]byte{page}},
		"too much":     {a, []Run{{Pages: MaxPageData/PageSize + 1}}, [][]byte{make([]byte, MaxPageData+PageSize)}},
		"many runs":    {a, make([]Run, MaxRuns+1), nil},
	} {
		calls := 0
		err := c.conn.SendPages(t.Context(), testStamp, c.runs, c.data, func(error) { calls++ })
		if !errors.Is(err, ErrMalformed) || calls != 1 {
			t.Errorf("%s: %v, done ran %d times", name, err, calls)
		}
	}
}

func TestCheckRuns(t *testing.T) {
	blocks := []Block{{"pc.ram", 8 * PageSize}}
	for _, c := range []struct {
		run Run
		ok  bool
	}{
		{Run{0, 0, 8, 0}, true}, {Run{0, 0, 1, 7 * PageSize}, true}, {Run{0, 0, 9, 0}, false},
		{Run{0, 0, 1, 8 * PageSize}, false}, {Run{1, 0, 1, 0}, false}, {Run{0, 0, 2, 1<<64 - PageSize}, false},
	} {
		if err := CheckRuns([]Run{c.run}, blocks); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.run, err)
		}
	}
}

// TestRefusedBeforeAllocation: a peer that announces much and sends little
// costs no memory.
func TestRefusedBeforeAllocation(t *testing.T) {
	huge := func(typ Type, n uint32) []byte {
		h := testHeader()
		h.Type, h.PayloadBytes = typ, n
		return h.append(nil)
	}
	runs := func(typ Type, count uint32) []byte {
		return append(huge(typ, maxRunsPayload), byte(count>>24), byte(count>>16), byte(count>>8), byte(count))
	}
	for name, c := range map[string]struct {
		ch     Channel
		stream []byte
	}{
		"Pages too long":           {DataChannel, huge(TypePages, maxRunsPayload+1)},
		"DiskWrites too long":      {DataChannel, huge(TypeDiskWrites, maxRunsPayload+1)},
		"DiskSums too long":        {ControlChannel, huge(TypeDiskSums, TypeDiskSums.MaxPayload()+1)},
		"Ready too long":           {ControlChannel, huge(TypeReady, maxReadyPayload+1)},
		"Device too long":          {DataChannel, huge(TypeDevice, 1<<32-1)},
		"Device on control":        {ControlChannel, huge(TypeDevice, MaxDeviceBytes)},
		"Pages on control":         {ControlChannel, huge(TypePages, maxRunsPayload)},
		"PackedPages too long":     {DataChannel, huge(TypePackedPages, maxRunsPayload+2)},
		"PackedPages on control":   {ControlChannel, huge(TypePackedPages, maxRunsPayload)},
		"StreamEnd on the first":   {DataChannel, huge(TypeStreamEnd, 8)},
		"DiskWrites on control":    {ControlChannel, huge(TypeDiskWrites, maxRunsPayload)},
		"DiskSums on data":         {DataChannel, huge(TypeDiskSums, TypeDiskSums.MaxPayload())},
		"too many runs":            {DataChannel, runs(TypePages, MaxRuns+1)},
		"zero runs, much data":     {DataChannel, runs(TypePages, 0)},
		"too many packed runs":     {DataChannel, runs(TypePackedPages, MaxRuns+1)},
		"no packed runs":           {DataChannel, append(runs(TypePackedPages, 0), codecZstd)},
		"too many writes":          {DataChannel, runs(TypeDiskWrites, MaxRuns+1)},
		"no writes, much data":     {DataChannel, runs(TypeDiskWrites, 0)},
		"handshake in the session": {ControlChannel, huge(TypeHello, maxSmallPayload)},
	} {
		conn, w := wireConn(c.ch)
		w.Buffer.Write(c.stream)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := conn.RecvPages(t.Context(), func(n int) []byte { t.Errorf("%s: asked for %d bytes", name, n); return nil })
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
		if _, again := conn.Recv(t.Context()); again != err {
			t.Errorf("%s: the connection was not dead after it: %v", name, again)
		}
	}
}

func TestForeignMessagesAreRefused(t *testing.T) {
	for name, h := range map[string]Header{
		"protection": {Version: VersionMax, Protection: UUID{1}},
		"version":    {Version: VersionMax + 1, Protection: testProtection},
	} {
		conn, w := wireConn(ControlChannel)
		b, err := AppendMessage(nil, h, &Ack{})
		if err != nil {
			t.Fatal(err)
		}
		w.Buffer.Write(b)
		var fe *FormatError
		if _, err := conn.Recv(t.Context()); !errors.As(err, &fe) || fe.Field != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCorruptedPagesAreRefused(t *testing.T) {
	c, w := wireConn(DataChannel)
	runs, data := samplePages()
	if err := c.SendPages(t.Context(), testStamp, runs, [][]byte{data}, nil); err != nil {
		t.Fatal(err)
	}
	good := bytes.Clone(w.Bytes())
	for off := HeaderBytes; off < len(good); off += 37 {
		c, w := wireConn(DataChannel)
		bad := bytes.Clone(good)
		bad[off] ^= 4
		w.Buffer.Write(bad)
		arena := make([]byte, PageSize)
		f, err := c.RecvPages(t.Context(), func(n int) []byte { return arena[:n] })
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrPeerClosed) {
			t.Fatalf("flipped bit at %d: %v", off, err)
		}
		if off > HeaderBytes+4+2*runBytes && (len(f.Data) == 0 || &f.Data[0] != &arena[0]) {
			t.Fatal("the arena was not handed back")
		}
	}
}

// TestHowItEnded: each way in which a connection ends mid-Pages has its class.
func TestHowItEnded(t *testing.T) {
	half := func(tb testing.TB) (net.Conn, *Conn, []byte) {
		x, y := tcpPair(tb)
		c, w := wireConn(DataChannel)
		runs, data := samplePages()
		if err := c.SendPages(tb.Context(), testStamp, runs, [][]byte{data}, nil); err != nil {
			tb.Fatal(err)
		}
		if _, err := x.Write(w.Bytes()[:2000]); err != nil {
			tb.Fatal(err)
		}
		ours := newConn(y, y, DataChannel, testProtection)
		ours.version = VersionMax
		return x, ours, make([]byte, PageSize)
	}
	for name, c := range map[string]struct {
		end  func(peer net.Conn, ours *Conn, cancel context.CancelFunc)
		kind error
	}{
		"FIN":     {func(p net.Conn, _ *Conn, _ context.CancelFunc) { p.Close() }, ErrPeerClosed},
		"RST":     {func(p net.Conn, _ *Conn, _ context.CancelFunc) { p.(*net.TCPConn).SetLinger(0); p.Close() }, ErrPeerClosed},
		"ours":    {func(_ net.Conn, c *Conn, _ context.CancelFunc) { c.Close() }, ErrClosed},
		"cancel":  {func(_ net.Conn, _ *Conn, cancel context.CancelFunc) { cancel() }, context.Canceled},
		"silence": {nil, ErrPeerSilent},
	} {
		t.Run(name, func(t *testing.T) {
			peer, conn, arena := half(t)
			ctx, cancel := context.WithCancel(t.Context())
			if c.end == nil {
				ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			}
			defer cancel()
			f, err := conn.RecvPages(ctx, func(n int) []byte {
				if c.end != nil {
					c.end(peer, conn, cancel) // right in the middle
				}
				return arena[:n]
			})
			var ce *ConnError
			if !errors.Is(err, c.kind) || !errors.As(err, &ce) {
				t.Errorf("%v, want %v", err, c.kind)
			}
			for _, other := range []error{ErrPeerClosed, ErrPeerSilent, ErrClosed, ErrMalformed} {
				if other != c.kind && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			if len(f.Data) == 0 {
				t.Error("the arena was not handed back")
			}
			if _, err := conn.Recv(t.Context()); err == nil {
				t.Error("the connection was not dead after it")
			}
		})
	}
}

func TestEarlyTimeoutLeavesConnUsable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := net.Pipe()
		a, b := newConn(x, x, ControlChannel, testProtection), newConn(y, y, ControlChannel, testProtection)
		defer a.Close()
		defer b.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Recv(ctx); !errors.Is(err, ErrPeerSilent) {
			t.Errorf("%v", err)
		}
		go func() { _ = a.Send(t.Context(), testStamp, &Ack{}) }()
		if f, err := b.Recv(t.Context()); err != nil || f.Type != TypeAck {
			t.Errorf("%v, %v", f.Type, err)
		}
	})
}

func TestSendKeepsToItsChannel(t *testing.T) {
	c, w := wireConn(DataChannel)
	if err := c.Send(t.Context(), testStamp, &Ack{}); !errors.Is(err, ErrMalformed) || w.Len() != 0 {
		t.Errorf("Ack on the data connection: %v", err)
	}
	if err := c.Send(t.Context(), testStamp, &Pages{}); !errors.Is(err, ErrMalformed) || w.Len() != 0 {
		t.Errorf("Pages without data: %v", err)
	}
}

func TestErrorsRead(t *testing.T) {
	err := connError("receive", "hostB:16514", io.EOF)
	if s := err.Error(); s != "receive hostB:16514: peer closed the connection: EOF" {
		t.Error(s)
	}
	if s := connError("send", "h:1", fmt.Errorf("x: %w", ErrPeerSilent)).Error(); strings.Count(s, "silent") != 1 {
		t.Error(s)
	}
	if got := connError("send", "h:1", zcstream.ErrClosed); !errors.Is(got, ErrClosed) {
		t.Error(got)
	}
	if err := CheckGeneration(3, 2); err == nil || CheckGeneration(3, 3) != nil || CheckGeneration(3, 4) != nil {
		t.Error(err)
	}
	var u UUID
	if u, err = ParseUUID(testDomain.String()); err != nil || u != testDomain {
		t.Error(u, err)
	}
	if _, err = ParseUUID("zz"); err == nil {
		t.Error("zz is no UUID")
	}
}
