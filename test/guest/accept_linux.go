package main

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

const (
	// acceptClientsMax bounds the TCP connections of the acceptance service.
	acceptClientsMax = guestapi.AcceptSessionsMax
	// acceptIdleMax ends a connection whose client is gone without a word.
	acceptIdleMax = 10 * time.Minute
)

// acceptance is the service on guestapi.AcceptPort, over IPv4, and over IPv6 if
// the kernel has it.
type acceptance struct {
	ledger *ledger
	scribe atomic.Pointer[scribe] // nil: answers are given at once
}

func newAcceptance(id guestapi.BootID, damaged func(string)) (*acceptance, error) {
	first, err := anonymous(ledgerBytes)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	second, err := anonymous(ledgerBytes)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return &acceptance{ledger: newLedger(id, first, second, damaged)}, nil
}

// writeTo makes all answers from now on wait for their record on a disk; nil:
// not any more. It returns the last serial that has none.
func (a *acceptance) writeTo(d *recordDisk) (since uint64) {
	if d == nil {
		a.ledger.tell(nil, func(serial uint64) { since = serial; a.scribe.Store(nil) })
		return since
	}
	s := newScribe(d)
	// Within the ledger's lock, so that no request comes between the two.
	a.ledger.tell(s.append, func(serial uint64) { since = serial; s.begin(serial); a.scribe.Store(s) })
	go s.run()
	return since
}

// answer serves a request. It is false for one that can never be answered,
// because the disk failed.
func (a *acceptance) answer(r guestapi.Request) (guestapi.Answer, bool) {
	answer := a.ledger.serve(r)
	if s := a.scribe.Load(); s != nil {
		return answer, s.wait(answer.Serial)
	}
	return answer, true
}

func (a *acceptance) serve() error {
	addr := fmt.Sprintf(":%d", guestapi.AcceptPort)
	// Each family for itself: the net package does not find IPv6 where the
	// loopback interface is down.
	for _, family := range []string{"4", "6"} {
		tcp, err := net.Listen("tcp"+family, addr)
		if err != nil && family == "6" {
			say("acceptance service: no IPv6: %v", err)
			return nil
		}
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp"+family, addr)
		if err != nil {
			tcp.Close()
			return err
		}
		go a.serveUDP(udp)
		go a.serveTCP(tcp)
	}
	return nil
}

func (a *acceptance) serveUDP(conn net.PacketConn) {
	in, out := make([]byte, guestapi.RequestBytes+1), make([]byte, 0, guestapi.AnswerBytes)
	waiting := make(chan struct{}, acceptClientsMax)
	for {
		n, from, err := conn.ReadFrom(in)
		if err != nil {
			continue
		}
		r, err := guestapi.ParseRequest(in[:n])
		switch {
		case err != nil:
		case a.scribe.Load() == nil:
			_, _ = conn.WriteTo(a.ledger.serve(r).Append(out), from) // a client asks again
		default: // nobody waits for another's record
			waiting <- struct{}{}
			go func() {
				defer func() { <-waiting }()
				if answer, ok := a.answer(r); ok {
					_, _ = conn.WriteTo(answer.Append(nil), from)
				}
			}()
		}
	}
}

func (a *acceptance) serveTCP(l net.Listener) {
	slots := make(chan struct{}, acceptClientsMax)
	for {
		conn, err := l.Accept()
		if err != nil {
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { conn.Close(); <-slots }()
			a.serveConn(conn)
		}()
	}
}

// serveConn answers until the client closes or says what is no request.
func (a *acceptance) serveConn(conn net.Conn) {
	in, out := make([]byte, guestapi.RequestBytes), make([]byte, 0, guestapi.AnswerBytes)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(acceptIdleMax)); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, in); err != nil {
			return
		}
		r, err := guestapi.ParseRequest(in)
		if err != nil {
			return
		}
		answer, ok := a.answer(r)
		if !ok {
			continue // the client must not take a closed connection for the fault
		}
		if _, err := conn.Write(answer.Append(out)); err != nil {
			return
		}
	}
}
