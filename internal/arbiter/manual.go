package arbiter

import (
	"context"
	"fmt"
	"os"
)

// Manual lets a person decide. Claim is answered only from grants which the
// operator gave on this host with `virt-ft activate` (or, for the first
// generation, by protecting the domain); without one it is ErrOperator. Grants
// live in a local directory, so that a restarted daemon still knows them. The
// other host does not see them: the operator vouches that it does not run.
type Manual struct {
	store *File
}

// OpenManual opens the grants kept in dir, creating it if needed.
func OpenManual(ctx context.Context, dir string) (*Manual, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, opError("open", Claim{}, err)
	}
	store, err := OpenFile(ctx, dir, FileOptions{})
	if err != nil {
		return nil, err
	}
	return &Manual{store: store}, nil
}

// Name implements Arbiter.
func (m *Manual) Name() string { return "manual" }

// Grant records the operator's decision that host may run domain in generation.
// It fails with ErrNotHolder when the right was granted to another host, or
// when a later generation is held.
func (m *Manual) Grant(ctx context.Context, domain string, generation uint64, host string) error {
	c := Claim{Domain: domain, Generation: generation, Host: host}
	v, err := m.store.claim(ctx, "grant", c, true)
	if err != nil {
		return err
	}
	if !v.Won {
		return opError("grant", c, fmt.Errorf("%w: held by %s (%s)", ErrNotHolder, v.Holder, v.Step))
	}
	return nil
}

// Claim implements Arbiter: won when granted to c.Host, lost when granted to
// another host, ErrOperator when nobody decided yet.
func (m *Manual) Claim(ctx context.Context, c Claim) (Verdict, error) {
	return m.store.claim(ctx, "claim", c, false)
}

// Confirm implements Arbiter.
func (m *Manual) Confirm(ctx context.Context, c Claim) error { return m.store.Confirm(ctx, c) }

// Withdraw implements Arbiter. A new grant is needed afterwards.
func (m *Manual) Withdraw(ctx context.Context, c Claim) error { return m.store.Withdraw(ctx, c) }

// Inspect implements Arbiter.
func (m *Manual) Inspect(ctx context.Context, domain string) (Record, error) {
	return m.store.Inspect(ctx, domain)
}
