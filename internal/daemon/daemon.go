// Package daemon is virt-ft's process on a host: it wires libvirt, capture,
// the wire, the arbiter and the machines of pkg/ftengine together. It is the
// only package that knows all of them.
//
// A protection is a runner: a primary on the host where the guest lives, a
// backup on the other. A runner owns one state machine and performs what it
// asks for; everything slow happens on goroutines that report by events.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/cpulayout"
	"github.com/virt-ft/virt-ft/internal/hookd"
	"github.com/virt-ft/virt-ft/internal/hostmem"
	"github.com/virt-ft/virt-ft/internal/marker"
	"github.com/virt-ft/virt-ft/internal/nbd"
	"github.com/virt-ft/virt-ft/internal/netgate"
	"github.com/virt-ft/virt-ft/internal/ptracer"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
	"github.com/virt-ft/virt-ft/internal/watch"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
)

// Early is to be called first in main: it takes over when this process was
// started as a helper of a daemon.
func Early() {
	ptracer.MaybeInject()
	nbd.MaybeGuard()
	virt.MaybeWake()
}

// Daemon protects domains of this host and stands by for others. New makes
// it, Run runs it.
type Daemon struct {
	cfg     config.Config
	log     *slog.Logger
	store   *marker.Store
	disks   *marker.Disks
	looking atomic.Int32 // looks of checks that have not returned
	guard   *nbd.Guard   // nil where it could not be started
	pool    stagePool
	// memory is what standbys were promised; starts and rehearsals are turns of what takes a core for seconds.
	memory             *hostmem.Ledger
	starts, rehearsals turns

	diskSessions atomic.Uint64 // sessions with disks so far: names of sockets

	ctx    context.Context // ends when the daemon stops
	cancel context.CancelFunc
	virt   *virt.Conn

	mu        sync.Mutex
	primaries map[string]*primary // by domain UUID
	backups   map[string]*backup
	arbiters  map[string]arbiter.Arbiter
	recovered bool            // what an earlier daemon left was looked at
	untaken   map[string]bool // UUIDs of what could not be taken up yet
	lostOnes  map[string]bool // UUIDs of guests that ended unseen, and may go on elsewhere
	settling  sync.Mutex      // one lost guest is settled at a time
	starting  map[string]int  // by UUID: standbys that we are making
	hub       hub
	arbMu     sync.Mutex // guards arbiters and opening
	opening   map[string]*opening
	layouts   cpulayout.Cache
	tscKHz    func() uint32 // of this host; measured once
	watch     *watch.Host
}

// New returns a daemon for cfg; it touches nothing yet.
func New(cfg config.Config, log *slog.Logger) (*Daemon, error) {
	if cfg.Host == "" {
		return nil, errors.New("config: host is empty")
	}
	return &Daemon{watch: watch.New(), memory: hostmem.New(hostmem.Options{}), starts: newTurns(), rehearsals: newTurns(), cfg: cfg, log: log, primaries: map[string]*primary{}, backups: map[string]*backup{}, arbiters: map[string]arbiter.Arbiter{}, opening: map[string]*opening{}, untaken: map[string]bool{}, lostOnes: map[string]bool{}, starting: map[string]int{}, tscKHz: sync.OnceValue(kvmclock.MeasureTSCkHz)}, nil
}

const (
	// takeOverStopMax bounds how long a daemon that is to stop waits for take-overs. It
	// is less than the unit's TimeoutStopSec.
	takeOverStopMax = 20 * time.Second
	// resumeStopMax bounds it for guests that the next daemon can go on with: it may come
	// late, or never, and they stand still until then.
	resumeStopMax = 5 * time.Second
)

// Run serves until ctx ends, and the take-overs that are under way; it tells systemd when commands are answered. Guests go on running
// when Run returns: a protected one without protection, until a daemon finds its marker.
func (d *Daemon) Run(ctx context.Context) error {
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer d.cancel()
	defer context.AfterFunc(ctx, d.windDown)()
	if err := beNice(d.cfg.Nice); err != nil {
		d.log.Warn("this daemon runs as slowly as others: set nice = 0, or give it CAP_SYS_NICE", "err", err)
	}
	if err := os.MkdirAll(d.cfg.RunDir, 0o755); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	var err error
	if d.store, err = marker.Open(d.cfg.StateDir); err != nil {
		return err
	}
	if d.disks, err = marker.OpenDisks(d.cfg.StateDir); err != nil {
		return err
	}
	// Should this process be frozen, no guest's disk is to hang for that.
	if d.guard, err = nbd.StartGuard(d.ctx, d.cfg.Disks.StallMax, d.log); err != nil {
		d.log.Error("guests with disks would hang if this daemon were stopped: its guard does not start", "err", err)
	} else {
		defer d.guard.Close()
	}
	if err := netgate.MountPins(filepath.Join(d.cfg.RunDir, "bpf")); err != nil {
		d.log.Error("no guest can be protected from this host, only to it", "err", err)
	}
	if d.virt, err = virt.Open(d.ctx, d.cfg.LibvirtURI, d.log); err != nil {
		return fmt.Errorf("libvirt at %s: %w", d.cfg.LibvirtURI, err)
	}
	defer d.virt.Close()
	srv := control.NewServer(d, control.ServerOptions{Socket: d.cfg.Control.Socket, Group: d.cfg.Control.Group, Log: d.log})
	if err := srv.Open(); err != nil {
		return err
	}
	defer srv.Close()
	if hooks, err := hookd.Listen(filepath.Join(d.cfg.RunDir, hookd.SocketName), hookHandler{d}, d.log); err != nil {
		d.log.Error("libvirt's hook cannot ask: it refuses to start what a standby may be running", "err", err)
	} else {
		defer hooks.Close()
	}
	ln, err := replica.Listen(d.ctx, d.cfg.Listen, replica.ListenerOptions{Transport: d.transport(), Admit: d.admit, Answer: d.answerQuestion, Refused: d.watch.Refused, Logger: d.log})
	if err != nil {
		return err
	}
	defer ln.Close()
	d.warnOfTransport()
	d.recover()
	var wg sync.WaitGroup
	wg.Go(func() { d.tscKHz() }) // before it is in anybody's way
	wg.Go(func() { d.acceptSessions(ln) })
	wg.Go(d.watchAll)
	wg.Go(d.serveWeb)
	failed := make(chan error, 1)
	wg.Go(func() { failed <- srv.Serve(d.ctx) })
	if err := control.Notify("READY=1"); err != nil {
		d.log.Warn("systemd could not be told that we are ready", "err", err)
	}
	d.log.Info("ready", "host", d.cfg.Host, "listen", ln.Addr(), "libvirt", d.cfg.LibvirtURI)
	select {
	case <-d.ctx.Done():
	case err = <-failed:
	}
	d.cancel()
	wg.Wait()
	d.stopAll()
	d.closeAllArbiters()
	return err
}

// windDown ends the daemon, but first waits for guests that are on their way to go on
// here: until a standby holds one, what this process holds of it is all that there is.
func (d *Daemon) windDown() {
	defer d.cancel()
	ctx, cancel := context.WithTimeout(d.ctx, takeOverStopMax)
	defer cancel()
	var since time.Time // all are held
	for told := false; ctx.Err() == nil; told = true {
		held, all := d.takeOvers()
		switch {
		case len(all) == 0:
			return
		case held < len(all):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > resumeStopMax:
			return
		}
		if !told {
			d.log.Warn("this daemon stops when they run here, or a standby holds them", "domains", all, "atMost", takeOverStopMax)
		}
		afterOrDone(ctx, awayPoll)
	}
}

// takeOvers are the names of the guests that this host is taking over, and how many of
// them are held by a standby, so that the next daemon could go on with them.
func (d *Daemon) takeOvers() (held int, names []string) {
	d.mu.Lock()
	backups := slices.Collect(maps.Values(d.backups))
	d.mu.Unlock()
	for _, b := range backups {
		if !b.takesOver() {
			continue
		}
		names = append(names, b.name)
		if b.loaded.Load() {
			held++
		}
	}
	return held, names
}

func (d *Daemon) stopAll() {
	for _, r := range d.runners() {
		r.stop()
	}
}

// runners returns the runners of both roles.
func (d *Daemon) runners() []*base {
	d.mu.Lock()
	defer d.mu.Unlock()
	var rs []*base
	for _, p := range d.primaries {
		rs = append(rs, &p.base)
	}
	for _, b := range d.backups {
		rs = append(rs, &b.base)
	}
	return rs
}

// ended forgets a runner whose machine ended, unless another took its place.
func (d *Daemon) ended(uuid string, b *base) {
	d.mu.Lock()
	if p := d.primaries[uuid]; p != nil && &p.base == b {
		delete(d.primaries, uuid)
	}
	if k := d.backups[uuid]; k != nil && &k.base == b {
		delete(d.backups, uuid)
	}
	d.mu.Unlock()
	b.tell(control.EventEnded, "the protection ended here")
}

func (d *Daemon) limits() ftengine.Limits {
	l := ftengine.DefaultLimits()
	l.InFlight = d.cfg.Epoch.InFlight
	l.Detect = d.cfg.Heartbeat.Limit
	l.Grace = d.cfg.Heartbeat.DaemonGrace
	return l
}

// heartbeat returns the options of a session's heartbeats: both sides use what
// the Welcome says, because leases of different lengths prove nothing.
func heartbeat(w *replica.Welcome, stamp func() replica.Stamp, exchanged func(sent, came, answered, back int64)) replica.MonitorOptions {
	return replica.MonitorOptions{Period: time.Duration(w.HeartbeatPeriodNs), Limit: time.Duration(w.SilenceLimitNs), Stamp: stamp, Now: replica.Boottime, Exchanged: exchanged}
}

func (d *Daemon) transport() replica.Transport {
	t := d.cfg.Transport
	peers := map[string]string{}
	for name := range d.cfg.Peers {
		if host, _, err := net.SplitHostPort(d.cfg.PeerAddress(name)); err == nil { // as validate has seen
			peers[name] = host
		}
	}
	return replica.Transport{Mode: t.Mode, Pages: t.Pages, CACert: t.CA, ServerCert: t.ServerCert, ServerKey: t.ServerKey, ClientCert: t.ClientCert, ClientKey: t.ClientKey,
		AllowedNames: t.AllowedNames, Peers: peers}
}

func busy(why string) *replica.Refuse {
	return &replica.Refuse{Code: replica.CodeBusy, Reason: why, Remedy: "wait for its end"}
}

// admit decides whether a primary may talk to us about a domain.
func (d *Daemon) admit(ctx context.Context, peer replica.Peer, hello *replica.Hello) (*replica.Welcome, *replica.Refuse) {
	uuid := hello.Domain.String()
	w := &replica.Welcome{State: replica.BackupNone, Host: d.cfg.Host, Software: d.Version().Version,
		HeartbeatPeriodNs: d.cfg.Heartbeat.Period.Nanoseconds(), SilenceLimitNs: d.cfg.Heartbeat.Limit.Nanoseconds()}
	if hello.Role != replica.RolePrimary && hello.Role != replica.RoleAsking {
		return nil, &replica.Refuse{Code: replica.CodeProtocol, Reason: "only a primary dials"}
	}
	d.mu.Lock()
	b, p, wait := d.backups[uuid], d.primaries[uuid], !d.recovered || d.untaken[uuid]
	d.mu.Unlock()
	switch {
	case wait:
		// A copy of the guest may be here whose fate is not known yet.
		return nil, busy("what an earlier daemon of this host left is being looked at")
	case hello.Role == replica.RoleAsking:
		return d.answerPeer(ctx, uuid, p, b, w)
	case p != nil:
		return d.admitBeside(ctx, p, peer, w)
	}
	if refusal := d.mayBring(b, hello); refusal != nil {
		return w, refusal
	}
	if b == nil || b.idle() {
		if gen := d.ranUnder(uuid); gen > peer.Generation {
			// Nobody watches over it here any more, but that copy is of the past.
			w.State, w.Generation = replica.BackupActive, gen
			return w, nil
		}
	}
	if b == nil {
		return w, d.mayStandBy(ctx, uuid)
	}
	b.holdMu.Lock()
	defer b.holdMu.Unlock()
	switch {
	case b.runs && peer.Generation < uint64(b.holds):
		// The listener refuses it, and tells it by this who runs.
		w.State, w.Generation = replica.BackupActive, uint64(b.holds)
	case !b.accept(ftengine.Generation(peer.Generation)):
		return nil, busy("a take-over is under way here, or has been")
	}
	return w, nil
}

// ranUnder is the generation under which the guest ran here last, or 0.
func (d *Daemon) ranUnder(uuid string) uint64 {
	m, err := d.store.Get(uuid)
	if err != nil {
		return 0
	}
	return m.RanUnder()
}

// mayStandBy refuses to begin with a guest that runs here: a primary that is told that
// nothing is here of it lets its own copy be heard. While libvirtd is away nobody knows,
// and no standby can be made either.
func (d *Daemon) mayStandBy(ctx context.Context, uuid string) *replica.Refuse {
	dom, err := d.virt.Lookup(ctx, uuid)
	if err != nil {
		return nil
	}
	if st, err := dom.State(ctx); err == nil && st.Status == virt.Running {
		return busy(fmt.Sprintf("%s runs here", dom.Name()))
	}
	return nil
}

// admitBeside answers a primary of a guest that is protected from here, too.
// One of the two copies is to end: the arbiter knows which.
func (d *Daemon) admitBeside(ctx context.Context, p *primary, peer replica.Peer, w *replica.Welcome) (*replica.Welcome, *replica.Refuse) {
	if peer.Generation == p.generation() {
		return nil, &replica.Refuse{Code: replica.CodePolicy, Reason: fmt.Sprintf("%s is protected from here to %s", p.name, p.peerAddr),
			Remedy: "unprotect it on one of the hosts"}
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	r, err := p.arb.Inspect(ctx, p.uuid)
	if err == nil && r.Host == d.cfg.Host && r.Step == arbiter.StepRunning && r.Generation > peer.Generation {
		w.State, w.Generation = replica.BackupActive, r.Generation
		return w, nil // refused by the listener
	}
	return nil, busy(fmt.Sprintf("%s is protected from here to %s under another generation", p.name, p.peerAddr))
}

func (d *Daemon) acceptSessions(ln *replica.Listener) {
	for {
		s, err := ln.Accept(d.ctx)
		if err != nil {
			return
		}
		if b := d.backupFor(s); b != nil {
			b.serve(s)
		} else {
			s.Close()
		}
	}
}

// backupFor returns the runner for a session, making one if there is none; nil
// when the guest came to be protected from here, or is another host's, since the
// session was let in.
func (d *Daemon) backupFor(s *replica.Session) *backup {
	uuid := s.Hello.Domain.String()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.primaries[uuid] != nil {
		return nil
	}
	if b := d.backups[uuid]; b != nil {
		if d.mayBring(b, s.Hello) != nil {
			return nil // another host was faster
		}
		b.mu.Lock()
		b.mark.Generation, b.mark.Protection, b.mark.PeerName = s.PeerGeneration, s.Protection().String(), s.Hello.Host
		b.mu.Unlock()
		return b
	}
	if len(d.backups) >= backupsMax { // they were let in at the same time
		return nil
	}
	m := marker.Marker{Domain: s.Hello.DomainName, UUID: uuid, Role: marker.RoleBackup, Phase: marker.PhaseSyncing, Protection: s.Protection().String(),
		Generation: s.PeerGeneration, PeerName: s.Hello.Host}
	d.dropNamesakes(m)
	delete(d.lostOnes, uuid) // its new life counts
	b := newBackup(d, m, nil)
	d.backups[uuid] = b
	b.start()
	return b
}

// dropNamesakes ends what waits here for the primary of another guest of m's
// name: that guest is gone, for libvirt lets no two of one name be on a host. d.mu is held.
func (d *Daemon) dropNamesakes(m marker.Marker) {
	for uuid, b := range d.backups {
		if uuid != m.UUID && b.name == m.Domain && b.idle() && !b.connected() {
			go b.post(ftengine.StandDown{Reason: "another guest of this name is protected"})
		}
	}
}

func verdictOf(v arbiter.Verdict, err error) ftengine.Verdict {
	switch {
	case errors.Is(err, arbiter.ErrOperator):
		return ftengine.NeedOperator
	case err != nil:
		return ftengine.Unknown
	case v.Won:
		return ftengine.Won
	}
	return ftengine.Lost
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
