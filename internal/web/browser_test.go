package web

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/web/webtest"
)

// pictures is where screenshots are put, for somebody to look at.
var pictures = flag.String("pictures", "", "write screenshots of the status page into this directory")

// tab is a tab of a real browser, with all that it complained of and asked for.
type tab struct {
	ctx context.Context

	mu         sync.Mutex
	complaints []string
	asked      []string
}

// browse opens a tab; what a page gets wrong in it fails the test at its end.
func browse(t *testing.T) *tab {
	t.Helper()
	if why := webtest.Missing(); why != "" {
		t.Skip(why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	ctx = webtest.Browser(t, ctx, chromedp.WindowSize(1280, 900))
	b := &tab{ctx: ctx}
	chromedp.ListenTarget(ctx, b.listen)
	b.do(t, network.Enable(), runtime.Enable(), cdplog.Enable())
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.complaints {
			t.Errorf("the browser: %s", c)
		}
	})
	return b
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, e.ExceptionDetails.Error())
	case *runtime.EventConsoleAPICalled:
		for _, a := range e.Args {
			b.complaints = append(b.complaints, fmt.Sprintf("console.%s: %s", e.Type, a.Value))
		}
	case *cdplog.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	}
}

func (b *tab) do(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// until waits until an expression of JavaScript is true.
func (b *tab) until(t *testing.T, expression string) {
	t.Helper()
	if err := chromedp.Run(b.ctx, chromedp.Poll(expression, nil, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(20*time.Second))); err != nil {
		var text string
		_ = chromedp.Run(b.ctx, chromedp.Text("body", &text, chromedp.ByQuery))
		t.Fatalf("%s does not become true: %v\n%s", expression, err, text)
	}
}

func (b *tab) forget() (complaints []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	complaints, b.complaints = b.complaints, nil
	return complaints
}

// picture is taken when somebody wants to look.
func (b *tab) picture(t *testing.T, name string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	var png []byte
	b.do(t, chromedp.FullScreenshot(&png, 100))
	if err := os.WriteFile(filepath.Join(*pictures, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *tab) dark(t *testing.T, yes bool) {
	scheme := "light"
	if yes {
		scheme = "dark"
	}
	b.do(t, emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
}

// serve runs a real server for f and returns its address and what stops it.
func serve(t *testing.T, f *feed, listen string) (addr string, stop func()) {
	t.Helper()
	s := NewServer(f.options(listen))
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s.Addr().String(), stop
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string
	return string(b)
}

const stateOf = `document.querySelector('[data-domain="%s"] .state b')?.textContent`

func says(domain, state string) string {
	return fmt.Sprintf(stateOf+" === %s", domain, quote(state))
}

// TestPage uses one browser for all: that is what takes the time.
func TestPage(t *testing.T) {
	b := browse(t)
	t.Run("three", func(t *testing.T) { threeDomains(t, b) })
	t.Run("many", func(t *testing.T) { manyDomains(t, b) })
}

func threeDomains(t *testing.T, b *tab) {
	now := time.Now()
	f := newFeed(now, 3)
	addr, stop := serve(t, f, ":0")
	b.do(t, chromedp.Navigate("http://"+addr+"/"))
	b.until(t, says("web1", "protected"))
	b.until(t, says("mail", "syncing"))
	b.until(t, `document.getElementById("alive").textContent === "live"`)
	b.until(t, `document.querySelectorAll('[data-domain="web1"] .chart polyline').length >= 6`)
	b.until(t, `document.querySelector('[data-domain="web1"] .glyph').getAttribute("aria-label") === "safe"`)
	b.until(t, `document.querySelectorAll("#event-list li").length === 4`)
	b.picture(t, "page-3-light")
	b.do(t, chromedp.Click(`[data-minutes="60"]`, chromedp.ByQuery))
	b.until(t, `document.querySelector('[data-domain="web1"] .band').getAttribute("aria-label") === "states: standby, active, syncing, protected"`)
	b.dark(t, true)
	b.picture(t, "page-3-dark-hour")

	// The guest's host is lost: what was a standby goes on, and the page says so.
	st := statusOf(1, now)
	st.State, st.FailoverMs = "active", 180
	f.set(time.Now(), statusOf(0, now), st, statusOf(2, now))
	b.until(t, says("db-standby", "active"))
	b.until(t, `document.querySelector('[data-domain="db-standby"] .glyph').getAttribute("aria-label") === "in trouble"`)
	b.until(t, `document.title.startsWith("▲ 1")`)
	// Texts are texts.
	st = statusOf(0, now)
	st.Error, st.Peer = `<img src=x onerror="document.title='owned'">`, `<b>B</b>`
	f.set(time.Now(), st)
	b.until(t, `document.querySelector('[data-domain="web1"] .notes').textContent.startsWith("<img")`)
	b.until(t, says("mail", "ended"))

	// The page itself asks nobody but the daemon.
	b.mu.Lock()
	for _, u := range b.asked {
		if !strings.HasPrefix(u, "http://"+addr+"/") && !strings.HasPrefix(u, "data:") {
			t.Errorf("the page asks for %s", u)
		}
	}
	b.mu.Unlock()
	if c := b.forget(); len(c) > 0 {
		t.Errorf("the browser complains: %q", c)
	}

	stop()
	b.until(t, `document.getElementById("alive").textContent.startsWith("the daemon on hostA does not answer")`)
	b.picture(t, "page-gone-dark")
	b.forget() // it says that nobody answers, and is right
	serve(t, f, addr)
	b.until(t, `document.getElementById("alive").textContent === "live"`)
	b.forget()
	b.do(t, chromedp.Navigate("about:blank"))
	b.dark(t, false)
}

// manyDomains looks at thirty domains, also on a phone, and at none.
func manyDomains(t *testing.T, b *tab) {
	addr, _ := serve(t, newFeed(time.Now(), 30), ":0")
	b.do(t, chromedp.Navigate("http://"+addr+"/"))
	b.until(t, `document.querySelectorAll(".domain").length === 30`)
	b.until(t, `document.querySelectorAll(".domain[open]").length === 0`)
	b.until(t, `document.querySelectorAll(".spark polyline").length >= 14`)
	b.picture(t, "page-30-light")
	b.do(t, chromedp.Click(`[data-domain="queue"] summary`, chromedp.ByQuery))
	b.until(t, `document.querySelectorAll('[data-domain="queue"] .chart polyline').length >= 6`)
	b.do(t, emulation.SetDeviceMetricsOverride(390, 844, 2, true))
	b.until(t, `document.documentElement.scrollWidth <= 390`)
	b.picture(t, "page-30-phone")

	alone := newFeed(time.Now(), 0)
	empty, _ := serve(t, alone, ":0")
	b.do(t, emulation.ClearDeviceMetricsOverride(), chromedp.Navigate("http://"+empty+"/"))
	b.until(t, `!document.getElementById("none").hidden`)
	alone.set(time.Now(), control.Status{Domain: "new", UUID: "n", Role: control.RolePrimary, State: "connecting", Peer: "hostB"})
	b.until(t, says("new", "connecting"))
}
