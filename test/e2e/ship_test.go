package e2e

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// shipConfig spreads pages over three connections, packs them, and soon slows a
// guest down that is too fast for them.
const shipConfig = `
transport.streams = 3
transport.compress = "on"
[epoch]
idle = "40ms"
ack_max = "120ms"
throttle_max = 0.9
`

// slowLink protects a guest over a link that carries a fraction of what the
// guest writes: it is slowed down, visibly, and goes on; epochs still come; when
// the link is well again it is let go; and when its host dies all is there.
func slowLink(p *pair, g *lab.Guest) {
	p.configured(shipConfig)
	p.protect(p.A, g.Name)
	s := p.state(p.A, g.Name, "protected")
	if s.Ship.Streams != 3 {
		p.t.Errorf("%d connections carry pages, want 3", s.Ship.Streams)
	}
	_, err := p.Command(p.step(), "dirty 8000")
	p.must(err)

	p.must(p.SlowReplication(p.B, 12<<20))
	slowed := func() (lab.Protection, error) {
		ps, err := p.A.Poll(p.step(), g.Name)
		if err != nil {
			return lab.Protection{}, err
		}
		return ps[0], nil
	}
	p.eventually("the guest is not slowed down", func() error {
		s, err := slowed()
		if err == nil && s.Throttle.Share == 0 {
			err = fmt.Errorf("its pace: %q", s.Throttle.Reason)
		}
		return err
	})
	p.tickFrom(p.A) // and yet it goes on, and is heard
	before, err := slowed()
	p.must(err)
	p.eventually("no epoch is acknowledged any more", func() error {
		s, err := slowed()
		if err == nil && s.Epoch.Acked < before.Epoch.Acked+5 {
			err = fmt.Errorf("%d epochs, then %d", before.Epoch.Acked, s.Epoch.Acked)
		}
		return err
	})

	p.must(p.HealReplication())
	_, err = p.Command(p.step(), "dirty 2000")
	p.must(err)
	p.eventually("the guest is not let go", func() error {
		s, err := slowed()
		if err == nil && s.Throttle.Share != 0 {
			err = fmt.Errorf("slowed down by %.3f: %q", s.Throttle.Share, s.Throttle.Reason)
		}
		return err
	})
	s, err = slowed()
	p.must(err)
	if !s.Ship.Packed || s.Ship.SamePages == 0 || s.Ship.ZeroPages == 0 {
		p.t.Errorf("nothing was packed or left out: %+v", s.Ship)
	}
	p.checkEpochs(g.Name)

	p.killQEMU(p.A, g.Name)
	p.state(p.B, g.Name, "active")
	p.turn()
	p.configured(failoverSettings())
}

// checkEpochs looks at what virt-ft epochs says of a domain on host A.
func (p *pair) checkEpochs(domain string) {
	p.t.Helper()
	out, err := p.A.Ctl(p.step(), "epochs", domain, "-n", "30", "-o", "json")
	p.must(err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 30 {
		p.t.Errorf("%d epochs are shown, want 30", len(lines))
	}
	last := uint64(0)
	for _, line := range lines {
		var e struct {
			Epoch     uint64  `json:"epoch"`
			PausedMs  float64 `json:"paused_ms"`
			StopMs    float64 `json:"stop_ms"`
			ScanMs    float64 `json:"scan_ms"`
			DeviceMs  float64 `json:"device_ms"`
			SentBytes uint64  `json:"sent_bytes"`
			AckMs     float64 `json:"ack_ms"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			p.t.Fatalf("%q: %v", line, err)
		}
		if last != 0 && e.Epoch != last+1 || e.PausedMs <= 0 || e.StopMs <= 0 || e.ScanMs <= 0 || e.DeviceMs <= 0 || e.SentBytes == 0 || e.AckMs < e.ScanMs {
			p.t.Errorf("after epoch %d: %s", last, line)
		}
		last = e.Epoch
	}
}
