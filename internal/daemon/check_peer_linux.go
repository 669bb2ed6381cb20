package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

// peerReachable is the id of what says that the peer's daemon did not answer.
const peerReachable = "peer.reachable"

const (
	// Round trips are made until there are as many, or it took as long.
	echoesMax, echoesFor = 200, 400 * time.Millisecond
	// What fillFor and fillBytesMax bound is sent to see what the link carries;
	// a tenth of it while guests of this host are protected over it.
	fillFor, fillBytesMax = 800 * time.Millisecond, 256 << 20
	fillShareBusy         = 10
	// clockOffMax is how far two hosts' clocks may differ before it is worth a word.
	clockOffMax = 100 * time.Millisecond
	// peerFindingsMax and peerTextMax bound what a peer may make us show.
	peerFindingsMax, peerTextMax = 256, 2 << 10
)

// peerQuestion is what the peer is asked. Fields that it does not know, it leaves
// aside; those that it misses are not looked at there.
type peerQuestion struct {
	Arbiter         string      `json:"arbiter,omitempty"` // kind
	ArbiterIdentity string      `json:"arbiter_identity,omitempty"`
	Guest           *peerNeeds  `json:"guest,omitempty"`
	PatienceNs      int64       `json:"patience_ns,omitempty"`
	Versions        hostVersion `json:"versions"`
}

// hostVersion is what runs on a host.
type hostVersion struct {
	Kernel  string `json:"kernel,omitempty"`
	Libvirt string `json:"libvirt,omitempty"`
	QEMU    string `json:"qemu,omitempty"`
}

// peerAnswer is what it answers.
type peerAnswer struct {
	Host     string            `json:"host"`
	Software string            `json:"software"`
	Versions hostVersion       `json:"versions"`
	Findings []control.Finding `json:"findings"`
}

// peerLook says how a peer is looked at.
type peerLook struct {
	patience           time.Duration
	measure, bandwidth bool
}

// linkFacts is what was measured on the way to a peer.
type linkFacts struct {
	rtts         []time.Duration // sorted
	bandwidthBps float64
	ahead, err   time.Duration
	compared     bool
}

func (l *linkFacts) quantile(q float64) time.Duration {
	if len(l.rtts) == 0 {
		return 0
	}
	return l.rtts[min(int(q*float64(len(l.rtts))), len(l.rtts)-1)]
}

func (l *linkFacts) report() *control.LinkReport {
	r := &control.LinkReport{RTTP50Us: micros(l.quantile(0.5).Nanoseconds()), RTTP99Us: micros(l.quantile(0.99).Nanoseconds()), BandwidthBps: l.bandwidthBps}
	if l.compared {
		r.Clock = &control.PeerClock{AheadUs: micros(l.ahead.Nanoseconds()), ErrUs: micros(l.err.Nanoseconds())}
	}
	return r
}

// checkPeer asks the daemon at addr whether that host can take guest g (nil: any),
// and measures the way there.
func (d *Daemon) checkPeer(ctx context.Context, addr string, g *guest, how peerLook) ([]control.Finding, *linkFacts) {
	ctx, cancel := context.WithTimeout(ctx, how.patience)
	defer cancel()
	id, name := randomUUID(), ""
	if g != nil {
		id, name = g.dom.UUID(), g.dom.Name()
	}
	asker, err := d.askerOf(ctx, addr, id, name)
	if errors.Is(err, replica.ErrNoAnswers) {
		w := asker.Welcome
		return append(d.judgeWelcome(w, g), okay(peerReachable, "daemon", "%s answers on %s", w.Host, addr), warned("peer.version", "release of virt-ft", "install the same release on both hosts",
			"%s there, %s here: that daemon cannot be asked what its host is like", w.Software, d.Version().Version)), nil
	}
	if err != nil {
		f := failed(peerReachable, "daemon", peerRemedy(err), err)
		f.Text = strings.TrimSuffix(f.Text, ": "+f.Remedy) // such errors say it, too
		return []control.Finding{f}, nil
	}
	defer asker.Close()
	w := asker.Welcome
	fs := []control.Finding{okay(peerReachable, "daemon", "%s answers on %s", w.Host, addr)}
	fs = append(fs, d.judgeWelcome(w, g)...)
	var link *linkFacts
	dirty := make(chan struct{})
	if how.bandwidth && g != nil && g.err == nil && g.active && !g.protected {
		go func() { defer close(dirty); g.sampleDirty(ctx) }()
	} else {
		close(dirty)
	}
	if how.measure {
		link = &linkFacts{}
		fs = append(fs, d.measureTrips(ctx, asker, link)...)
	}
	fs = append(fs, d.askFindings(ctx, asker, g, how.patience)...)
	if how.bandwidth {
		fs = append(fs, d.measureBandwidth(ctx, asker, link)) // last: a stuck link must not keep the rest from being said
	}
	<-dirty
	return fs, link
}

func (d *Daemon) askerOf(ctx context.Context, addr, uuid, name string) (*replica.Asker, error) {
	id, err := replica.ParseUUID(uuid)
	if err != nil {
		return nil, err
	}
	dialer := replica.Dialer{Transport: d.transport(), HandshakeTimeout: dialTimeout}
	return dialer.Question(ctx, addr, id, replica.Hello{Domain: id, DomainName: name, Host: d.cfg.Host, Software: d.Version().Version})
}

// peerRemedy says what to do about a peer that does not answer.
func peerRemedy(err error) string {
	var refused *replica.RefusedError
	var transport *replica.TransportError
	switch {
	case errors.As(err, &refused):
		return cmp.Or(refused.Remedy, "see the daemon's log there")
	case errors.As(err, &transport) && transport.Remedy != "":
		return transport.Remedy
	case errors.Is(err, replica.ErrMalformed):
		return "set the same transport.mode on both hosts"
	case errors.Is(err, replica.ErrPeerClosed):
		return "start virt-ft's daemon there, and see its log: it may not accept this host's certificate"
	}
	return "is that the right address, is the host up, and does its firewall let the port through?"
}

// judgeWelcome judges what the peer has of the domain.
func (d *Daemon) judgeWelcome(w replica.Welcome, g *guest) []control.Finding {
	switch {
	case g == nil:
		return nil
	case w.State == replica.BackupActive:
		return []control.Finding{failed("peer.domain", "the domain there", "find out with virt-ft status on both hosts which one is right; virsh destroy the other",
			fmt.Errorf("%s runs on %s as well", g.dom.Name(), w.Host))}
	case w.State == replica.BackupStandby:
		return []control.Finding{okay("peer.domain", "the domain there", "%s stands by for it", w.Host)}
	}
	return []control.Finding{okay("peer.domain", "the domain there", "does not run")}
}

// askFindings asks the peer what it finds, and compares versions.
func (d *Daemon) askFindings(ctx context.Context, asker *replica.Asker, g *guest, patience time.Duration) []control.Finding {
	const id, item = "peer.answer", "answers"
	q := peerQuestion{Versions: d.versions(ctx), PatienceNs: (patience * 3 / 4).Nanoseconds()}
	kind := d.cfg.Arbiter.Kind
	if g != nil {
		kind = g.arbiter
		if needs, err := g.peerNeeds(); err == nil {
			q.Guest = needs
		}
	}
	if kind != "" {
		if a, err := d.arbiterFor(ctx, kind, ""); err == nil {
			q.Arbiter, q.ArbiterIdentity = kind, identityOf(a)
		}
	}
	body, err := json.Marshal(q)
	if err != nil {
		return []control.Finding{failed(id, item, "report this", err)}
	}
	body, err = asker.Ask(ctx, body)
	if err != nil {
		return []control.Finding{warned(id, item, "check again; see the daemon's log there", "the peer does not say what it is like: %v", err)}
	}
	var a peerAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return []control.Finding{warned(id, item, "install the same release on both hosts", "the peer's answer cannot be read: %v", err)}
	}
	return append(d.judgeVersions(q.Versions, a), bounded(a.Findings)...)
}

// bounded takes what a peer found, and no more than fits on a screen or two.
func bounded(fs []control.Finding) []control.Finding {
	fs = slices.Clone(fs[:min(len(fs), peerFindingsMax)])
	cut := func(s string) string { return strings.ToValidUTF8(s[:min(len(s), peerTextMax)], "") }
	for i := range fs {
		f := &fs[i]
		if !strings.HasPrefix(f.ID, "peer.") {
			f.ID = "peer.other"
		}
		if f.Level != control.LevelOK && f.Level != control.LevelFail {
			f.Level = control.LevelWarn
		}
		f.ID, f.Item, f.Text, f.Remedy = cut(f.ID), cut(f.Item), cut(f.Text), cut(f.Remedy)
	}
	return fs
}

// judgeVersions compares what is installed on both hosts. A QEMU loads the device state of
// an older one of the same machine type, not of a newer one; updates of one release
// (7.2.19, 7.2.22) load each other's.
func (d *Daemon) judgeVersions(ours hostVersion, a peerAnswer) []control.Finding {
	var fs []control.Finding
	if mine := d.Version().Version; a.Software == mine {
		fs = append(fs, okay("peer.version", "release of virt-ft", "%s on both hosts", mine))
	} else {
		fs = append(fs, warned("peer.version", "release of virt-ft", "install the same release on both hosts", "%s there, %s here", a.Software, mine))
	}
	theirs := a.Versions
	switch {
	case theirs.QEMU == "" || ours.QEMU == "":
		fs = append(fs, warned("peer.qemu", "QEMU", "check again; is libvirtd slow on one of the hosts?", "its version cannot be compared: libvirt did not tell it in time"))
	case sameSeries(theirs.QEMU, ours.QEMU) && older(theirs.QEMU, ours.QEMU):
		// No reason to refuse: one of two hosts is always updated first.
		fs = append(fs, warned("peer.qemu", "QEMU", "update QEMU on both hosts",
			"QEMU %s there, %s here: updates of one release, which keep device state as it is", theirs.QEMU, ours.QEMU))
	case older(theirs.QEMU, ours.QEMU):
		fs = append(fs, failed("peer.qemu", "QEMU", "install the same QEMU on both hosts, or a newer one on the backup", fmt.Errorf(
			"QEMU %s there is older than %s here: it may not load this guest's device state", theirs.QEMU, ours.QEMU)))
	case older(ours.QEMU, theirs.QEMU) && !sameSeries(theirs.QEMU, ours.QEMU):
		fs = append(fs, warned("peer.qemu", "QEMU", "install the same QEMU on both hosts before the guest is to come back",
			"QEMU %s there, %s here: the guest can go there, and may not be able to come back", theirs.QEMU, ours.QEMU))
	case theirs.QEMU != ours.QEMU:
		fs = append(fs, okay("peer.qemu", "QEMU", "%s there, %s here", theirs.QEMU, ours.QEMU))
	default:
		fs = append(fs, okay("peer.qemu", "QEMU", "%s on both hosts", theirs.QEMU))
	}
	f := okay("peer.libvirt", "libvirt", "libvirt %s, Linux %s", theirs.Libvirt, theirs.Kernel)
	if theirs.Libvirt == "" {
		f = warned(f.ID, f.Item, "check again; is libvirtd slow there?", "libvirt did not tell its version in time; Linux %s", theirs.Kernel)
	} else if older(theirs.Libvirt, ours.Libvirt) {
		f = warned(f.ID, f.Item, "install the same libvirt on both hosts", "libvirt %s there is older than %s here: it may not understand the domain's XML", theirs.Libvirt, ours.Libvirt)
	}
	return append(fs, f)
}

// measureTrips makes round trips, which also compare both hosts' clocks.
func (d *Daemon) measureTrips(ctx context.Context, asker *replica.Asker, link *linkFacts) []control.Finding {
	var o kvmclock.Offset
	for end := time.Now().Add(echoesFor); len(link.rtts) < echoesMax && (len(link.rtts) == 0 || time.Now().Before(end)); {
		e, err := asker.Echo(ctx)
		if err != nil {
			return []control.Finding{failed("link.rtt", "round trip", "see the daemon's log there", err)}
		}
		link.rtts = append(link.rtts, e.RoundTrip)
		o.Observe(e.Sent, e.Came, e.Answered, e.Back)
	}
	slices.Sort(link.rtts)
	trip := okay("link.rtt", "round trip", "median %v, p99 %v of %d", brief(link.quantile(0.5)), brief(link.quantile(0.99)), len(link.rtts))
	if p50 := link.quantile(0.5); p50 > d.cfg.Heartbeat.Limit/4 {
		trip.Level, trip.Remedy = control.LevelWarn, "raise heartbeat.limit on both hosts, or bring the hosts nearer to each other: each answer of the guest waits for at least a round trip"
	}
	ns, errNs, known := o.Best(time.Now().UnixNano())
	if !known {
		return []control.Finding{trip}
	}
	link.ahead, link.err, link.compared = time.Duration(ns), time.Duration(errNs), true
	return []control.Finding{trip, judgeClocks(link.ahead, link.err)}
}

func judgeClocks(ahead, err time.Duration) control.Finding {
	const id, item = "link.clock", "clocks of both hosts"
	text := fmt.Sprintf("the peer's is ahead by %v, ± %v", brief(ahead), brief(err))
	if ahead.Abs()-err > clockOffMax {
		return warned(id, item, "run chrony or ntpd on both hosts", "%s: a guest's clock would jump by that at a failover", text)
	}
	return okay(id, item, "%s", text)
}

// measureBandwidth fills the link for a moment.
func (d *Daemon) measureBandwidth(ctx context.Context, asker *replica.Asker, link *linkFacts) control.Finding {
	const id, item = "link.bandwidth", "bandwidth"
	during, most := fillFor, fillBytesMax
	d.mu.Lock()
	busy := len(d.primaries) + len(d.backups)
	d.mu.Unlock()
	if busy > 0 {
		during, most = during/fillShareBusy, most/fillShareBusy
	}
	rate, err := asker.Fill(ctx, during, most)
	if err != nil {
		return warned(id, item, "check again", "could not be measured: %v", err)
	}
	link.bandwidthBps = rate
	text := fmt.Sprintf("%s by transport %s over one connection; %d carry pages", perSecond(rate), d.cfg.Transport.Mode, d.cfg.Transport.Streams)
	if busy > 0 {
		text += ". Measured briefly, not to be in the way of protected guests"
	}
	return okay(id, item, "%s", text)
}

func perSecond(bps float64) string {
	if bps < 10<<20 {
		return fmt.Sprintf("%.2f MiB/s", bps/(1<<20))
	}
	return fmt.Sprintf("%.0f MiB/s", bps/(1<<20))
}

// brief rounds to what matters.
func brief(t time.Duration) time.Duration {
	switch a := t.Abs(); {
	case a >= time.Second:
		return t.Round(10 * time.Millisecond)
	case a >= time.Millisecond:
		return t.Round(10 * time.Microsecond)
	}
	return t.Round(time.Microsecond)
}

// foretell connects what was measured of the link and of the guest.
func (d *Daemon) foretell(g *guest, link *linkFacts) []control.Finding {
	if link.bandwidthBps <= 0 {
		return nil
	}
	var fs []control.Finding
	if r, err := g.ram(); err == nil {
		total := r.bytes
		if disks, err := g.disks(); err == nil {
			for _, disk := range disks {
				total += disk.UsedBytes
			}
		}
		fs = append(fs, okay("domain.sync", "initial sync", "about %v at most for %d MiB of memory and disks", brief(time.Duration(float64(total)/link.bandwidthBps*1e9)), total>>20))
	}
	g.mu.Lock()
	dirty, known := g.dirtyBps, g.dirty
	g.mu.Unlock()
	if !known {
		return fs
	}
	load := dirty / link.bandwidthBps
	if load >= 1 {
		return append(fs, warned("domain.pace", "pace", "use a faster link, more transport.streams, or fewer writes; virt-ft slows the guest down otherwise (epoch.throttle_max)",
			"the guest wrote %s of memory over the last second, and the link carries %s", perSecond(dirty), perSecond(link.bandwidthBps)))
	}
	way := max(time.Duration(float64(link.quantile(0.5))/(1-load)), d.cfg.Epoch.Min)
	return append(fs, okay("domain.pace", "pace", "the guest wrote %s of memory over the last second, and the link carries %s: epochs of about %v, and the pauses",
		perSecond(dirty), perSecond(link.bandwidthBps), brief(way)))
}
