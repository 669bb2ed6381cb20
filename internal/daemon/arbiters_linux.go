package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/arbiter"
	"github.com/virt-ft/virt-ft/internal/config"
)

// claimTimeout bounds one call of an arbiter, and votedTimeout one that may have to
// ask several members of a cluster, or that leaves a part of its time to others.
const (
	claimTimeout = 3 * time.Second
	votedTimeout = 6 * time.Second
)

// askMax bounds one call of a.
func askMax(a arbiter.Arbiter) time.Duration {
	if n := a.Name(); n == config.ArbiterFile || n == config.ArbiterManual {
		return claimTimeout
	}
	return votedTimeout
}

// arbiterFor opens the arbiter of a protection. identity, if not empty, must
// be that of the one we see: else the two hosts would ask two arbiters.
func (d *Daemon) arbiterFor(ctx context.Context, kind, identity string) (arbiter.Arbiter, error) {
	d.arbMu.Lock()
	a, o := d.arbiters[kind], d.opening[kind]
	if a == nil && o == nil {
		o = &opening{done: make(chan struct{})}
		d.opening[kind] = o
		go d.open(o, kind, identity)
	}
	d.arbMu.Unlock()
	if a == nil {
		select {
		case <-o.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("arbiter %s is still being opened: %w", kind, ctx.Err())
		}
		if o.err != nil {
			return nil, o.err
		}
		a = o.a
	}
	if got := identityOf(a); identity != "" && got != identity {
		return nil, fmt.Errorf("arbiter %s of host %s is not the one this protection uses: the same directory, or the same etcd cluster and prefix, must be seen from both hosts", kind, d.cfg.Host)
	}
	return a, nil
}

// opening is an arbiter that is being opened, for all who wait for it.
type opening struct {
	done chan struct{}
	a    arbiter.Arbiter
	err  error
}

// open goes on when who asked first has gone: the next one finds it done.
func (d *Daemon) open(o *opening, kind, identity string) {
	defer close(o.done)
	o.a, o.err = d.openArbiter(d.ctx, kind, identity)
	d.arbMu.Lock()
	defer d.arbMu.Unlock()
	delete(d.opening, kind)
	if o.err == nil && d.ctx.Err() != nil {
		o.err = errors.Join(d.ctx.Err(), closeArbiters(o.a))
	}
	if o.err == nil {
		d.arbiters[kind] = o.a
	}
}

// openArbiter opens what kind names: one arbiter, or some in order, joined by "+".
func (d *Daemon) openArbiter(ctx context.Context, kind, identity string) (arbiter.Arbiter, error) {
	if kind == "" {
		return nil, errors.New("no arbiter is configured: choose who decides when a host is lost, with --arbiter file (shared directory), etcd, fence or manual (you, by virt-ft activate), or set arbiter.kind")
	}
	ctx, cancel := context.WithTimeout(ctx, votedTimeout)
	defer cancel()
	// A chain's identity is its name, and that of what votes in it.
	_, voter, chained := strings.Cut(identity, "=")
	if !chained {
		voter = identity
	}
	var all []arbiter.Arbiter
	for _, name := range strings.Split(kind, config.ArbiterThen) {
		a, err := d.openOne(ctx, name, voter)
		if err != nil {
			return nil, errors.Join(err, closeArbiters(all...))
		}
		all = append(all, a)
	}
	a, err := arbiter.OpenChain(all...)
	if err != nil {
		return nil, errors.Join(err, closeArbiters(all...))
	}
	return a, nil
}

func (d *Daemon) openOne(ctx context.Context, name, identity string) (arbiter.Arbiter, error) {
	c := d.cfg.Arbiter
	switch name {
	case config.ArbiterFile:
		if c.Dir == "" {
			return nil, fmt.Errorf("arbiter \"file\" needs a directory on storage that both hosts share: set arbiter.dir on host %s", d.cfg.Host)
		}
		return arbiter.OpenFile(ctx, c.Dir, arbiter.FileOptions{Identity: identity})
	case config.ArbiterManual:
		return arbiter.OpenManual(ctx, filepath.Join(d.cfg.StateDir, "grants"))
	case config.ArbiterEtcd:
		if len(c.Etcd.Endpoints) == 0 {
			return nil, fmt.Errorf("arbiter \"etcd\" needs a cluster of three machines or more: set arbiter.etcd.endpoints on host %s", d.cfg.Host)
		}
		return arbiter.OpenEtcd(ctx, arbiter.EtcdOptions{Endpoints: c.Etcd.Endpoints, CAFile: c.Etcd.CAFile, CertFile: c.Etcd.CertFile, KeyFile: c.Etcd.KeyFile,
			Username: c.Etcd.Username, PasswordFile: c.Etcd.PasswordFile, Prefix: c.Etcd.Prefix, Identity: identity, Timeout: c.Etcd.Timeout})
	case config.ArbiterFence:
		if c.Fence.Agent == "" || c.Fence.Plug == "" {
			return nil, fmt.Errorf("arbiter \"fence\" needs a fence agent and the peer's plug: set arbiter.fence.agent and arbiter.fence.plug on host %s", d.cfg.Host)
		}
		return arbiter.OpenFence(ctx, arbiter.FenceOptions{Agent: c.Fence.Agent, Plug: c.Fence.Plug, Options: c.Fence.Options, NoVerify: c.Fence.NoVerify,
			Timeout: c.Fence.Timeout, Delay: c.Fence.Delay, Dir: filepath.Join(d.cfg.StateDir, "fence"), Logger: d.log})
	}
	return nil, fmt.Errorf("arbiter %q is not known here", name)
}

// closeArbiters closes those that have something to close.
func closeArbiters(as ...arbiter.Arbiter) error {
	var errs []error
	for _, a := range as {
		if c, ok := a.(interface{ Close() error }); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// closeAllArbiters closes what was opened, when nobody asks any more.
func (d *Daemon) closeAllArbiters() {
	d.arbMu.Lock()
	defer d.arbMu.Unlock()
	for kind, a := range d.arbiters {
		if err := closeArbiters(a); err != nil {
			d.log.Warn("an arbiter did not close cleanly", "kind", kind, "err", err)
		}
		delete(d.arbiters, kind)
	}
}

func identityOf(a arbiter.Arbiter) string {
	if i, ok := a.(interface{ Identity() string }); ok {
		return i.Identity()
	}
	return ""
}
