package lab

import (
	"context"
	"net"
	"testing"
	"time"
)

// TestDeafHostIsStillHeard sends datagrams both ways over the replication link.
func TestDeafHostIsStillHeard(t *testing.T) {
	skipMissing(t, checkMachine())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := New(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket := func(h *Host) (c net.PacketConn) {
		err := h.Inside(func() (err error) { c, err = net.ListenPacket("udp4", h.Repl+":7000"); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	socks := map[*Host]net.PacketConn{l.A: socket(l.A), l.B: socket(l.B)}
	var call byte
	// crosses sends until it is heard, or ten times in vain.
	crosses := func(from *Host, want bool) {
		t.Helper()
		to := l.Peer(from)
		addr := &net.UDPAddr{IP: net.ParseIP(to.Repl), Port: 7000}
		call++
		for try := 0; (want || try < 10) && ctx.Err() == nil; try++ {
			if _, err := socks[from].WriteTo([]byte{call}, addr); err != nil {
				t.Fatal(err)
			}
			if err := socks[to].SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 8)
			if _, _, err := socks[to].ReadFrom(got); err != nil || got[0] != call { // none, or a late one of before
				continue
			}
			if !want {
				t.Fatalf("%s is heard at %s", from.Name, to.Name)
			}
			return
		}
		if want {
			t.Fatalf("%s is not heard at %s", from.Name, to.Name)
		}
	}
	both := func() { crosses(l.A, true); crosses(l.B, true) }
	both()
	if err := l.DeafenReplication(l.A); err != nil {
		t.Fatal(err)
	}
	crosses(l.A, true)
	crosses(l.B, false)
	if err := l.HealReplication(); err != nil {
		t.Fatal(err)
	}
	both()
	if err := l.HealReplication(); err != nil {
		t.Errorf("healing what is whole: %v", err)
	}
}
