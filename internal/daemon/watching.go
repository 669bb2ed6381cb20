package daemon

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/watch"
)

const (
	// watchPeriod is how often it is noted what the domains are.
	watchPeriod = time.Second
	// caughtUp is how many of the last epochs are looked at again by a watcher that
	// was cut off: not more than watch remembers, which knows them by that.
	caughtUp = 256
	// historyEvents is how many events a history has at most.
	historyEvents = 200
)

// watchAll feeds d.watch until the daemon stops.
func (d *Daemon) watchAll() {
	events := d.hub.subscribe(d.ctx, control.EventQuery{Follow: true})
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	watched := map[*primary]bool{}
	var readers sync.WaitGroup // they end with the daemon's context at the latest
	defer readers.Wait()
	for {
		d.sample(watched, &readers)
		select {
		case e, ok := <-events:
			if !ok && d.ctx.Err() == nil { // we were too slow
				events = d.hub.subscribe(d.ctx, control.EventQuery{Follow: true})
			}
			d.watch.Event(e)
		case <-tick.C:
		case <-d.ctx.Done():
			return
		}
	}
}

// sample notes what all domains are now, and sees to it that the epochs of each are
// watched.
func (d *Daemon) sample(watched map[*primary]bool, readers *sync.WaitGroup) {
	d.mu.Lock()
	primaries := slices.Collect(maps.Values(d.primaries))
	d.mu.Unlock()
	maps.DeleteFunc(watched, func(p *primary, _ bool) bool { return p.ctx.Err() != nil })
	for _, p := range primaries {
		if !watched[p] && p.ctx.Err() == nil {
			watched[p] = true
			r := d.watch.Recorder(p.uuid, p.name)
			readers.Go(func() { p.watchEpochs(r) })
		}
	}
	all, err := d.Status(d.ctx, "")
	if err != nil {
		return // of all domains it does not fail
	}
	d.watch.Sample(time.Now(), all)
}

// watchEpochs takes epochs to r until the runner ends. It is a reader as any other:
// one that is too slow is cut off, and begins again with the last ones.
func (p *primary) watchEpochs(r *watch.Recorder) {
	for last := -1; p.ctx.Err() == nil; last = caughtUp {
		for e := range p.stats.follow(p.ctx, last, true) {
			r.Observe(e)
		}
	}
}

// History implements control.Historian.
func (d *Daemon) History(ctx context.Context, domain string) (control.History, error) {
	r := d.watch.Find(domain)
	if r == nil {
		return control.History{}, d.notProtected(ctx, domain)
	}
	now, v := time.Now(), r.View()
	h := control.History{Domain: v.Domain, UUID: v.UUID, Host: d.cfg.Host, Now: now, SlotSeconds: watch.SlotSeconds, Slots: r.Slots(time.Time{}, now),
		Epochs: r.Epochs(), Events: d.lastEvents(v.UUID, historyEvents), Status: v.Status, Live: v.Live}
	if st, err := d.Status(ctx, v.UUID); err == nil && len(st) == 1 {
		h.Status, h.Live = st[0], true
	}
	var err error
	h.Settings, err = d.settings()
	return h, err
}

// lastEvents returns the last events, of all domains if uuid is empty.
func (d *Daemon) lastEvents(uuid string, n int) []control.Event {
	es := []control.Event{}
	for e := range d.hub.subscribe(d.ctx, control.EventQuery{Domain: uuid, Last: n}) {
		es = append(es, e)
	}
	return es
}

// settings is the configuration in force, in TOML. What fence agents are given may
// be a password, and is left out.
func (d *Daemon) settings() (string, error) {
	c := d.cfg
	c.Arbiter.Fence.Options = map[string]string{}
	for name := range d.cfg.Arbiter.Fence.Options {
		c.Arbiter.Fence.Options[name] = "(not shown)"
	}
	var b bytes.Buffer
	err := toml.NewEncoder(&b).Encode(c)
	return b.String(), err
}
