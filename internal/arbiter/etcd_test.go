package arbiter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestEtcd(t *testing.T) {
	c := startCluster(t, 1)
	n := 0
	fresh := func() func(*EtcdOptions) { // a prefix of its own for each test
		n++
		prefix := fmt.Sprintf("/test-%d", n)
		return func(o *EtcdOptions) { o.Prefix = prefix }
	}
	t.Run("conforms", func(t *testing.T) {
		conform(t, func(t *testing.T) site {
			change := fresh()
			return site{shared: true, open: func(t *testing.T, _ string) Arbiter { return c.open(t, change) }}
		})
	})
	t.Run("conforms, with fence", func(t *testing.T) {
		conform(t, func(t *testing.T) site {
			change, b := fresh(), newBoard(t)
			return site{start: b.start, on: b.on, open: func(t *testing.T, host string) Arbiter {
				return openChain(t, c.open(t, change), openFence(t, b.options(host, "")))
			}}
		})
	})
	t.Run("storm", func(t *testing.T) { etcdStorm(t, c, fresh()) })
	t.Run("late", func(t *testing.T) { etcdLate(t, c, fresh()) })
	t.Run("lost replies", func(t *testing.T) { etcdLostReply(t, c, fresh()) })
	t.Run("identity", func(t *testing.T) { etcdIdentity(t, c, fresh()) })
	t.Run("records", func(t *testing.T) { etcdRecords(t, c, fresh()) })
	t.Run("TLS", func(t *testing.T) { etcdTLS(t, c) })
	t.Run("users", func(t *testing.T) { etcdUsers(t, c) }) // the last: it turns passwords on
}

// Hosts that claim, run and withdraw, while requests are refused and answers
// lost at random: no generation is run by two, and the records tell by whom.
func etcdStorm(t *testing.T, c *cluster, change func(*EtcdOptions)) {
	const hosts, generations = 4, 25
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	running := map[uint64]string{}
	var wg sync.WaitGroup
	for i := range hosts {
		e, host, dice := c.open(t, change), fmt.Sprintf("host%d", i), rand.New(rand.NewPCG(seed, uint64(i)))
		e.fault = func(string) (bool, error) {
			if dice.IntN(10) == 0 {
				return dice.IntN(2) == 0, errors.New("the network is bad")
			}
			return false, nil
		}
		wg.Go(func() {
			for g := uint64(1); g <= generations; g++ {
				v, err := e.Claim(t.Context(), claimOf(host, g))
				switch {
				case err != nil:
					t.Errorf("%s: %v", host, err)
				case !v.Won:
					continue
				case dice.IntN(3) == 0:
					err = e.Withdraw(t.Context(), claimOf(host, g))
				default:
					if err = e.Confirm(t.Context(), claimOf(host, g)); err == nil {
						mu.Lock()
						if other := running[g]; other != "" {
							t.Errorf("generation %d runs on %s and %s", g, other, host)
						}
						running[g] = host
						mu.Unlock()
					}
				}
				if err != nil && !errors.Is(err, ErrNotHolder) {
					t.Errorf("%s: %v", host, err)
				}
			}
		})
	}
	wg.Wait()
	if len(running) == 0 {
		t.Fatal("nobody ran anything: the test proves nothing")
	}
	e := c.open(t, change)
	for g, host := range running {
		s, err := e.load(t.Context(), domain, g)
		if err != nil || s.at.last.Host != host || s.at.last.Step != StepRunning {
			t.Errorf("generation %d ran on %s, the record says %+v, %v", g, host, s.at.last, err)
		}
	}
}

// A request that reaches the cluster after its host has withdrawn, and another
// one has won, changes nothing.
func etcdLate(t *testing.T, c *cluster, change func(*EtcdOptions)) {
	slow, fast := c.open(t, change), c.open(t, change)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow.fault = func(label string) (bool, error) {
		if label == "place" {
			once.Do(func() { close(reached); <-release })
		}
		return false, nil
	}
	type answer struct {
		v   Verdict
		err error
	}
	done := make(chan answer)
	go func() {
		v, err := slow.Claim(t.Context(), claimOf("a", 1))
		done <- answer{v, err}
	}()
	<-reached
	mustWin(t, fast, claimOf("b", 2)) // of another generation: it counts nevertheless
	if err := fast.Confirm(t.Context(), claimOf("b", 2)); err != nil {
		t.Fatal(err)
	}
	close(release)
	if a := <-done; a.err != nil || a.v.Won || a.v.Holder != "b" {
		t.Fatalf("%+v, %v", a.v, a.err)
	}
	if s, err := slow.load(t.Context(), domain, 1); err != nil || s.at.next != 0 {
		t.Fatalf("the late step was placed: %+v, %v", s.at, err)
	}
}

// Nobody knows what became of a request without an answer: repeating tells, and
// withdrawing ends it.
func etcdLostReply(t *testing.T, c *cluster, change func(*EtcdOptions)) {
	e, other := c.open(t, change), c.open(t, change)
	bad := errors.New("connection reset")
	times := 1
	e.fault = func(label string) (bool, error) {
		if label != "place" || times == 0 {
			return false, nil
		}
		times--
		return true, bad
	}
	mustWin(t, e, claimOf("a", 1)) // it asks again by itself
	if s, err := e.load(t.Context(), domain, 1); err != nil || s.at.next != 1 {
		t.Fatalf("%d steps were placed, %v", s.at.next, err)
	}
	e.o.Timeout = 300 * time.Millisecond
	for _, lost := range []bool{true, false} {
		e.fault = func(label string) (bool, error) { return lost && label == "place", bad }
		c := Claim{Domain: fmt.Sprint("lost-", lost), Generation: 1, Host: "a"}
		want := ErrUndecided
		if lost {
			e.fault = func() func(string) (bool, error) {
				sent := false
				return func(label string) (bool, error) {
					if !sent && label != "place" {
						return false, nil
					}
					was := sent
					sent = true
					return !was, bad // it is placed, and then the cluster is away
				}
			}()
			want = ErrUnknown
		}
		if v, err := e.Claim(t.Context(), c); !errors.Is(err, want) || v.Won {
			t.Fatalf("lost %v: %+v, %v", lost, v, err)
		}
		e.fault = nil
		if r, err := other.Inspect(t.Context(), c.Domain); err != nil || (r.Step == StepClaimed) != lost {
			t.Fatalf("lost %v: %+v, %v", lost, r, err)
		}
	}
	// A claim that was sent and may still arrive: after Withdraw it cannot.
	late := Claim{Domain: "late", Generation: 1, Host: "a"}
	e.setDoubt(late.Domain, true)
	if err := e.Withdraw(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if placed, err := e.place(t.Context(), newEntry(late, 0, "m", StepClaimed), 1); placed || err != nil {
		t.Fatalf("the late claim was placed: %v, %v", placed, err)
	}
	mustWin(t, other, Claim{Domain: "late", Generation: 1, Host: "b"})
}

func etcdIdentity(t *testing.T, c *cluster, change func(*EtcdOptions)) {
	e := c.open(t, change)
	if again := c.open(t, change); again.Identity() != e.Identity() || len(e.Identity()) != 16+1+2*identityBytes {
		t.Fatalf("identities %q and %q", e.Identity(), again.Identity())
	}
	with := func(identity string, endpoints ...string) (*Etcd, error) {
		o := c.options()
		change(&o)
		o.Identity, o.Timeout = identity, 500*time.Millisecond
		if len(endpoints) > 0 {
			o.Endpoints = endpoints
		}
		return OpenEtcd(t.Context(), o)
	}
	if ok, err := with(e.Identity()); err != nil {
		t.Fatal(err)
	} else {
		ok.Close()
	}
	id := e.Identity()
	for _, wrong := range []string{strings.Repeat("0", 15) + "1" + id[16:], id[:17] + strings.Repeat("0", 2*identityBytes), "x"} {
		if _, err := with(wrong); !errors.Is(err, ErrStorage) {
			t.Errorf("identity %s: %v", wrong, err)
		}
	}
	away, err := with(id, "https://"+freeAddress(t))
	if err != nil {
		t.Fatalf("a known cluster that is away keeps the daemon from starting: %v", err)
	}
	defer away.Close()
	if v, err := away.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrUndecided) || v.Won {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := e.client.Delete(t.Context(), e.prefix+"identity"); err != nil {
		t.Fatal(err)
	}
	if v, err := e.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
		t.Fatalf("the prefix was removed: %+v, %v", v, err)
	}
	if placed, err := e.place(t.Context(), newEntry(claimOf("a", 1), 0, "m", StepClaimed), e.seenRev.Load()); placed || err != nil {
		t.Fatalf("a step was placed in a prefix that is not ours: %v, %v", placed, err)
	}
	e.seenRev.Add(1000)
	if _, err := e.Inspect(t.Context(), domain); !errors.Is(err, ErrStorage) || !strings.Contains(err.Error(), "went back") {
		t.Fatalf("an older copy of the cluster: %v", err)
	}
}

func etcdRecords(t *testing.T, c *cluster, change func(*EtcdOptions)) {
	e := c.open(t, change)
	good, err := encodeEntry(newEntry(claimOf("a", 1), 0, "m", StepClaimed))
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(recordName(1, 0), recordSuffix)
	for why, kv := range map[string][2]string{
		"not JSON":      {name, "hello"},
		"too long":      {name, string(good) + strings.Repeat(" ", maxRecordBytes)},
		"huge":          {name, strings.Repeat(" ", maxAnswerBytes*2/3)},
		"a key":         {"hello", string(good)},
		"a gap":         {strings.TrimSuffix(recordName(1, 1), recordSuffix), strings.Replace(string(good), `"seq":0`, `"seq":1`, 1)},
		"other domain":  {name, strings.Replace(string(good), domain, "x", 1)},
		"other machine": {name, strings.Replace(string(good), `"machine":"m"`, `"machine":"another"`, 1)},
	} {
		if _, err := e.client.Put(t.Context(), e.domainPrefix(domain)+kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
		if v, err := e.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
			t.Errorf("%s: %+v, %v", why, v, err)
		}
		if _, err := e.client.Delete(t.Context(), e.domainPrefix(domain), clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
}

func etcdTLS(t *testing.T, c *cluster) {
	stranger := newAuthority(t)
	stranger.issue(t, "client", nil)
	for why, tc := range map[string]struct {
		change func(*EtcdOptions)
		want   string
	}{
		"wrong CA":     {func(o *EtcdOptions) { o.CAFile = stranger.file("ca.crt") }, "vouches for"},
		"the system's": {func(o *EtcdOptions) { o.CAFile = "" }, "vouches for"},
		"wrong name": {func(o *EtcdOptions) {
			o.Endpoints = []string{strings.Replace(c.endpoints[0], "127.0.0.1", "localhost", 1)}
		}, "vouches for"},
		"no certificate": {func(o *EtcdOptions) { o.CertFile, o.KeyFile = "", "" }, "own CA"},
		"a stranger's":   {func(o *EtcdOptions) { o.CertFile, o.KeyFile = stranger.file("client.crt"), stranger.file("client.key") }, "own CA"},
		"half a pair":    {func(o *EtcdOptions) { o.KeyFile = "" }, "both"},
		"no such file":   {func(o *EtcdOptions) { o.CAFile += ".gone" }, "no such file"},
		"not PEM":        {func(o *EtcdOptions) { o.CAFile = os.Args[0] }, "longer than"},
		"plain http":     {func(o *EtcdOptions) { o.Endpoints = []string{"http://127.0.0.1:1"} }, "https"},
		"no URL":         {func(o *EtcdOptions) { o.Endpoints = []string{"127.0.0.1:2379"} }, "is not like"},
		"none":           {func(o *EtcdOptions) { o.Endpoints = nil }, "endpoints"},
		"prefix":         {func(o *EtcdOptions) { o.Prefix = "x" }, "begin with"},
	} {
		o := c.options()
		o.Timeout = 2 * time.Second
		tc.change(&o)
		e, err := OpenEtcd(t.Context(), o)
		if err == nil {
			e.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v; want one with %q, at once", why, err, tc.want)
		}
	}
}

func etcdUsers(t *testing.T, c *cluster) {
	secret := filepath.Join(t.TempDir(), "password")
	write(t, secret, "right\n")
	mustDo := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, e := t.Context(), c.open(t, nil)
	mustDo(e.client.UserAdd(ctx, "root", "root"))
	mustDo(e.client.UserGrantRole(ctx, "root", "root"))
	mustDo(e.client.UserAdd(ctx, "ft", "right"))
	mustDo(e.client.RoleAdd(ctx, "ft"))
	mustDo(e.client.RoleGrantPermission(ctx, "ft", "/mine/", "/mine0", clientv3.PermissionType(clientv3.PermReadWrite)))
	mustDo(e.client.UserGrantRole(ctx, "ft", "ft"))
	mustDo(e.client.AuthEnable(ctx))
	try := func(user, file, prefix string) error {
		o := c.options()
		o.Username, o.PasswordFile, o.Prefix = user, file, prefix
		e, err := OpenEtcd(ctx, o)
		if err != nil {
			return err
		}
		defer e.Close()
		_, err = e.Claim(ctx, claimOf("a", 1))
		return err
	}
	for _, tc := range []struct{ user, file, prefix, password, mode, want string }{
		{"ft", secret, "/mine", "right", "", "everybody may read"},
		{"ft", secret, "/mine", "right", "600", ""},
		{"ft", secret, "/other", "right", "600", "grant it readwrite on the prefix /other/"},
		{"ft", secret, "/mine", "wrong", "600", "does not know this user"},
		{"ft", secret, "/mine", "", "600", "one line"},
		{"", "", "/mine", "", "", "the user named like our certificate may not"},
	} {
		write(t, secret, tc.password)
		if err := os.Chmod(secret, 0o644); err != nil {
			t.Fatal(err)
		}
		if tc.mode == "600" {
			if err := os.Chmod(secret, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		switch err := try(tc.user, tc.file, tc.prefix); {
		case tc.want == "" && err != nil:
			t.Errorf("%+v: %v", tc, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "wrong\n")):
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

// Members freeze and thaw. With a majority one host wins; without, nobody does,
// and what was asked then makes no second winner afterwards.
func TestEtcdThreeMembers(t *testing.T) {
	c := startCluster(t, 3)
	daemons := map[string]*Etcd{}
	for _, h := range []string{"a", "b"} {
		daemons[h] = c.open(t, nil)
		daemons[h].o.Timeout = 4 * time.Second // so that a frozen member costs one second
	}
	claim := func(g uint64, limit time.Duration) ([]string, int) { return claimBoth(t, daemons, g, limit) }
	// again is for what an election, on a machine that is busy with other tests, may keep from being answered.
	again := func(f func() bool) {
		for limit := time.Now().Add(2 * time.Minute); !f() && time.Now().Before(limit); {
		}
	}
	g := uint64(0)
	for frozen := range c.members { // one of them is the leader
		g++
		c.signal(t, frozen, syscall.SIGSTOP)
		var won []string
		again(func() bool {
			won, _ = claim(g, 20*time.Second)
			return len(won) > 0
		})
		if len(won) != 1 {
			t.Fatalf("member %d frozen: won by %v", frozen, won)
		}
		other := (frozen + 1) % 3
		c.signal(t, other, syscall.SIGSTOP)
		g++
		early, failed := claim(g, time.Second)
		if len(early) > 0 || failed != len(daemons) {
			t.Errorf("without a majority: won by %v, %d failed", early, failed)
		}
		c.signal(t, frozen, syscall.SIGCONT)
		c.signal(t, other, syscall.SIGCONT)
		again(func() bool {
			won, failed = claim(g, 20*time.Second)
			return failed == 0
		})
		if len(won) != 1 || failed > 0 {
			t.Fatalf("thawed: won by %v, %d failed", won, failed)
		}
		var err error
		again(func() bool {
			err = daemons[won[0]].Confirm(t.Context(), claimOf(won[0], g))
			return answered(err)
		})
		if err != nil {
			t.Error(err)
		}
		var r Record
		again(func() bool {
			r, err = daemons["a"].Inspect(t.Context(), domain)
			return answered(err)
		})
		if err != nil || r.Host != won[0] || r.Generation != g || r.Step != StepRunning {
			t.Errorf("%+v, %v; %s runs", r, err, won[0])
		}
	}
}

// answered tells a word of the arbiter, good or bad, from its silence.
func answered(err error) bool {
	return !errors.Is(err, ErrUndecided) && !errors.Is(err, ErrUnknown) && !errors.Is(err, context.DeadlineExceeded)
}

// claimBoth lets all hosts claim at once.
func claimBoth(t *testing.T, daemons map[string]*Etcd, g uint64, limit time.Duration) (won []string, failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for h, e := range daemons {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			v, err := e.Claim(ctx, claimOf(h, g))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil && !errors.Is(err, ErrUndecided) && !errors.Is(err, ErrUnknown):
				t.Errorf("%s: %v", h, err)
			case err != nil:
				failed++
			case v.Won:
				won = append(won, h)
			}
		})
	}
	wg.Wait()
	return won, failed
}
