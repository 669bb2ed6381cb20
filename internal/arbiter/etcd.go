package arbiter

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Etcd arbitrates through an etcd cluster of version 3.4 or later, of three or
// more members on as many machines. Every step of a claim is one key
//
//	PREFIX/DOMAIN/GENERATION-SEQ
//
// which is never changed or removed, as with [File]. A step is decided on one
// snapshot of the domain's records, read at etcd's quorum, and placed by one
// transaction with three conditions: its key does not exist; no key of the
// domain was written since the snapshot; and PREFIX/identity holds the name
// that this arbiter knows. So a step that was decided on an older state, or
// that reaches the cluster late, or another cluster, changes nothing.
//
// No lease is involved, on purpose: a lease ends by itself, because a host was
// frozen or etcd had no leader for a while, and the guest that was started by
// that right would go on regardless. What cannot be taken back must not expire.
//
// A cluster that was restored from a backup has forgotten claims. It is noticed
// when its cluster ID changed, and within one process also when its revision
// went back; else the operator must unprotect the domains before restoring.
type Etcd struct {
	o      EtcdOptions
	prefix string // ends in '/'
	tls    bool

	// What Identity consists of; set when opened.
	cluster uint64
	id      string

	mu     sync.Mutex
	client *clientv3.Client
	closed bool
	// doubts are domains in which a step of ours may still take effect: a
	// transaction was sent, and no answer came.
	doubts map[string]bool
	// begun are domains in which this process placed a step, or tried to. Before
	// that, one of an earlier process of this host may be under way.
	begun map[string]bool
	// turns holds one place for each domain: operations on it go one by one.
	turns map[string]chan struct{}

	seenRev atomic.Int64 // the highest revision that was answered

	// Seam for tests: called before a transaction is sent. An error is returned
	// in place of its answer; with lost it is sent nevertheless.
	fault func(label string) (lost bool, err error)
}

// EtcdOptions are the settings of OpenEtcd. Endpoints is required.
type EtcdOptions struct {
	// Endpoints are URLs of the members, all https or all http, at most 16.
	// http is for tests: whoever can write there decides which host runs.
	Endpoints []string
	// CAFile, with https, holds the certificates that vouch for the members;
	// default: the system's. CertFile and KeyFile, both or none, are this
	// host's own. They are read again for each connection.
	CAFile, CertFile, KeyFile string
	// Username and PasswordFile, both or none, log in. The file is one line,
	// not readable by others.
	Username, PasswordFile string
	// Prefix is where the keys are; default "/virt-ft". The same on both hosts.
	Prefix string
	// Machine tells two hosts of the same name apart. Default: /etc/machine-id.
	Machine string
	// Identity, when set, is the one that OpenEtcd insists on: see
	// FileOptions. With it, a cluster that does not answer is no error of
	// OpenEtcd, because every transaction compares it.
	Identity string
	// Timeout bounds each operation, default 5 s. One request is given a
	// quarter of it, then another member is asked.
	Timeout time.Duration
}

// OpenEtcd opens the arbiter, and gives the prefix an identity if it has none.
// Close it.
func OpenEtcd(ctx context.Context, o EtcdOptions) (*Etcd, error) {
	e := &Etcd{o: o, doubts: map[string]bool{}, begun: map[string]bool{}, turns: map[string]chan struct{}{}}
	if err := e.configure(); err != nil {
		return nil, opError("open", Claim{}, err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	err := e.handshakes(ctx)
	if err == nil {
		err = e.identify(ctx)
	}
	if err != nil {
		e.Close()
		return nil, opError("open", Claim{}, err)
	}
	return e, nil
}

// Name implements Arbiter.
func (e *Etcd) Name() string { return "etcd" }

// Identity is the cluster's ID and a random name that the prefix got when it
// was first opened. Two hosts ask the same arbiter only if both see the same.
func (e *Etcd) Identity() string {
	return fmt.Sprintf("%016x-%s", e.cluster, e.id)
}

// Claim implements Arbiter.
func (e *Etcd) Claim(ctx context.Context, c Claim) (Verdict, error) {
	var verdict Verdict
	if err := e.step(ctx, "claim", c, claiming(c, e.o.Machine, true, &verdict)); err != nil {
		return Verdict{}, err
	}
	return verdict, nil
}

// Confirm implements Arbiter.
func (e *Etcd) Confirm(ctx context.Context, c Claim) error {
	return e.step(ctx, "confirm", c, confirming(c, e.o.Machine))
}

// Withdraw implements Arbiter. If a claim of this process, or of one before it on
// this host, may still be under way to the cluster, a record is placed also where nobody
// claimed: then it cannot take effect any more.
func (e *Etcd) Withdraw(ctx context.Context, c Claim) error {
	decide := withdrawing(c, e.o.Machine)
	return e.step(ctx, "withdraw", c, func(at, top chain) (Step, error) {
		step, err := decide(at, top)
		if err == nil && step == 0 && (e.doubtful(c.Domain) || at.next == 0 && e.first(c.Domain)) {
			return StepWithdrawn, nil
		}
		return step, err
	})
}

// Revoke implements Revoker.
func (e *Etcd) Revoke(ctx context.Context, c Claim) error {
	return e.step(ctx, "revoke", c, revoking())
}

// Inspect implements Arbiter.
func (e *Etcd) Inspect(ctx context.Context, domain string) (Record, error) {
	c := Claim{Domain: domain}
	if err := checkName("domain", domain); err != nil {
		return Record{}, opError("inspect", c, err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	var s snapshot
	err := e.persist(ctx, func(ctx context.Context) (err error) {
		s, err = e.load(ctx, domain, 0)
		return err
	})
	if err != nil {
		return Record{}, opError("inspect", c, err)
	}
	if s.top.next == 0 {
		return Record{}, nil
	}
	return s.top.last.record(), nil
}

// Close ends the connections. Operations under way fail. It is idempotent.
func (e *Etcd) Close() error {
	e.mu.Lock()
	client := e.client
	e.client, e.closed = nil, true
	e.mu.Unlock()
	if client == nil {
		return nil
	}
	return client.Close()
}

func (e *Etcd) step(ctx context.Context, op string, c Claim, decide decision) error {
	if err := c.check(); err != nil {
		return opError(op, c, err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	turn := e.turn(c.Domain)
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return opError(op, c, fmt.Errorf("%w: an earlier operation has not returned: %w", ErrUnknown, ctx.Err()))
	}
	if err := e.advance(ctx, c, decide); err != nil {
		return opError(op, c, err)
	}
	return nil
}

func (e *Etcd) turn(domain string) chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.turns[domain] == nil {
		e.turns[domain] = make(chan struct{}, 1)
	}
	return e.turns[domain]
}

func (e *Etcd) doubtful(domain string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.doubts[domain]
}

// first tells that this process has placed nothing in a domain yet.
func (e *Etcd) first(domain string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.begun[domain]
}

func (e *Etcd) setDoubt(domain string, doubt bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begun[domain] = true
	if doubt {
		e.doubts[domain] = true
	} else {
		delete(e.doubts, domain)
	}
}

// splitIdentity is the inverse of Identity.
func splitIdentity(s string) (cluster uint64, id string, err error) {
	hexID, id, found := strings.Cut(s, "-")
	if n, err := fmt.Sscanf(hexID, "%016x", &cluster); !found || n != 1 || err != nil || len(id) != 2*identityBytes {
		return 0, "", fmt.Errorf("%w: %.80q is not the identity of an etcd cluster", ErrStorage, s)
	}
	return cluster, id, nil
}
