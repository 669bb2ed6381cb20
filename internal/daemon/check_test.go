package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/hostmem"
	"github.com/virt-ft/virt-ft/internal/pki"
	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// TestCheckPage: docs/CHECK.md explains every id that the code has, and no other.
func TestCheckPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/CHECK.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		if explained[m[1]] {
			t.Errorf("docs/CHECK.md explains %s twice", m[1])
		}
		explained[m[1]] = true
	}
	used := map[string]bool{}
	id := regexp.MustCompile(`^(host|peer|link|domain)\.[a-z_]+$`)
	for _, dir := range []string{".", "../probe"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil && id.MatchString(s) {
						used[s] = true
					}
				}
				return true
			})
		}
	}
	for _, s := range slices.Sorted(maps.Keys(used)) {
		if !explained[s] {
			t.Errorf("docs/CHECK.md does not explain %s", s)
		}
		delete(explained, s)
	}
	for s := range explained {
		t.Errorf("docs/CHECK.md explains %s, which is not found by anything", s)
	}
}

// Looks that hang are given up, and are not begun without end.
func TestGatherHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, release := new(Daemon), make(chan struct{})
		hang := one("host.a", "a", func(context.Context) control.Finding { <-release; return okay("host.a", "a", "too late") })
		for range looksMax {
			d.gather(t.Context(), time.Second, []look{hang})
		}
		fs := d.gather(t.Context(), time.Hour, []look{hang, hang})
		if len(fs) != 2 || !strings.Contains(fs[1].Text, "have not returned") {
			t.Errorf("%+v", fs)
		}
		close(release)
		synctest.Wait()
		if fs := d.gather(t.Context(), time.Second, []look{hang}); len(fs) != 1 || fs[0].Level != control.LevelOK {
			t.Errorf("afterwards: %+v", fs)
		}
	})
}

// One look that hangs, or is slow, hides no other.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		start := time.Now()
		fs := new(Daemon).gather(t.Context(), 4*time.Second, []look{
			one("host.a", "a", func(context.Context) control.Finding { return okay("host.a", "a", "here") }),
			one("host.b", "b", func(context.Context) control.Finding { <-release; return okay("host.b", "b", "too late") }),
			one("host.c", "c", func(ctx context.Context) control.Finding {
				<-ctx.Done()
				return failed("host.c", "c", "wait", ctx.Err())
			}),
			one("host.d", "d", func(context.Context) control.Finding {
				time.Sleep(3 * time.Second)
				return okay("host.d", "d", "slow")
			}),
		})
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		close(release)
		var got []string
		for _, f := range fs {
			got = append(got, string(f.Level)+" "+f.ID)
			if f.Level == control.LevelFail && f.Remedy == "" {
				t.Errorf("%+v", f)
			}
		}
		if want := []string{"ok host.a", "fail host.b", "fail host.c", "ok host.d"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"7.2.0", "7.2.0", false}, {"7.1.9", "7.2.0", true}, {"10.0.0", "9.9.9", false}, {"9.0.0", "10.0.0", true}, {"7.2.3", "7.2.22", true}, {"", "7.2.0", false}, {"7.2.0", "x", false}, {"8", "7.2.0", false}} {
		if got := older(c.a, c.b); got != c.want {
			t.Errorf("older(%q, %q) is %v", c.a, c.b, got)
		}
	}
}

func level(t *testing.T, fs []control.Finding, id string) control.Finding {
	t.Helper()
	i := slices.IndexFunc(fs, func(f control.Finding) bool { return f.ID == id })
	if i < 0 {
		t.Fatalf("nothing of %s in %+v", id, fs)
	}
	if f := fs[i]; f.Level != control.LevelOK && f.Remedy == "" {
		t.Errorf("no remedy: %+v", f)
	}
	return fs[i]
}

func TestJudgeVersions(t *testing.T) {
	d := &Daemon{cfg: config.Default()}
	mine := d.Version().Version
	for _, c := range []struct {
		software, qemu, libvirt string
		want                    [3]control.Level // of virt-ft, QEMU, libvirt
	}{
		{mine, "7.2.22", "9.0.0", [3]control.Level{"ok", "ok", "ok"}},
		{"0.0.1", "7.2.22", "9.0.0", [3]control.Level{"warn", "ok", "ok"}},
		{mine, "7.2.3", "9.0.0", [3]control.Level{"ok", "warn", "ok"}}, // one of two hosts is updated first
		{mine, "7.2.30", "9.0.0", [3]control.Level{"ok", "ok", "ok"}},
		{mine, "7.1.99", "9.0.0", [3]control.Level{"ok", "fail", "ok"}},
		{mine, "10.0.0", "8.0.0", [3]control.Level{"ok", "warn", "warn"}},
		{mine, "", "", [3]control.Level{"ok", "warn", "warn"}},
	} {
		fs := d.judgeVersions(hostVersion{QEMU: "7.2.22", Libvirt: "9.0.0"}, peerAnswer{Software: c.software, Versions: hostVersion{QEMU: c.qemu, Libvirt: c.libvirt}})
		for i, id := range []string{"peer.version", "peer.qemu", "peer.libvirt"} {
			if f := level(t, fs, id); f.Level != c.want[i] {
				t.Errorf("%+v: %+v", c, f)
			}
		}
	}
}

// What a peer sends is not trusted to be short, or about itself.
func TestBoundedFindings(t *testing.T) {
	long := strings.Repeat("ä", peerTextMax)
	many := slices.Repeat([]control.Finding{{ID: "host.kernel", Level: "terrible", Text: long, Item: long, Remedy: long}}, 2*peerFindingsMax)
	fs := bounded(many)
	if len(fs) != peerFindingsMax {
		t.Errorf("%d findings", len(fs))
	}
	for _, f := range fs {
		if f.ID != "peer.other" || f.Level != control.LevelWarn || len(f.Text) > peerTextMax || len(f.Item) > peerTextMax || len(f.Remedy) > peerTextMax {
			t.Fatalf("%s %s, %d bytes", f.ID, f.Level, len(f.Text))
		}
	}
	if fs := bounded([]control.Finding{{ID: "peer.disk", Level: control.LevelFail, Text: "full"}}); fs[0].ID != "peer.disk" || fs[0].Level != control.LevelFail {
		t.Errorf("%+v", fs)
	}
}

func TestPeerRemedy(t *testing.T) {
	for want, err := range map[string]error{
		"transport.mode": fmt.Errorf("x: %w", replica.ErrMalformed),
		"start virt-ft":  fmt.Errorf("x: %w", replica.ErrPeerClosed),
		"firewall":       fmt.Errorf("x: %w", replica.ErrPeerSilent),
		"renew":          &replica.ConnError{Err: &replica.TransportError{Err: errors.New("expired"), Remedy: "renew it"}},
		"wait":           &replica.RefusedError{Refuse: replica.Refuse{Code: replica.CodeBusy, Remedy: "wait for its end"}},
		"log there":      &replica.RefusedError{Refuse: replica.Refuse{Code: replica.CodeBusy}},
	} {
		if got := peerRemedy(err); !strings.Contains(got, want) {
			t.Errorf("%v: %q", err, got)
		}
	}
}

func TestJudgeClocks(t *testing.T) {
	for _, c := range []struct {
		ahead, err time.Duration
		want       control.Level
	}{{0, time.Millisecond, "ok"}, {99 * time.Millisecond, 0, "ok"}, {-time.Second, time.Millisecond, "warn"}, {time.Second, 950 * time.Millisecond, "ok"}, {time.Hour, time.Second, "warn"}} {
		if f := judgeClocks(c.ahead, c.err); f.Level != c.want {
			t.Errorf("%v ± %v: %+v", c.ahead, c.err, f)
		}
	}
}

func TestJudgeCertificate(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for want, c := range map[control.Level]pki.Certificate{
		"ok":   {Use: pki.UseServer, Names: []string{"host-a"}, NotAfter: now.AddDate(1, 0, 0)},
		"warn": {Use: pki.UseServer, Names: []string{"host-a"}, NotAfter: now.AddDate(0, 0, 9)},
		"fail": {Use: pki.UseServer, Err: errors.New("is over")},
	} {
		f := judgeCertificate(c, now)
		if f.Level != want || f.Level != control.LevelOK && f.Remedy == "" {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}

// TestAnswerMemory: a standby must have room beside what others were promised.
func TestAnswerMemory(t *testing.T) {
	const mib = 1 << 20
	d := &Daemon{cfg: config.Default(), memory: hostmem.New(hostmem.Options{FloorBytes: mib, Read: func() (hostmem.Memory, error) {
		return hostmem.Memory{TotalBytes: 2000 * mib, AvailableBytes: 1001 * mib}, nil
	}})}
	for bytes, want := range map[uint64]control.Level{300: "ok", 800: "warn", 1200: "fail"} {
		if f := d.answerMemory("web1", hostmem.Need{Bytes: bytes * mib}); f.Level != want || want != "ok" && f.Remedy == "" {
			t.Errorf("%d MiB: %+v", bytes, f)
		}
	}
	if _, err := d.memory.Reserve("web2", hostmem.Need{Bytes: 900 * mib}); err != nil {
		t.Fatal(err)
	}
	if f := d.answerMemory("web1", hostmem.Need{Bytes: 300 * mib}); f.Level != control.LevelFail {
		t.Errorf("beside a promise: %+v", f)
	}
	if f := d.answerMemory("web2", hostmem.Need{Bytes: 300 * mib}); f.Level != control.LevelOK {
		t.Errorf("instead of its own promise: %+v", f)
	}
}

func TestForetell(t *testing.T) {
	d := &Daemon{cfg: config.Default()}
	g := &guest{dirtyBps: 50 << 20, dirty: true,
		ram:   func() (ram, error) { return ram{bytes: 512 << 20}, nil },
		disks: func() ([]replica.Disk, error) { return []replica.Disk{{UsedBytes: 512 << 20}}, nil }}
	link := &linkFacts{bandwidthBps: 100 << 20, rtts: []time.Duration{10 * time.Millisecond}}
	fs := d.foretell(g, link)
	if f := level(t, fs, "domain.sync"); !strings.Contains(f.Text, "10.24s") {
		t.Errorf("1024 MiB at 100 MiB/s: %+v", f)
	}
	// Each epoch brings what the one before it left behind: 10 ms, and half of that again, and so on.
	if f := level(t, fs, "domain.pace"); f.Level != control.LevelOK || !strings.Contains(f.Text, "about 20ms") {
		t.Errorf("%+v", f)
	}
	g.dirtyBps = 200 << 20
	if f := level(t, d.foretell(g, link), "domain.pace"); f.Level != control.LevelWarn {
		t.Errorf("a guest that writes faster than the link: %+v", f)
	}
	g.dirty = false
	if fs := d.foretell(g, link); len(fs) != 1 {
		t.Errorf("nothing known of the guest: %+v", fs)
	}
	if fs := d.foretell(g, &linkFacts{}); len(fs) != 0 {
		t.Errorf("nothing known of the link: %+v", fs)
	}
}

// What virt judges has an id of its own.
func TestDomainIDs(t *testing.T) {
	for item, want := range map[string]string{"disk vda": "domain.disk", "memory": "domain.memory", "memory slots": "domain.memory_slots", "memory device 0": "domain.memory_device",
		"device hyperspace": "domain.device", "cpu": "domain.cpu", "vcpu": "domain.vcpu", "channel org.qemu.guest_agent.0": "domain.channel", "state": "domain.state", "weather": "domain.other"} {
		if f := fromVirt("domain", virt.Finding{Item: item, Level: virt.Warn, Text: "t", Remedy: "r"})[0]; f.ID != want || f.Item != item || f.Level != control.LevelWarn || f.Text != "t" || f.Remedy != "r" {
			t.Errorf("%s: %+v", item, f)
		}
	}
	items := regexp.MustCompile(`v\.(?:ok|warn|fail)\((?:fmt\.Sprintf\()?"([^"%]+?)(?: ?%| |")`)
	files, _ := filepath.Glob("../virt/judge*.go")
	n := 0
	for _, name := range append(files, "../virt/needs.go") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range items.FindAllStringSubmatch(string(text), -1) {
			n++
			a, b := fromVirt("domain", virt.Finding{Item: m[1]})[0].ID, fromVirt("host", virt.Finding{Item: m[1]})[0].ID
			if a == "domain.other" && b == "host.other" && m[1] != "launch" && m[1] != "domain" { // the first words of two
				t.Errorf("%s: %q has no id", name, m[1])
			}
		}
	}
	if n < 40 {
		t.Errorf("only %d items were found in package virt", n)
	}
}

type power struct {
	on  bool
	err error
}

func (p power) Check(context.Context) (bool, error) { return p.on, p.err }

func TestCheckFence(t *testing.T) {
	for want, p := range map[control.Level][]power{
		control.LevelOK: {{on: true}}, control.LevelWarn: {{on: false}, {err: fmt.Errorf("fence: %w", context.DeadlineExceeded)}}, control.LevelFail: {{err: errors.New("login failed")}},
	} {
		for _, p := range p {
			if f := level(t, []control.Finding{checkFence(t.Context(), p)}, "host.arbiter"); f.Level != want {
				t.Errorf("%+v: %+v", p, f)
			}
		}
	}
}

// FuzzQuestion: whatever a peer asks is refused or makes sense.
func FuzzQuestion(f *testing.F) {
	good, _ := json.Marshal(peerQuestion{Arbiter: "file", PatienceNs: 1e9, Guest: &peerNeeds{Needs: virt.Needs{Name: "web1", UUID: "5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001"},
		Memory: &hostmem.Need{Bytes: 1 << 30}, Disks: []replica.Disk{{Name: "vda", SizeBytes: 1 << 30, Source: "/a"}}}})
	for _, s := range []string{string(good), "{}", "[]", `{"guest":{}}`, `{"guest":{"name":"a","uuid":"x"}}`, `{"patience_ns":-1}`, `{"newer":{"than":"us"}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q peerQuestion
		if json.Unmarshal(b, &q) != nil || q.Guest == nil || q.Guest.check() != nil {
			return
		}
		if q.Guest.Name == "" || len(q.Guest.Disks) > replica.MaxDisks || len(q.Guest.Networks) > peerNeedsMax {
			t.Errorf("%+v", q.Guest)
		}
	})
}

// A daemon that is asked nonsense says so, and does nothing.
func TestAnswerNonsense(t *testing.T) {
	d := &Daemon{cfg: config.Default()}
	for _, q := range []string{"", "[", `{"guest":{"name":"x","uuid":"y"}}`, `{"guest":{"name":"x","uuid":"5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001","disks":[{"Name":"vda"}]}}`} {
		if a, err := d.answerQuestion(t.Context(), replica.Peer{}, nil, []byte(q)); err == nil {
			t.Errorf("%s: %s", q, a)
		}
	}
}
