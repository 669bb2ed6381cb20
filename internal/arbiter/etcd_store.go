package arbiter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdPause is how long an operation waits before it asks again.
const etcdPause = 50 * time.Millisecond

// snapshot is a domain at one revision of the cluster.
type snapshot struct {
	at, top chain
	rev     int64
}

// advance reads the records, lets decide choose, and places the chosen step,
// until it did or the context is over.
func (e *Etcd) advance(ctx context.Context, c Claim, decide decision) error {
	races := 0
	return e.persist(ctx, func(ctx context.Context) error {
		s, err := e.load(ctx, c.Domain, c.Generation)
		if err != nil && e.doubtful(c.Domain) {
			return fmt.Errorf("%w: an earlier step may still take effect; repeat it: %w", ErrUnknown, err)
		}
		if err != nil {
			return undecided(err)
		}
		step, err := decide(s.at, s.top)
		if err != nil {
			return final{err}
		}
		if step == 0 {
			return nil
		}
		if s.at.next >= maxStepsPerClaim {
			return final{fmt.Errorf("%w: more than %d steps in one generation", ErrStorage, maxStepsPerClaim)}
		}
		placed, err := e.place(ctx, newEntry(c, s.at.next, e.o.Machine, step), s.rev)
		if err != nil {
			return err
		}
		if placed {
			return nil
		}
		if races++; races >= maxRaces {
			return final{undecided(fmt.Errorf("lost %d races in a row", maxRaces))}
		}
		return errRace
	})
}

// errRace is the answer to a transaction whose conditions were not met.
var errRace = errors.New("another step was first")

// final is an error after which asking again is of no use.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// persist calls do again, each time with a part of the time that is left, until
// it succeeds, fails for good, or the time is over. A try that hangs at a member
// that is frozen is thereby followed by one at another member.
func (e *Etcd) persist(ctx context.Context, do func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, max(e.o.Timeout/4, 10*time.Millisecond))
		err := do(try)
		cancel()
		var last final
		switch {
		case err == nil:
			return nil
		case errors.As(err, &last):
			return err
		case errors.Is(err, errRace) && ctx.Err() == nil:
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(etcdPause):
		}
	}
}

// load reads what is known of a domain: one transaction, so one revision.
func (e *Etcd) load(ctx context.Context, domain string, generation uint64) (snapshot, error) {
	s := snapshot{at: chain{generation: generation}}
	all := e.domainPrefix(domain)
	latest := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1)}
	resp, err := e.commit(ctx, "load", false, []clientv3.Cmp{e.isIdentity()}, []clientv3.Op{
		clientv3.OpGet(all+strings.TrimSuffix(recordName(generation, 0), "0000"+recordSuffix), latest...),
		clientv3.OpGet(all, latest...),
	}, nil)
	if err != nil {
		return s, err
	}
	if !resp.Succeeded {
		return s, final{fmt.Errorf("%w: %sidentity is not %s any more: was etcd restored, or the prefix removed?", ErrStorage, e.prefix, e.id)}
	}
	if len(resp.Responses) != 2 {
		return s, final{fmt.Errorf("%w: etcd answered %d of 2 questions", ErrStorage, len(resp.Responses))}
	}
	s.rev = resp.Header.Revision
	var count int64
	if s.at, count, err = lastStep(resp.Responses[0].GetResponseRange(), all, domain); err != nil {
		return s, final{err}
	}
	if count != int64(s.at.next) {
		return s, final{fmt.Errorf("%w: a step of generation %d is missing", ErrStorage, generation)}
	}
	if s.at.next == 0 {
		s.at.generation = generation
	}
	if s.top, count, err = lastStep(resp.Responses[1].GetResponseRange(), all, domain); err != nil {
		return s, final{err}
	}
	if count > maxDirEntries {
		return s, final{fmt.Errorf("%w: more than %d records of one domain", ErrStorage, maxDirEntries)}
	}
	return s, nil
}

// lastStep reads the one record that a range answers, and how many there are.
func lastStep(r *pb.RangeResponse, prefix, domain string) (chain, int64, error) {
	kvs := r.GetKvs()
	if len(kvs) == 0 {
		return chain{}, r.GetCount(), nil
	}
	name, _ := strings.CutPrefix(string(kvs[0].Key), prefix)
	generation, seq, ok := parseRecordName(name + recordSuffix)
	if !ok || len(kvs) > 1 {
		return chain{}, 0, fmt.Errorf("%w: key %.200q is none of ours", ErrStorage, kvs[0].Key)
	}
	last, err := decodeEntry(kvs[0].Value, domain, generation, seq)
	if err != nil {
		return chain{}, 0, fmt.Errorf("%s: %w", kvs[0].Key, err)
	}
	return chain{generation: generation, next: seq + 1, last: last}, r.GetCount(), nil
}

// place writes en if nothing of its domain was written after rev. placed is
// false when something was; an error that is not final leaves it open.
func (e *Etcd) place(ctx context.Context, en entry, rev int64) (placed bool, err error) {
	body, err := encodeEntry(en)
	if err != nil {
		return false, final{err}
	}
	all := e.domainPrefix(en.Domain)
	key := all + strings.TrimSuffix(recordName(en.Generation, en.Seq), recordSuffix)
	before := e.doubtful(en.Domain)
	e.setDoubt(en.Domain, true)
	resp, err := e.commit(ctx, "place", true, []clientv3.Cmp{
		e.isIdentity(),
		clientv3.Compare(clientv3.CreateRevision(key), "=", 0),
		clientv3.Compare(clientv3.ModRevision(all).WithPrefix(), "<", rev+1),
	}, []clientv3.Op{clientv3.OpPut(key, string(body))}, []clientv3.Op{clientv3.OpGet(key)})
	var last final
	if errors.As(err, &last) {
		e.setDoubt(en.Domain, before)
		return false, final{undecided(last.error)}
	}
	if err != nil {
		return false, fmt.Errorf("%w: the request was sent and not answered; repeat it: %w", ErrUnknown, err)
	}
	if resp.Succeeded {
		// Every earlier one was decided on an older revision than this
		// record's, so it cannot take effect any more.
		e.setDoubt(en.Domain, false)
		return true, nil
	}
	e.setDoubt(en.Domain, before)
	if len(resp.Responses) == 1 {
		if kvs := resp.Responses[0].GetResponseRange().GetKvs(); len(kvs) == 1 {
			there, err := decodeEntry(kvs[0].Value, en.Domain, en.Generation, en.Seq)
			if err == nil && there.ID == en.ID {
				e.setDoubt(en.Domain, false)
				return true, nil // it was sent twice
			}
		}
	}
	return false, nil
}

func (e *Etcd) domainPrefix(domain string) string { return e.prefix + domain + "/" }

func (e *Etcd) isIdentity() clientv3.Cmp {
	return clientv3.Compare(clientv3.Value(e.prefix+"identity"), "=", e.id)
}

// commit sends one transaction and checks that it was answered by our cluster,
// and not by an older copy of it.
func (e *Etcd) commit(ctx context.Context, label string, writes bool, when []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	floor := e.seenRev.Load()
	client, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	var lost bool
	if e.fault != nil {
		if lost, err = e.fault(label); err != nil && !lost {
			return nil, e.explain(err, writes)
		}
	}
	resp, terr := client.Txn(clientv3.WithRequireLeader(ctx)).If(when...).Then(then...).Else(otherwise...).Commit()
	if lost {
		return nil, e.explain(err, writes)
	}
	if terr != nil {
		return nil, e.explain(terr, writes)
	}
	if e.cluster != 0 && resp.Header.ClusterId != e.cluster {
		return nil, e.untrusted(writes, "cluster %016x answered, expected %016x: do all endpoints belong to one cluster, and was it restored?",
			resp.Header.ClusterId, e.cluster)
	}
	if resp.Header.Revision < floor {
		return nil, e.untrusted(writes, "etcd went back from revision %d to %d: it was restored, and has forgotten claims",
			floor, resp.Header.Revision)
	}
	for {
		seen := e.seenRev.Load()
		if resp.Header.Revision <= seen || e.seenRev.CompareAndSwap(seen, resp.Header.Revision) {
			return resp, nil
		}
	}
}

// untrusted is final for what only reads: of what writes, nobody knows where
// it was written.
func (e *Etcd) untrusted(writes bool, format string, args ...any) error {
	err := fmt.Errorf("%w: %s", ErrStorage, fmt.Sprintf(format, args...))
	if writes {
		return err
	}
	return final{err}
}

// identify learns or checks who we talk to.
func (e *Etcd) identify(ctx context.Context) error {
	key := e.prefix + "identity"
	if e.o.Identity != "" {
		var err error
		if e.cluster, e.id, err = splitIdentity(e.o.Identity); err != nil {
			return err
		}
		err = e.persist(ctx, func(ctx context.Context) error {
			_, err := e.load(ctx, "none", 0)
			return err
		})
		if err == nil || errors.Is(err, errRefused) || errors.Is(err, ErrStorage) {
			return err
		}
		return nil // no answer now: every transaction compares it
	}
	return e.persist(ctx, func(ctx context.Context) error {
		fresh := randomID()
		resp, err := e.commit(ctx, "identify", true,
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(key, fresh)}, []clientv3.Op{clientv3.OpGet(key)})
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			fresh = ""
			if len(resp.Responses) == 1 && len(resp.Responses[0].GetResponseRange().GetKvs()) == 1 {
				fresh = string(resp.Responses[0].GetResponseRange().Kvs[0].Value)
			}
			if len(fresh) != 2*identityBytes {
				return final{fmt.Errorf("%w: %s does not hold an identity", ErrStorage, key)}
			}
		}
		e.cluster, e.id = resp.Header.ClusterId, fresh
		return nil
	})
}
