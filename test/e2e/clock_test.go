package e2e

import (
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// guestTime is what the guest's CLOCK_MONOTONIC showed at some instant between two.
type guestTime struct {
	clock       time.Duration
	asked, told time.Time
}

func (p *pair) guestTime() guestTime {
	p.t.Helper()
	asked := time.Now()
	a, err := p.Command(p.step(), "status")
	p.must(err)
	ns, ok := a["monotonic_ns"].(float64)
	if !ok {
		p.t.Fatalf("the guest does not say what its clock shows: %v", a)
	}
	return guestTime{time.Duration(ns), asked, time.Now()}
}

// outage is for how long nobody runs the guest in clockGoesOn.
const outage = 3 * time.Second

// clockGoesOn: a guest that nobody ran for some seconds finds its clock set forward
// by them, and not by more. What an emulated guest loses all the same are the
// pauses, and the moment from the setting to the resume.
func clockGoesOn(p *pair, g *lab.Guest) {
	p.protect(p.A, g.Name, "--arbiter", "manual")
	if out, err := p.A.Ctl(p.step(), "status", g.Name); err != nil || !strings.Contains(out, "uncorrected (TCG)") {
		p.t.Errorf("status of an emulated guest: %v\n%s", err, out)
	}
	before := p.guestTime()
	p.must(p.CutReplication()) // or B would be told, and go on at once
	p.state(p.B, g.Name, "orphaned")
	p.killQEMU(p.A, g.Name)
	dead := time.Now()
	<-time.After(time.Until(dead.Add(outage)))
	_, err := p.B.Ctl(p.step(), "activate", g.Name)
	p.must(err)
	after := p.guestTime()
	p.state(p.B, g.Name, "active")

	passed := after.clock - before.clock
	if most := after.told.Sub(before.asked); passed > most {
		p.t.Errorf("the guest's clock went on by %v within %v", passed, most)
	}
	if lost := after.asked.Sub(before.told) - passed; lost > outage/2 {
		p.t.Errorf("the guest's clock lost %v of the %v in which nobody ran it", lost, outage)
	}
	p.must(p.HealReplication())
	p.turn()
}
