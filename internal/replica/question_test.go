package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func peerThatAnswers(t *testing.T, answer func(context.Context, Peer, *Hello, []byte) ([]byte, error)) (*Listener, *Dialer) {
	t.Helper()
	plain := Transport{Mode: ModePlain}
	l := listen(t, ListenerOptions{Transport: plain, Answer: answer, Admit: func(_ context.Context, p Peer, h *Hello) (*Welcome, *Refuse) {
		if h.DomainName == "web2" {
			return nil, &Refuse{Code: CodeBusy, Reason: "it is being decided"}
		}
		return &Welcome{State: BackupStandby, Generation: 9, Host: "host-b", HeartbeatPeriodNs: 1, SilenceLimitNs: 2}, nil
	}})
	return l, &Dialer{Transport: plain}
}

func question(t *testing.T, l *Listener, d *Dialer) *Asker {
	t.Helper()
	a, err := d.Question(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1", Host: "host-a"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// An asker may ask, and measure, as often as it likes, on one connection.
func TestQuestions(t *testing.T) {
	l, d := peerThatAnswers(t, func(_ context.Context, _ Peer, h *Hello, q []byte) ([]byte, error) {
		if string(q) == "no" {
			return nil, errors.New("not to you\x00")
		}
		return append([]byte(h.DomainName+" "), q...), nil
	})
	a := question(t, l, d)
	if a.Welcome.State != BackupStandby || a.Welcome.Generation != 9 || a.Welcome.Host != "host-b" {
		t.Errorf("%+v", a.Welcome)
	}
	long := bytes.Repeat([]byte("x"), MaxAnswerBytes-len("web1 "))
	for _, q := range [][]byte{[]byte("who?"), nil, long} {
		if got, err := a.Ask(t.Context(), q); err != nil || string(got) != "web1 "+string(q) {
			t.Fatalf("%d bytes: %d, %v", len(q), len(got), err)
		}
		e, err := a.Echo(t.Context())
		if err != nil || e.RoundTrip <= 0 || e.Sent > e.Came || e.Came > e.Answered || e.Answered > e.Back { // one clock told all four
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if _, err := a.Ask(t.Context(), []byte("no")); err == nil || !strings.Contains(err.Error(), "not to you") {
		t.Error(err)
	}
	if rate, err := a.Fill(t.Context(), time.Second, 4<<20); err != nil || rate <= 0 {
		t.Error(rate, err)
	}
	if _, err := a.Ask(t.Context(), []byte("still there?")); err != nil {
		t.Error(err)
	}
	if _, err := d.Question(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web2"}); err == nil {
		t.Error("a host that does not admit the asker answers it")
	}
}

// A peer of an older release says what it has of the domain, and no more.
func TestQuestionToOlderPeer(t *testing.T) {
	l, d := peerThatAnswers(t, nil)
	a, err := d.Question(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1"})
	if !errors.Is(err, ErrNoAnswers) || a == nil || a.Welcome.Host != "host-b" {
		t.Errorf("%+v, %v", a, err)
	}
	// Who only wants to know what is there is no asker of questions.
	l, d = peerThatAnswers(t, func(context.Context, Peer, *Hello, []byte) ([]byte, error) { panic("asked") })
	if w, err := d.Ask(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1"}); err != nil || w.Capabilities != 0 {
		t.Errorf("%+v, %v", w, err)
	}
}

// Whatever an asker sends, the listener holds to its bounds and goes on.
func TestQuestionBounds(t *testing.T) {
	l, d := peerThatAnswers(t, func(context.Context, Peer, *Hello, []byte) ([]byte, error) {
		return make([]byte, MaxAnswerBytes+1), nil
	})
	var refused *RefusedError
	var all []*Asker
	for i := range maxAskers {
		all = append(all, question(t, l, d))
		if _, err := all[i].Echo(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := d.Question(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1"})
	if !errors.As(err, &refused) || refused.Code != CodeBusy {
		t.Errorf("one asker more than there may be: %v", err)
	}
	for name, wrong := range map[string]func(a *Asker) error{
		"an answer that is too long": func(a *Asker) error { _, err := a.Ask(t.Context(), nil); return err },
		"an answer for a question":   func(a *Asker) error { return a.c.Send(t.Context(), Stamp{}, &Answer{Seq: 1}) },
		"another message": func(a *Asker) error {
			a.c.asking = false
			defer func() { a.c.asking = true }()
			return a.c.Send(t.Context(), Stamp{}, &Heartbeat{Seq: 1})
		},
		"garbage": func(a *Asker) error { _, err := a.c.raw.Write(bytes.Repeat([]byte{0xff}, HeaderBytes)); return err },
	} {
		a := all[0]
		all = all[1:]
		if err := wrong(a); err == nil {
			if _, err = a.c.Recv(t.Context()); err == nil {
				t.Errorf("%s: the connection goes on", name)
			}
		}
		_ = a.Close()
	}
	// Their places are free again as soon as the listener sees that they are gone.
	for {
		a, err := d.Question(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1", Host: fmt.Sprint(time.Now().UnixNano())})
		if err == nil {
			_ = a.Close()
			return
		}
		if t.Context().Err() != nil || !errors.As(err, &refused) {
			t.Fatal(err)
		}
	}
}

// A peer that lies in its answers is found out.
func TestAnswerToOtherQuestion(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	peer := newConn(theirs, theirs, ControlChannel, testProtection)
	peer.version, peer.asking = VersionMax, true
	c := newConn(ours, ours, ControlChannel, testProtection)
	c.version, c.asking = VersionMax, true
	a := &Asker{c: c}
	go func() {
		if f, err := peer.Recv(t.Context()); err == nil {
			_ = peer.Send(t.Context(), Stamp{}, &Answer{Seq: f.Msg.(*Question).Seq + 1})
		}
	}()
	if _, err := a.Echo(t.Context()); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// BenchmarkFill measures the probe beside what the same connection carries when it
// is filled for long: the measurement should not be far below.
func BenchmarkFill(b *testing.B) {
	plain := Transport{Mode: ModePlain}
	l, err := Listen(b.Context(), "127.0.0.1:0", ListenerOptions{Transport: plain, Admit: func(context.Context, Peer, *Hello) (*Welcome, *Refuse) {
		return &Welcome{State: BackupNone, HeartbeatPeriodNs: 1, SilenceLimitNs: 2}, nil
	}, Answer: func(context.Context, Peer, *Hello, []byte) ([]byte, error) { return nil, nil }})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var probed, floor float64
	for i := range b.N {
		ask := func(d time.Duration, most int) float64 {
			a, err := (&Dialer{Transport: plain}).Question(b.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "d", Host: fmt.Sprint("h", i)})
			if err != nil {
				b.Fatal(err)
			}
			defer a.Close()
			rate, err := a.Fill(b.Context(), d, most)
			if err != nil {
				b.Fatal(err)
			}
			return rate
		}
		probed += ask(200*time.Millisecond, 32<<20)
		floor += ask(10*time.Second, 256<<20)
	}
	b.ReportMetric(probed/float64(b.N)/(1<<20), "MiB/s")
	b.ReportMetric(probed/floor, "of-long-run")
}
