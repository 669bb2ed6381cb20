package web

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/watch"
)

// feed is a host that somebody else plays: an hour of the life of some domains, as a
// daemon would tell it.
type feed struct {
	watch *watch.Host

	mu     sync.Mutex
	status []control.Status
	events []control.Event
}

func (f *feed) options(listen string) Options {
	return Options{Listen: listen, Names: []string{"hostA"}, Watch: f.watch,
		Facts: func() Facts {
			return Facts{Version: control.Version{Version: "1.0.0", Go: "go1.25", Host: "hostA"},
				Memory:       MemoryFacts{Known: true, RoomBytes: 21 << 30, PromisedBytes: 4 << 30, AvailableBytes: 30 << 30, Standbys: 2},
				Certificates: []Certificate{{"server", time.Unix(1_900_000_000, 0)}, {"ca", time.Unix(2_000_000_000, 0)}, {Use: "client"}}}
		},
		Events: func(int) []control.Event {
			f.mu.Lock()
			defer f.mu.Unlock()
			return append([]control.Event{}, f.events...)
		},
		Status: func() []control.Status {
			f.mu.Lock()
			defer f.mu.Unlock()
			return append([]control.Status{}, f.status...)
		}}
}

// set replaces what is there, with the history before it.
func (f *feed) set(now time.Time, all ...control.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = all
	f.watch.Sample(now, all)
}

// newFeed tells of so many domains: in turn a busy primary, a standby, one that is
// being copied, and a stalled one.
func newFeed(now time.Time, domains int) *feed {
	f := &feed{watch: watch.New()}
	var all []control.Status
	for n := range domains {
		st := statusOf(n, now)
		f.past(st, n, now)
		all = append(all, st)
	}
	f.set(now, all...)
	for i, text := range []string{"primary syncing", "primary protected", "output waits for 1.2 s: the backup or the connection to it is slow, or gone", "the guest's output flows again"} {
		kind := []string{control.EventState, control.EventState, control.EventStalled, control.EventFlowing}[i]
		state := []string{control.StateSyncing, control.StateProtected, "", ""}[i]
		f.events = append(f.events, control.Event{At: now.Add(time.Duration(i-40) * time.Minute), Domain: name(0), UUID: uuid(0), Kind: kind, Role: control.RolePrimary, State: state, Text: text})
	}
	return f
}

func name(n int) string {
	return []string{"web1", "db-standby", "mail", "queue"}[n%4] + []string{"", fmt.Sprint("-", n)}[min(n/4, 1)]
}
func uuid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func statusOf(n int, now time.Time) control.Status {
	st := control.Status{Domain: name(n), UUID: uuid(n), Role: control.RolePrimary, State: control.StateProtected, Peer: "hostB", Generation: 3, Arbiter: "etcd",
		Since: now.Add(-39 * time.Minute), Epoch: control.EpochStatus{Captured: 9000, Acked: 8999, Committed: 8998}, EpochMs: 21,
		Pause: control.PauseStatus{P50Ms: 4.1, P99Ms: 7.9, LastMs: 4}, BytesSent: 9 << 30, RateBps: 31 << 20, LastCommitAgeMs: 14, MemoryBytes: 4 << 30,
		Output: &control.OutputStatus{Mode: control.OutputHolding, HeldFrames: 12, HeldBytes: 9000, OldestMs: 6.2, ReleasedFrames: 1e6, InputsLogged: 5e5, LeaseMs: 400},
		Clock:  control.ClockStatus{State: control.ClockCorrected, DriftUs: 130, ErrUs: .2, Peer: &control.PeerClock{AheadUs: 12, ErrUs: 90}}, Throttle: control.ThrottleStatus{Reason: "output waits, so the next checkpoint begins at once"}}
	switch n % 4 {
	case 1:
		st.Role, st.State, st.Output, st.RateBps, st.Pause, st.Throttle = control.RoleBackup, control.StateStandby, nil, 0, control.PauseStatus{}, control.ThrottleStatus{}
		st.Since, st.EpochMs, st.Clock = now.Add(-3*time.Hour), 0, control.ClockStatus{}
	case 2:
		st.State, st.Sync, st.Since = control.StateSyncing, &control.SyncStatus{DoneBytes: 3 << 30, TotalBytes: 4 << 30, RateBps: 300 << 20, EtaS: 4}, now.Add(-10*time.Second)
		st.Output, st.Pause = nil, control.PauseStatus{}
	case 3:
		st.Output.Stalled = "epoch 9000 is not acknowledged, output waits for 1.6 s: the backup or the connection to it is slow, or gone"
		st.Output.OldestMs, st.LastCommitAgeMs = 1600, 1630
		st.Warnings = []string{"QEMU emulates all of the guest's clocks: they stand still in pauses"}
	}
	return st
}

// past is the hour before now: load that comes and goes, and a failover of web1.
func (f *feed) past(st control.Status, n int, now time.Time) {
	r := f.watch.Recorder(st.UUID, st.Domain)
	random := rand.New(rand.NewPCG(uint64(n), 7))
	epochs := 4 // in a second, of the real thing's fifty
	for s := -3599; s < 0; s++ {
		at := now.Add(time.Duration(s) * time.Second)
		is := st
		switch {
		case n%4 == 0 && s < -45*60:
			is.Role, is.State, is.Output = control.RoleBackup, control.StateStandby, nil
		case n%4 == 0 && s < -40*60:
			is.Role, is.State, is.Output = control.RoleBackup, "active", nil
		case n%4 == 0 && s < -39*60:
			is.State, is.Output = control.StateSyncing, nil
		case n%4 == 2 && s < -10:
			continue
		}
		load := 1 + .6*math.Sin(float64(s)/400+float64(n)) + .35*math.Sin(float64(s)/37) + .2*random.Float64()
		if is.Output != nil {
			out := *is.Output
			out.OldestMs = 5 * load
			is.Output = &out
		}
		r.Sample(at, is)
		if is.Role != control.RolePrimary || is.State != control.StateProtected {
			continue
		}
		for e := range epochs {
			pause := 2.2 + 1.8*load + random.ExpFloat64()*.6
			r.Observe(control.Epoch{Epoch: uint64((s+3600)*epochs + e), Generation: 3, At: at.Add(time.Duration(e) * time.Second / time.Duration(epochs)), IntervalMs: 21, PausedMs: pause,
				Phases: control.Phases{StopMs: .8, GateMs: .1, ScanMs: .3, CopyMs: pause / 3, ClockMs: .1, DeviceMs: pause / 3}, LivePages: int(900 * load), PausePages: int(300 * load),
				SentPages: 900, SentBytes: uint64(3e6 * load), DeviceBytes: 60000, ShipMs: pause + 2, AckMs: pause + 3 + random.ExpFloat64()})
		}
	}
}
