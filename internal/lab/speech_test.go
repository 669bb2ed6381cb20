package lab

import (
	"net"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

func TestSpeechesFollowTheCable(t *testing.T) {
	var s speeches
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	s.add("a", at(1), true, false)
	s.add("a", at(2), true, true)
	s.add("b", at(5), false, false)
	s.add("b", at(6), true, false)
	s.add("a", at(7), false, true)
	got, err := s.since(at(2))
	if err != nil || len(got) != 3 || got[0].Answers != 2 || got[0].FirstAnswer != at(1) || got[1].FirstAnswer != at(6) || got[1].Frames != 2 || got[2].Host != "a" {
		t.Errorf("got %+v, %v", got, err)
	}
	if n := splitOf(got, "a"); n != (Split{1, 1}) {
		t.Errorf("heard of a after b: %+v", n)
	}
	if n := splitOf(got[:2], "a"); n != (Split{}) {
		t.Errorf("one that moved is two: %+v", n)
	}
	if n := splitOf(got[1:], "b"); n != (Split{}) {
		t.Errorf("one that moved is two: %+v", n)
	}
	if got, _ := s.since(at(7)); len(got) != 1 {
		t.Errorf("since the last: %+v", got)
	}
	for i := range 2 * speechesMax {
		s.add([]string{"a", "b"}[i%2], at(10+i), false, false)
	}
	if _, err := s.since(at(0)); err == nil || len(s.all) != speechesMax {
		t.Errorf("%d speeches, %v", len(s.all), err)
	}
}

func TestAnswersAreSeenOnTheWire(t *testing.T) {
	mac, err := net.ParseMAC(guestMAC)
	if err != nil {
		t.Fatal(err)
	}
	record := guestapi.Answer{Status: guestapi.StatusApplied, Session: 1}.Append(nil)
	ethernet := func(etherType ...byte) []byte { return append(append(make([]byte, 6), mac...), etherType...) }
	v4 := func(proto byte) []byte { return append(ethernet(8, 0), []byte{0: 0x45, 9: proto, 19: 0}...) }
	tcp := []byte{1: guestapi.AcceptPort, 12: 8 << 4, 31: 0}
	udp := []byte{1: guestapi.AcceptPort, 7: 0}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for name, c := range map[string]struct {
		frame         []byte
		guest, answer bool
	}{
		"tcp":        {join(v4(6), tcp, record), true, true},
		"udp":        {join(v4(17), udp, record), true, true},
		"ipv6":       {join(ethernet(0x86, 0xdd), []byte{6: 17, 39: 0}, udp, record), true, true},
		"no payload": {join(v4(6), tcp), true, false},
		"cut off":    {join(v4(6), tcp, record)[:100], true, false},
		"port":       {join(v4(17), []byte{1: 9, 7: 0}, record), true, false},
		"arp":        {ethernet(8, 6), true, false},
		"stranger":   {join(make([]byte, 12), []byte{8, 0}, make([]byte, 200)), false, false},
		"runt":       {mac, false, false},
	} {
		if guest, answer := fromGuest(c.frame); guest != c.guest || answer != c.answer {
			t.Errorf("%s: guest %v, answer %v", name, guest, answer)
		}
	}
}

func TestToldTicksStayTold(t *testing.T) {
	var told told
	tick := func(counter, uptime, number uint64) guestapi.Tick {
		return guestapi.Tick{Counter: counter, UptimeNs: uptime, Told: number}
	}
	for _, x := range []guestapi.Tick{tick(1, 10, 5), tick(2, 20, 6), tick(5, 50, 7), tick(2, 20, 6), tick(5, 50, 7), tick(6, 60, 8)} {
		told.add(x)
	}
	if told.stepsBack != 0 || told.gone() != 0 {
		t.Errorf("%+v of a guest that repeats itself", told)
	}
	told.add(tick(5, 51, 7)) // lived again, otherwise
	told.add(tick(4, 40, 7)) // never told
	if told.stepsBack != 2 || told.gone() != 0 {
		t.Errorf("%d steps back, want 2; %d missing", told.stepsBack, told.gone())
	}
	told.add(tick(9, 90, 11))
	if told.gone() != 2 {
		t.Errorf("%d missing, want 2", told.gone())
	}
	told.add(tick(8, 80, 10)) // overtaken on its way
	if told.stepsBack != 2 || told.gone() != 1 {
		t.Errorf("a tick that was overtaken: %d steps back, want 2; %d missing, want 1", told.stepsBack, told.gone())
	}
	told.add(tick(8, 81, 10)) // which cannot happen twice
	if told.stepsBack != 3 {
		t.Errorf("%d steps back, want 3", told.stepsBack)
	}
	told.add(guestapi.Tick{BootID: guestapi.BootID{1}, Counter: 1})
	if told.stepsBack != 3 || told.gone() != 1 {
		t.Errorf("another boot is no step back, and nothing is missing: %d, %d", told.stepsBack, told.gone())
	}
}
