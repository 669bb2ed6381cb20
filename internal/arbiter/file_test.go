package arbiter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const domain = "3f0a3a52-6f0e-4d6e-9b57-0a0b0c0d0e0f"

func open(t *testing.T, dir string) *File {
	t.Helper()
	f, err := OpenFile(t.Context(), dir, FileOptions{Machine: "m", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func claimOf(host string, generation uint64) Claim {
	return Claim{Domain: domain, Generation: generation, Host: host}
}

func mustWin(t *testing.T, a Arbiter, c Claim) {
	t.Helper()
	v, err := a.Claim(t.Context(), c)
	if err != nil || !v.Won {
		t.Fatalf("claim %v: %+v, %v; want won", c, v, err)
	}
}

func mustLose(t *testing.T, a Arbiter, c Claim, holder string) {
	t.Helper()
	v, err := a.Claim(t.Context(), c)
	if err != nil || v.Won || v.Holder != holder {
		t.Fatalf("claim %v: %+v, %v; want lost to %s", c, v, err, holder)
	}
}

func TestFileLifecycle(t *testing.T) {
	dir := t.TempDir()
	f, ctx := open(t, dir), t.Context()
	a, b := claimOf("a", 1), claimOf("b", 1)

	if r, err := f.Inspect(ctx, domain); err != nil || r.Generation != 0 {
		t.Fatalf("fresh: %+v, %v", r, err)
	}
	if err := f.Withdraw(ctx, a); err != nil {
		t.Fatalf("withdraw of what nobody claimed: %v", err)
	}
	mustWin(t, f, a)
	mustWin(t, f, a) // idempotent
	mustLose(t, f, b, "a")
	if err := f.Confirm(ctx, b); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm by the loser: %v", err)
	}
	if err := f.Withdraw(ctx, b); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("withdraw by the loser: %v", err)
	}
	for range 2 {
		if err := f.Withdraw(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Confirm(ctx, a); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm after withdraw: %v", err)
	}
	mustWin(t, f, b) // the other side may have what was handed back
	mustLose(t, f, a, "b")
	for range 2 {
		if err := f.Confirm(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Withdraw(ctx, b); !errors.Is(err, ErrRunning) {
		t.Fatalf("withdraw after RUNNING: %v", err)
	}
	mustWin(t, f, b)
	r, err := f.Inspect(ctx, domain)
	if err != nil || r.Generation != 1 || r.Host != "b" || r.Step != StepRunning || r.Domain != domain || r.At.IsZero() {
		t.Fatalf("inspect: %+v, %v", r, err)
	}
	var op *OpError
	if err := f.Withdraw(ctx, b); !errors.As(err, &op) || op.Op != "withdraw" || op.Generation != 1 {
		t.Fatalf("error lacks its operation: %#v", err)
	}
}

// A host that comes back with an old generation must not run.
func TestFileSupersededClaimIsLost(t *testing.T) {
	f, ctx := open(t, t.TempDir()), t.Context()
	mustWin(t, f, claimOf("a", 1))
	mustWin(t, f, claimOf("b", 2))
	mustLose(t, f, claimOf("a", 1), "b")
	if err := f.Confirm(ctx, claimOf("a", 1)); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm of a superseded claim: %v", err)
	}
	if err := f.Withdraw(ctx, claimOf("b", 2)); err != nil {
		t.Fatal(err)
	}
	mustWin(t, f, claimOf("a", 1)) // nobody holds generation 2 any more
}

func TestFileRefusesTwoMachinesOfOneName(t *testing.T) {
	dir := t.TempDir()
	mustWin(t, open(t, dir), claimOf("a", 1))
	other := open(t, dir)
	other.machine = "another"
	if v, err := other.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
		t.Fatalf("%+v, %v", v, err)
	}
}

func TestFileRefusesBadNames(t *testing.T) {
	f := open(t, t.TempDir())
	for _, c := range []Claim{
		{Domain: domain, Generation: 0, Host: "a"},
		{Domain: "", Generation: 1, Host: "a"},
		{Domain: "../x", Generation: 1, Host: "a"},
		{Domain: domain, Generation: 1, Host: "a/b"},
		{Domain: domain, Generation: 1, Host: strings.Repeat("x", maxNameLen+1)},
	} {
		if v, err := f.Claim(t.Context(), c); err == nil || v.Won {
			t.Errorf("%+v accepted: %+v", c, v)
		}
	}
}

// An unmounted mount point is an empty local directory: each host alone in it
// would win everything.
func TestFileNoticesMissingStorage(t *testing.T) {
	if _, err := OpenFile(t.Context(), filepath.Join(t.TempDir(), "absent"), FileOptions{}); err == nil {
		t.Fatal("a missing directory was created")
	}
	dir := t.TempDir()
	f := open(t, dir)
	if again := open(t, dir); again.Identity() != f.Identity() || f.Identity() == "" {
		t.Fatalf("identities %q and %q", f.Identity(), again.Identity())
	}
	if _, err := OpenFile(t.Context(), t.TempDir(), FileOptions{Identity: f.Identity()}); !errors.Is(err, ErrStorage) {
		t.Fatalf("open of empty storage: %v", err)
	}
	if err := os.Rename(filepath.Join(dir, identityName), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	if v, err := f.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
		t.Fatalf("claim on unmounted storage: %+v, %v", v, err)
	}
}

func TestFileRefusesDamagedRecords(t *testing.T) {
	good := `{"version":1,"id":"x","domain":"` + domain + `","generation":1,"seq":0,"host":"a","step":"CLAIMED","at":"2024-01-01T00:00:00Z"}`
	for name, body := range map[string]string{
		"empty":         "",
		"not JSON":      "hello",
		"version":       strings.Replace(good, `"version":1`, `"version":9`, 1),
		"other domain":  strings.Replace(good, domain, "x", 1),
		"unknown step":  strings.Replace(good, "CLAIMED", "DREAMING", 1),
		"no step":       strings.Replace(good, `"step":"CLAIMED",`, "", 1),
		"too long":      good + strings.Repeat(" ", maxRecordBytes),
		"host is a dir": strings.Replace(good, `"host":"a"`, `"host":"../a"`, 1),
	} {
		f := open(t, t.TempDir())
		mustMkdir(t, filepath.Join(f.dir, domain))
		write(t, filepath.Join(f.dir, domain, recordName(1, 0)), body)
		if v, err := f.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	f := open(t, t.TempDir()) // step 0 is missing
	mustMkdir(t, filepath.Join(f.dir, domain))
	write(t, filepath.Join(f.dir, domain, recordName(1, 1)), strings.Replace(good, `"seq":0`, `"seq":1`, 1))
	if v, err := f.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrStorage) || v.Won {
		t.Errorf("gap: %+v, %v", v, err)
	}
}

func mustMkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, body string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

// While a is about to place its claim, b claims. Placing must be a
// compare-and-swap: the rename case shows that this test would notice.
func TestFilePlacingIsCompareAndSwap(t *testing.T) {
	for _, tc := range []struct {
		name    string
		place   func(tmp, final string) error
		winners int
	}{
		{"link", os.Link, 1},
		{"rename, which must not be used", os.Rename, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			a, b := open(t, dir), open(t, dir)
			a.place, b.place = tc.place, tc.place
			winners := 0
			a.fault = func(label string) error {
				if label == "link" {
					a.fault = nil
					if v, err := b.Claim(t.Context(), claimOf("b", 1)); err != nil || !v.Won {
						t.Errorf("b: %+v, %v", v, err)
					}
					winners++
				}
				return nil
			}
			v, err := a.Claim(t.Context(), claimOf("a", 1))
			if err != nil {
				t.Fatal(err)
			}
			if v.Won {
				winners++
			}
			if winners != tc.winners {
				t.Fatalf("%d winners, want %d", winners, tc.winners)
			}
		})
	}
}

// link(2) over NFS may report an error although it linked, or EEXIST for its
// own retransmission.
func TestFileLinkReplyLost(t *testing.T) {
	for _, reply := range []error{syscall.EIO, syscall.EEXIST, syscall.ETIMEDOUT} {
		f := open(t, t.TempDir())
		f.place = func(tmp, final string) error {
			if err := os.Link(tmp, final); err != nil {
				return err
			}
			return reply
		}
		mustWin(t, f, claimOf("a", 1))
		mustLose(t, f, claimOf("b", 1), "a")
	}
	f := open(t, t.TempDir())
	f.place = func(string, string) error { return syscall.EIO } // and did nothing
	if v, err := f.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrUnknown) || v.Won {
		t.Fatalf("%+v, %v", v, err)
	}
}

func TestFileFailedSyncIsNotWon(t *testing.T) {
	for _, label := range []string{"sync temp", "sync dir"} {
		f := open(t, t.TempDir())
		f.fault = func(l string) error {
			if l == label {
				return syscall.EIO
			}
			return nil
		}
		if v, err := f.Claim(t.Context(), claimOf("a", 1)); err == nil || v.Won {
			t.Fatalf("%s: %+v, %v", label, v, err)
		}
		f.fault = nil
		mustWin(t, f, claimOf("a", 1))
	}
}

// A hung storage: the caller gets its answer, a step of this host never
// overtakes another, and a step that arrives too late changes nothing.
func TestFileHang(t *testing.T) {
	dir := t.TempDir()
	hung, fresh := open(t, dir), open(t, dir) // before and after a restart of host a's daemon
	mustWin(t, hung, claimOf("a", 1))
	reached, release := make(chan struct{}), make(chan struct{})
	hung.fault = func(label string) error {
		if label == "link" {
			close(reached)
			<-release
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	if err := hung.Confirm(ctx, claimOf("a", 1)); !errors.Is(err, ErrUnknown) {
		t.Fatalf("confirm on hung storage: %v", err)
	}
	gone, cancelGone := context.WithCancel(t.Context())
	cancelGone()
	if err := hung.Withdraw(gone, claimOf("a", 1)); err == nil {
		t.Fatal("withdraw overtook a confirm that hangs")
	}
	// The daemon restarts and withdraws; the peer runs; only then NFS comes back.
	if err := fresh.Withdraw(t.Context(), claimOf("a", 1)); err != nil {
		t.Fatal(err)
	}
	mustWin(t, fresh, claimOf("b", 1))
	close(release)
	hung.slot <- struct{}{} // the hung operation is over
	<-hung.slot
	hung.fault = nil
	if err := fresh.Confirm(t.Context(), claimOf("b", 1)); err != nil {
		t.Fatal(err)
	}
	if r, err := hung.Inspect(t.Context(), domain); err != nil || r.Host != "b" || r.Step != StepRunning {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestManual(t *testing.T) {
	dir, ctx := filepath.Join(t.TempDir(), "grants"), t.Context()
	m, err := OpenManual(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := m.Claim(ctx, claimOf("b", 2)); !errors.Is(err, ErrOperator) || v.Won {
		t.Fatalf("without an operator: %+v, %v", v, err)
	}
	if err := m.Grant(ctx, domain, 2, "b"); err != nil {
		t.Fatal(err)
	}
	mustWin(t, m, claimOf("b", 2))
	mustLose(t, m, claimOf("a", 2), "b")
	if err := m.Grant(ctx, domain, 2, "a"); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("granted twice: %v", err)
	}
	if err := m.Withdraw(ctx, claimOf("b", 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Claim(ctx, claimOf("b", 2)); !errors.Is(err, ErrOperator) {
		t.Fatalf("a withdrawn grant was used again: %v", err)
	}
	if err := m.Grant(ctx, domain, 2, "b"); err != nil {
		t.Fatal(err)
	}
	again, err := OpenManual(ctx, dir) // the daemon restarts
	if err != nil {
		t.Fatal(err)
	}
	mustWin(t, again, claimOf("b", 2))
	if err := again.Confirm(ctx, claimOf("b", 2)); err != nil {
		t.Fatal(err)
	}
	if r, err := again.Inspect(ctx, domain); err != nil || r.Step != StepRunning || r.Generation != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
}
