package replica

import (
	"context"
	"errors"
	"testing"
)

// Who asks is told what is there, and no session begins: not even one whose
// generation is over is refused for that.
func TestAsk(t *testing.T) {
	ca := newCA(t, "CA")
	hostB := ca.transport(t, "host-b")
	hostB.AllowedNames = []string{"host-a"}
	seen := make(chan *Hello, 1)
	l := listen(t, ListenerOptions{Transport: hostB, Admit: func(_ context.Context, p Peer, h *Hello) (*Welcome, *Refuse) {
		seen <- h
		if h.DomainName == "web2" {
			return nil, &Refuse{Code: CodeBusy, Reason: "it is being decided"}
		}
		return &Welcome{State: BackupActive, Generation: 9, Host: "host-b", HeartbeatPeriodNs: 1, SilenceLimitNs: 2}, nil
	}})
	d := &Dialer{Transport: ca.transport(t, "host-a")}
	w, err := d.Ask(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web1", Host: "host-a"})
	if err != nil {
		t.Fatal(err)
	}
	if h := <-seen; h.Role != RoleAsking || h.DomainName != "web1" || h.Host != "host-a" {
		t.Errorf("%+v", h)
	}
	if w.State != BackupActive || w.Generation != 9 || w.Host != "host-b" || w.Token != (Token{}) {
		t.Errorf("%+v", w)
	}
	_, err = d.Ask(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, DomainName: "web2", Host: "host-a"})
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != CodeBusy {
		t.Error(err)
	}
	<-seen
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := l.Accept(ctx); s != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("a session began: %v, %v", s, err)
	}
	if _, err := (&Dialer{Transport: ca.transport(t, "host-c")}).Ask(t.Context(), l.Addr().String(), testDomain, Hello{Domain: testDomain, Host: "host-a"}); !errors.As(err, &refused) || refused.Code != CodePolicy {
		t.Errorf("host-c was not refused: %v", err)
	}
}
