package main

import (
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// order gives a worker a line, as the command port does.
func order(t *testing.T, w *worker, counter *uint64, line string) map[string]any {
	t.Helper()
	a, err := w.run(counter, strings.Fields(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return a
}

func TestWorkIsCountedUntilItIsOff(t *testing.T) {
	for kind := range workKinds() {
		var w worker
		var counter uint64
		order(t, &w, &counter, "cpu "+kind)
		for atomic.LoadUint64(&counter) < 3 {
			time.Sleep(time.Millisecond) // the test's own limit ends this
		}
		order(t, &w, &counter, "cpu "+kind) // instead of the first, not beside it
		order(t, &w, &counter, "off")
		// All have ended, so that nothing else writes here.
		if end := counter; end < 3 {
			t.Errorf("%s: counted to %d", kind, end)
		}
	}
}

func TestAWalkMeetsAllOfItsMemory(t *testing.T) {
	const lines = walkBytes / lineBytes
	met := map[*uint64]int{}
	piece, err := walker(func(w *uint64, x uint64) uint64 { met[w]++; return x })
	if err != nil {
		t.Fatal(err)
	}
	for range lines / walkPiece {
		piece()
	}
	if len(met) != lines {
		t.Fatalf("%d of %d lines", len(met), lines)
	}
	for w, n := range met {
		if n != 1 {
			t.Fatalf("%p was met %d times", w, n)
		}
	}
}

func TestChatSendsUntilItIsOff(t *testing.T) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	var w worker
	var counter uint64
	order(t, &w, &counter, "chat "+sink.LocalAddr().String()+" 1")
	buf := make([]byte, 2*chatBytes)
	for want := range uint64(5) {
		n, err := sink.Read(buf)
		if err != nil || n != chatBytes || binary.BigEndian.Uint64(buf) != want {
			t.Fatalf("datagram %d: %d bytes, %x, %v", want, n, buf[:8], err)
		}
	}
	order(t, &w, &counter, "off")
}

func TestBulkBothWays(t *testing.T) {
	var w worker
	var counter uint64
	a := order(t, &w, &counter, "bulk 0")
	defer w.bulk.Close()
	dial := func(what string) *net.TCPConn {
		t.Helper()
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(a["port"].(int))))
		if err == nil {
			_, err = io.WriteString(conn, what)
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn.(*net.TCPConn)
	}
	get := dial("g")
	defer get.Close()
	if n, err := io.CopyN(io.Discard, get, 1<<20); err != nil || n != 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	put := dial("p")
	defer put.Close()
	const size = 1<<20 + 7
	if _, err := put.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := put.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(put)
	if err != nil || len(answer) != 8 || binary.BigEndian.Uint64(answer) != size {
		t.Errorf("answer %x, %v", answer, err)
	}
}

func TestWorkRefusesNonsense(t *testing.T) {
	var w worker
	var counter uint64
	for _, line := range []string{"", "cpu", "cpu sleep", "chat 10.0.0.1 1", "chat 10.0.0.1:9 0", "chat 10.0.0.1:9 1001", "bulk 65536", "bulk -1", "off now"} {
		if a, err := w.run(&counter, strings.Fields(line)); err == nil {
			t.Errorf("%q: %v", line, a)
		}
	}
	if len(w.runs) != 0 || w.bulk != nil {
		t.Errorf("something runs: %v", w.runs)
	}
}
