package arbiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// board is the power of the hosts of a test: the agent below turns a plug off
// by making a file. A host that is off turns nobody off any more.
type board struct{ dir string }

const agentScript = `#!/bin/sh
# A fence agent for tests; its device is a directory.
while IFS= read -r line; do
	case $line in
	action=*) action=${line#action=} ;;
	plug=*) plug=${line#plug=} ;;
	ip=*) dir=${line#ip=} ;;
	username=*) me=${line#username=} ;;
	passwd=*) mode=${line#passwd=} ;;
	esac
done
say() {
	echo "$action $plug" >>"$dir/log"
}
case $action in
metadata)
	echo '<?xml version="1.0" ?><resource-agent name="fence_test"><parameters>'
	for p in action plug ip username passwd; do echo "<parameter name=\"$p\"/>"; done
	echo '</parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>'
	;;
off)
	say
	case $mode in
	fail) echo "cannot reach it with passwd fail" >&2; exit 1 ;;
	hang) echo $$ >"$dir/hangs"; exec sleep 1000 ;;
	lie) exit 0 ;;
	killed) kill -9 $$ ;;
	garbage) head -c 1000000 /dev/urandom; head -c 100000 /dev/urandom >&2; exit 7 ;;
	esac
	exec 9>"$dir/lock"
	flock 9
	if [ -e "$dir/off-$me" ]; then exit 1; fi
	: >"$dir/off-$plug"
	;;
status)
	say
	while [ -e "$dir/wait" ]; do sleep 0.02; done
	if [ "$mode" = mute ]; then exit 1; fi
	if [ -e "$dir/off-$plug" ]; then exit 2; fi
	;;
*) exit 1 ;;
esac
`

func newBoard(t *testing.T) *board {
	t.Helper()
	b := &board{dir: t.TempDir()}
	write(t, b.dir+"/agent", agentScript)
	if err := os.Chmod(b.dir+"/agent", 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *board) start(t *testing.T) {
	for _, host := range []string{"a", "b"} {
		if err := os.RemoveAll(b.dir + "/off-" + host); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *board) on(host string) bool {
	_, err := os.Stat(b.dir + "/off-" + host)
	return err != nil
}

// calls are what the agent was asked, in order.
func (b *board) calls(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(b.dir + "/log")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	_ = os.Remove(b.dir + "/log")
	return strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ", ")
}

func (b *board) options(host, mode string) FenceOptions {
	peer := map[string]string{"a": "b", "b": "a"}[host]
	return FenceOptions{
		Agent: b.dir + "/agent", Plug: peer, Dir: b.dir + "/records-" + host, Timeout: 30 * time.Second,
		Options: map[string]string{"ip": b.dir, "username": host, "passwd": mode},
	}
}

func openFence(t *testing.T, o FenceOptions) *Fence {
	t.Helper()
	f, err := OpenFence(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFenceConforms(t *testing.T) {
	conform(t, func(t *testing.T) site {
		b := newBoard(t)
		return site{start: b.start, on: b.on, open: func(t *testing.T, host string) Arbiter { return openFence(t, b.options(host, "")) }}
	})
}

func TestFenceFailures(t *testing.T) {
	for mode, tc := range map[string]struct {
		want error
		text string
	}{
		"fail":    {ErrUndecided, "cannot reach it with passwd ***"},
		"hang":    {ErrUnknown, "was killed"},
		"lie":     {ErrUndecided, "is still on: is this its plug?"},
		"killed":  {ErrUnknown, "killed"},
		"garbage": {ErrUndecided, "exit code 7"},
		"mute":    {ErrUndecided, "reported success, but not the state"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := newBoard(t)
			o := b.options("a", mode)
			if mode == "hang" {
				o.Timeout = time.Second
			}
			f := openFence(t, o)
			v, err := f.Claim(t.Context(), claimOf("a", 1))
			if !errors.Is(err, tc.want) || v.Won || !strings.Contains(err.Error(), tc.text) || len(err.Error()) > 1000 {
				t.Fatalf("%+v, %v", v, err)
			}
			if err := f.Confirm(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrNotHolder) {
				t.Fatalf("confirm: %v", err)
			}
			if r, err := f.Inspect(t.Context(), domain); err != nil || r.Generation != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			if mode == "hang" {
				pid, err := os.ReadFile(b.dir + "/hangs")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
					t.Error("the agent that hung is still there")
				}
			}
		})
	}
}

// What was asked of the power, and in which order, is the contract.
func TestFenceCalls(t *testing.T) {
	b, ctx, c := newBoard(t), t.Context(), claimOf("a", 1)
	first := openFence(t, b.options("a", ""))
	expect := func(want string) {
		t.Helper()
		if got := b.calls(t); got != want {
			t.Fatalf("the agent was asked %q, want %q", got, want)
		}
	}
	expect("") // opening touches no power
	mustWin(t, first, c)
	expect("off b, status b")
	next := openFence(t, b.options("a", "")) // a crash
	if err := next.Confirm(ctx, c); !errors.Is(err, ErrNotHolder) {
		t.Fatalf("confirm of what an earlier process won: %v", err)
	}
	mustWin(t, next, c)
	expect("status b, status b") // still off: nothing to do
	b.start(t)                   // the peer is started, and may have a copy again
	mustWin(t, next, c)
	expect("status b, off b, status b")
	if err := next.Confirm(ctx, c); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	mustWin(t, next, c)
	expect("") // what runs is for good
	// The peer's own word, or a person's, spares it; once.
	if err := next.Grant(ctx, domain, 2, "a"); err != nil {
		t.Fatal(err)
	}
	mustWin(t, next, claimOf("a", 2))
	expect("")
	mustWin(t, next, claimOf("a", 2))
	expect("off b, status b")
	o := b.options("a", "mute")
	o.NoVerify = true
	mustWin(t, openFence(t, o), claimOf("a", 3))
	expect("off b")
}

// Many domains lose their peer at once: it is turned off once. A caller that
// does not wait ends nothing; a withdrawn claim ends what has not begun.
func TestFenceRounds(t *testing.T) {
	b := newBoard(t)
	o := b.options("a", "")
	o.Delay = 300 * time.Millisecond
	f := openFence(t, o)
	const domains = 20
	errs := make(chan error, domains)
	for i := range domains {
		go func() {
			v, err := f.Claim(t.Context(), Claim{Domain: fmt.Sprint("d", i), Generation: 1, Host: "a"})
			if err == nil && !v.Won {
				err = errors.New("lost")
			}
			errs <- err
		}()
	}
	for range domains {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// Who came too late for a round needed another.
	if n := strings.Count(b.calls(t), "off b"); n == 0 || n > domains/2 {
		t.Errorf("the peer was turned off %d times for %d domains", n, domains)
	}
	b.start(t)
	o.Delay, o.Dir = 50*time.Millisecond, o.Dir+"-2"
	f = openFence(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if v, err := f.turnOffAndGo(ctx); !errors.Is(err, ErrUnknown) || v {
		t.Fatalf("a caller that went: %v, %v", v, err)
	}
	f.rounds.Wait()
	if b.on("b") {
		t.Fatal("a fencing ended with its caller")
	}
	b.start(t)
	o.Delay, o.Dir = maxFenceDelay, o.Dir+"-3"
	f = openFence(t, o)
	done := make(chan error)
	go func() {
		_, err := f.Claim(t.Context(), claimOf("a", 1))
		done <- err
	}()
	for begun := false; !begun; {
		f.mu.Lock()
		begun = f.round != nil && f.round.wanted[claimOf("a", 1)]
		f.mu.Unlock()
	}
	if err := f.Withdraw(t.Context(), claimOf("a", 1)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrUndecided) || !b.on("b") {
		t.Fatalf("called off: %v", err)
	}
}

// A claim that comes while the power is asked for, for the last time, is not
// answered by that: the peer may have been off before, and is on since.
func TestFenceLate(t *testing.T) {
	b := newBoard(t)
	f := openFence(t, b.options("a", ""))
	write(t, b.dir+"/wait", "")
	errs := make(chan error)
	claim := func(domain string) {
		v, err := f.Claim(t.Context(), Claim{Domain: domain, Generation: 1, Host: "a"})
		if err == nil && !v.Won {
			err = errors.New("lost")
		}
		errs <- err
	}
	go claim("early")
	for asked := false; !asked; {
		out, _ := os.ReadFile(b.dir + "/log")
		asked = strings.Contains(string(out), "status b")
	}
	go claim("late")
	for begun := false; !begun; {
		r, err := f.begun.Inspect(t.Context(), "late")
		begun = err == nil && r.Generation == 1
	}
	if err := os.Remove(b.dir + "/wait"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got, want := b.calls(t), "off b, status b, off b, status b"; got != want {
		t.Errorf("the agent was asked %q, want %q", got, want)
	}
}

// turnOffAndGo is a claim whose caller does not wait.
func (f *Fence) turnOffAndGo(ctx context.Context) (bool, error) {
	err := f.turnOff(ctx, Claim{Domain: domain, Generation: 1, Host: "a"}, false)
	return err == nil, err
}

func TestFenceRefuses(t *testing.T) {
	b := newBoard(t)
	for why, tc := range map[string]struct {
		change func(*FenceOptions)
		want   string
	}{
		"no agent":         {func(o *FenceOptions) { o.Agent = "" }, "needs an agent"},
		"not installed":    {func(o *FenceOptions) { o.Agent = "fence_of_nobody" }, "package fence-agents"},
		"not a program":    {func(o *FenceOptions) { o.Agent = b.dir }, "not a program"},
		"relative":         {func(o *FenceOptions) { o.Agent = "./agent" }, "absolute"},
		"no fence agent":   {func(o *FenceOptions) { o.Agent = "/bin/true" }, "is no fence agent"},
		"no plug":          {func(o *FenceOptions) { o.Plug = "" }, "plug"},
		"two plugs":        {func(o *FenceOptions) { o.Plug = "a,b" }, "more than one"},
		"no directory":     {func(o *FenceOptions) { o.Dir = "" }, "directory"},
		"long delay":       {func(o *FenceOptions) { o.Delay = time.Hour }, "delay"},
		"unknown option":   {func(o *FenceOptions) { o.Options["ipaddress"] = "x" }, `knows no option "ipaddress"`},
		"our own option":   {func(o *FenceOptions) { o.Options["action"] = "on" }, "set by virt-ft"},
		"a dangerous one":  {func(o *FenceOptions) { o.Options["missing_as_off"] = "1" }, "remove it"},
		"two lines":        {func(o *FenceOptions) { o.Options["ip"] = "x\naction=on" }, "line ends"},
		"a line in a name": {func(o *FenceOptions) { o.Options["ip=x\naction"] = "on" }, "name"},
	} {
		o := b.options("a", "")
		tc.change(&o)
		f, err := OpenFence(t.Context(), o)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want one with %q", why, err, tc.want)
		}
	}
	if got := b.calls(t); got != "" {
		t.Errorf("the agent was asked %q", got)
	}
}

// The real thing, as far as it goes without power to cut: the options that
// docs give are in fence_virsh's metadata, and it says what cannot be reached.
func TestFenceVirsh(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/fence_virsh"); err != nil {
		t.Skip("/usr/sbin/fence_virsh is not installed (package fence-agents)")
	}
	o := FenceOptions{
		Agent: "fence_virsh", Plug: "host-b", Dir: t.TempDir(), Timeout: 30 * time.Second,
		Options: map[string]string{"ip": "127.0.0.1", "ipport": "1", "username": "root", "identity_file": filepath.Join(t.TempDir(), "key"), "ssh": "1"},
	}
	f := openFence(t, o)
	if _, err := f.Check(t.Context()); err == nil || errors.Is(err, ErrUnknown) {
		t.Fatalf("status of what cannot be reached: %v", err)
	}
	if v, err := f.Claim(t.Context(), claimOf("a", 1)); !errors.Is(err, ErrUndecided) || v.Won {
		t.Fatalf("%+v, %v", v, err)
	}
	o.Options["plugs"] = "host-b"
	if _, err := OpenFence(t.Context(), o); err == nil || !strings.Contains(err.Error(), `knows no option "plugs"`) {
		t.Fatalf("an option that it does not have: %v", err)
	}
}
