package report

import (
	"bytes"
	"context"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/web/webtest"
)

// pictures is where screenshots are put, for somebody to look at.
var pictures = flag.String("pictures", "", "write a screenshot of a report into this directory")

// hour is of a guest that came here by a failover 40 minutes ago.
func hour() *Report {
	now := time.Date(2030, 5, 17, 14, 3, 20, 0, time.UTC)
	h := control.History{Domain: "web<1>", UUID: "00000000-0000-4000-8000-000000000001", Host: "hostB", Now: now, SlotSeconds: 5, Live: true,
		Status: control.Status{Domain: "web<1>", Role: control.RolePrimary, State: control.StateProtected, Peer: "hostA", Generation: 4, Arbiter: "etcd", Since: now.Add(-38 * time.Minute),
			MemoryBytes: 4 << 30, FailoverMs: 182, Warnings: []string{"a warning & a half"}, Pacing: control.Pacing{MinNs: 2e6, IdleNs: 1e8, PauseShareMax: .2},
			Clock: control.ClockStatus{State: control.ClockCorrected, DriftUs: 120}},
		Settings: "host = \"hostB\"\n[web]\nlisten = \":7880\"\n"}
	for s := -3600; s < 0; s += 5 {
		slot := control.HistorySlot{At: now.Add(time.Duration(s) * time.Second), Role: control.RolePrimary, State: control.StateProtected, Generation: 4}
		switch {
		case s < -41*60:
			slot.Role, slot.State, slot.LastCommitAgeMs = control.RoleBackup, control.StateStandby, 15
		case s < -40*60:
			slot.Role, slot.State = control.RoleBackup, "active"
		case s < -38*60:
			slot.State = control.StateSyncing
		default:
			x := 1 + .5*math.Sin(float64(s)/300) + .2*math.Sin(float64(s)/11)
			of := func(v float64) control.Spread {
				return control.Spread{Min: float32(v / 2), P50: float32(v * x), P99: float32(v * x * 1.6), Max: float32(v * x * (2 + .5*math.Abs(math.Sin(float64(s)))))}
			}
			slot.Epochs, slot.PausedMs, slot.AckMs, slot.IntervalMs, slot.ShipMs = 240, of(4), of(7), of(20), of(6)
			slot.Phases = control.Phases{StopMs: .8, GateMs: .1, ScanMs: .4 * x, CopyMs: 1.6 * x, ClockMs: .1, DeviceMs: 1.1}
			slot.DirtyPagesSum, slot.SentBytesSum, slot.OldestMs, slot.LastCommitAgeMs = uint64(20000*x), uint64(90e6*x), 9*x, 12*x
		}
		h.Slots = append(h.Slots, slot)
	}
	for n := range uint64(150) {
		h.Epochs = append(h.Epochs, control.Epoch{Epoch: 9000 + n, Generation: 4, At: now.Add(time.Duration(n)*20*time.Millisecond - 3*time.Second), IntervalMs: 20, PausedMs: 4.12,
			Phases: control.Phases{StopMs: .8, CopyMs: 2}, LivePages: 300, PausePages: 40, SentBytes: 1 << 20, ShipMs: 5, AckMs: 7})
	}
	h.Events = []control.Event{{At: now.Add(-40 * time.Minute), Kind: control.EventState, Role: control.RoleBackup, State: "active", Text: "backup active: <script>alert(1)</script>"},
		{At: now.Add(-38 * time.Minute), Kind: control.EventState, Role: control.RolePrimary, State: control.StateProtected, Text: "primary protected"}}
	return &Report{History: h, Version: control.Version{Version: "1.0.0", Revision: "0123456789abcdef", Go: "go1.25"},
		Check: &control.CheckReport{HostName: "hostB", DomainName: "web<1>", Host: []control.Finding{{ID: "kernel", Item: "kernel", Level: control.LevelOK, Text: "6.18 has what is needed"},
			{ID: "clock", Item: "clocks", Level: control.LevelWarn, Text: "they may be 80 ms apart", Remedy: "let both follow one source of time"}}}}
}

func write(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReportHasAll(t *testing.T) {
	text := write(t, hour())
	if n := strings.Count(text, "<svg"); n != len(charts()) {
		t.Errorf("%d plots of %d", n, len(charts()))
	}
	if n := strings.Count(text, "<td>4/9"); n != epochsShown {
		t.Errorf("%d epochs of %d", n, epochsShown)
	}
	for _, want := range []string{"web&lt;1&gt;", "backup active: &lt;script&gt;", "182 ms from the detection", "a warning &amp; a half", "they may be 80 ms apart", "listen = &#34;:7880&#34;", "virt-ft 1.0.0 (0123456789ab)"} {
		if !strings.Contains(text, want) {
			t.Errorf("not in it: %s", want)
		}
	}
	for _, never := range []string{"<script", "http-equiv=\"refresh", "src=", "@import", "url("} {
		if strings.Contains(text, never) {
			t.Errorf("in it: %s", never)
		}
	}
}

// A domain of which nothing is known yet, and one that cannot be checked.
func TestReportOfNothing(t *testing.T) {
	text := write(t, &Report{History: control.History{Domain: "new", Now: time.Unix(1e9, 0), SlotSeconds: 5}, CheckFailed: "libvirt does not answer"})
	for _, want := range []string{"No checkpoint was taken here", "None are known", "It could not be asked: libvirt does not answer"} {
		if !strings.Contains(text, want) {
			t.Errorf("not in it: %s", want)
		}
	}
}

// A browser opens the file without a complaint, and asks nobody for anything.
func TestReportInABrowser(t *testing.T) {
	if why := webtest.Missing(); why != "" {
		t.Skip(why)
	}
	file := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(file, []byte(write(t, hour())), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx = webtest.Browser(t, ctx, chromedp.WindowSize(1100, 900))
	seen := make(chan string, 1000)
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			seen <- e.ExceptionDetails.Error()
		case *cdplog.EventEntryAdded:
			seen <- e.Entry.Text
		case *network.EventRequestWillBeSent:
			if u := e.Request.URL; u != "file://"+file && !strings.HasPrefix(u, "data:") {
				seen <- "it asks for " + u
			}
		}
	})
	var wide bool
	var lines int
	err := chromedp.Run(ctx, network.Enable(), runtime.Enable(), cdplog.Enable(), chromedp.Navigate("file://"+file),
		chromedp.Evaluate(`document.documentElement.scrollWidth > innerWidth`, &wide),
		chromedp.Evaluate(`[...document.querySelectorAll("figure polyline, figure polygon")].filter(e => e.getBoundingClientRect().width > 300).length`, &lines))
	if err != nil {
		t.Fatal(err)
	}
	if wide || lines < 20 {
		t.Errorf("wider than the window: %v; %d lines are drawn", wide, lines)
	}
	if *pictures != "" {
		var png []byte
		if err := chromedp.Run(ctx, chromedp.FullScreenshot(&png, 100)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(*pictures, "report.png"), png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for len(seen) > 0 {
		t.Error(<-seen)
	}
}
