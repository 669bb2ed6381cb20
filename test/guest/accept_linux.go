package main

import (
	"fmt"
	"io"
	"net"
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
type acceptance struct{ ledger *ledger }

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
	for {
		n, from, err := conn.ReadFrom(in)
		if err != nil {
			continue
		}
		if r, err := guestapi.ParseRequest(in[:n]); err == nil {
			_, _ = conn.WriteTo(a.ledger.serve(r).Append(out), from) // a client asks again
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
		if _, err := conn.Write(a.ledger.serve(r).Append(out)); err != nil {
			return
		}
	}
}
