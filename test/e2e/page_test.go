package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/web/webtest"
)

// webPort is where the daemons of these tests serve their status page, on each
// host's loopback address.
const webPort = "7880"

// webSettings are TOML for that.
func webSettings() string { return fmt.Sprintf("[web]\nlisten = \":%s\"\n", webPort) }

// screen is a real browser that shows the status page of one host.
type screen struct{ ctx context.Context }

// watch opens the status pages of both hosts in a browser, when long stories are
// asked for; nil without one.
func watch(p *pair) map[*lab.Host]*screen {
	p.t.Helper()
	if !long() { // internal/web looks at the page itself
		return nil
	}
	if why := webtest.Missing(); why != "" {
		p.t.Log("the status page is not looked at: " + why)
		return nil
	}
	// Without this it would be killed with the thread that started it, and the lab's
	// threads end when they come back from a host.
	ctx := webtest.Browser(p.t, p.ctx, chromedp.ModifyCmdFunc(func(*exec.Cmd) {}))
	screens := map[*lab.Host]*screen{}
	for _, h := range p.Hosts() {
		var end context.CancelFunc
		ctx, end = chromedp.NewContext(ctx) // the second is a tab of the first's browser
		p.t.Cleanup(end)
		screens[h] = &screen{ctx}
		p.must(chromedp.Run(ctx, chromedp.Navigate("http://"+bridgeInto(p.t, h)+"/")))
	}
	return screens
}

// shows waits until the page of a host says that the domain is in a state.
func (p *pair) shows(screens map[*lab.Host]*screen, h *lab.Host, domain, state string) {
	p.t.Helper()
	if screens == nil {
		return
	}
	is := fmt.Sprintf(`document.querySelector('[data-domain=%q] .state b')?.textContent === %q`, domain, state)
	if err := chromedp.Run(screens[h].ctx, chromedp.Poll(is, nil, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(stepMax))); err != nil {
		var text string
		_ = chromedp.Run(screens[h].ctx, chromedp.Text("body", &text, chromedp.ByQuery))
		p.t.Fatalf("the page of %s does not show %s as %s: %v\n%s", h.Name, domain, state, err, text)
	}
}

// bridgeInto returns an address here behind which is the host's status page.
func bridgeInto(t *testing.T, h *lab.Host) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			here, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			var there net.Conn
			if err := h.Inside(func() (err error) {
				there, err = net.Dial("tcp", "127.0.0.1:"+webPort)
				return err
			}); err != nil {
				here.Close()
				continue
			}
			go func() { io.Copy(there, here); there.Close() }()
			go func() { io.Copy(here, there); here.Close() }()
		}
	}()
	return ln.Addr().String()
}

// remembered looks at what a host that took over can tell of it: its report and its
// metrics.
func remembered(p *pair, h *lab.Host, domain string) {
	p.t.Helper()
	text, err := h.Ctl(p.step(), "report", domain, "-o", "-")
	p.must(err)
	for _, want := range []string{"<title>" + domain + " on " + h.Name, "backup active", "<svg"} {
		if !strings.Contains(text, want) {
			p.t.Errorf("the report of %s has no %q", h.Name, want)
		}
	}
	var metrics string
	p.must(h.Inside(func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+webPort)
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprint(c, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
		b, err := io.ReadAll(c)
		metrics = string(b)
		return err
	}))
	for _, want := range []string{`virt_ft_failovers_total{cause="handed over"} 1`, fmt.Sprintf(`virt_ft_state{domain=%q,role="backup",state="active"} 1`, domain)} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			p.t.Errorf("the metrics of %s have no %s", h.Name, want)
		}
	}
}
