package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Two guests that tick in turn are no step back and no gap; one that moves has two
// speeches, and one that tells anew what it lived twice is found out.
func TestVoices(t *testing.T) {
	a, b := guestapi.BootID{1}, guestapi.BootID{2}
	at := time.Unix(1000, 0)
	var v voices
	say := func(boot guestapi.BootID, host string, counter, told uint64) {
		at = at.Add(time.Second)
		v.add(Observation{Tick: guestapi.Tick{BootID: boot, Counter: counter, Told: told}, Host: host, At: at})
	}
	of := func(boot guestapi.BootID) Voice {
		t.Helper()
		voice, err := v.of(boot)
		if err != nil {
			t.Fatal(err)
		}
		return voice
	}
	say(a, "host-a", 10, 0)
	say(b, "host-a", 500, 0)
	say(a, "host-a", 11, 1)
	lost := at
	say(b, "host-b", 501, 1)
	say(a, "host-b", 12, 2)
	say(b, "host-b", 400, 2) // it went back
	for boot, want := range map[guestapi.BootID]uint64{a: 0, b: 1} {
		got := of(boot)
		if got.Count != 3 || got.StepsBack != want || got.Missing != 0 || len(got.Speeches) != 2 || got.Last.Host != "host-b" {
			t.Errorf("boot %v: %+v", boot[0], got)
		}
		if s, ok := got.From("host-b", lost); !ok || !s.First.After(lost) {
			t.Errorf("boot %v is not heard from its new host: %+v", boot[0], got)
		}
		if s, ok := got.From("host-a", lost); ok {
			t.Errorf("boot %v is heard from a host that is off: %+v", boot[0], s)
		}
	}
	if got := of(guestapi.BootID{3}); got.Count != 0 {
		t.Errorf("a guest that said nothing: %+v", got)
	}
	for i := range voicesMax {
		say(guestapi.BootID{9, byte(i), byte(i >> 8)}, "host-a", 1, 0)
	}
	if _, err := v.of(guestapi.BootID{3}); err == nil {
		t.Error("more guests than are told apart, and nobody says so")
	}
}

// Guests that live at once have addresses of their own; the first keeps its.
func TestGuestNumbers(t *testing.T) {
	seen := map[string]int{}
	for n := range guestNumberMax + 1 {
		text, err := GuestXML(GuestOptions{Number: n, NIC: true, Kernel: "k", Initrd: "i"})
		if err != nil {
			t.Fatal(err)
		}
		o := GuestOptions{Number: n}
		for _, part := range []string{fmt.Sprintf("<mac address='%s'/>", o.MAC()), fmt.Sprintf("ft.ip=%s/24", o.IP())} {
			if !strings.Contains(text, part) {
				t.Errorf("guest %d: no %s in its XML", n, part)
			}
			if other, twice := seen[part]; twice {
				t.Errorf("guests %d and %d both have %s", other, n, part)
			}
			seen[part] = n
		}
	}
	if (GuestOptions{}).IP() != GuestAddr || (GuestOptions{}).MAC() != guestMAC {
		t.Error("the first guest's addresses are not those that everybody knows")
	}
	if _, err := GuestXML(GuestOptions{Number: guestNumberMax + 1}); err == nil {
		t.Error("a number beyond the network was taken")
	}
}
