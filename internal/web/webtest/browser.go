// Package webtest starts a real browser for tests.
package webtest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Missing is why there is no browser here; empty when there is one.
func Missing() string {
	if _, err := exec.LookPath("chromium"); err != nil {
		return "chromium is not installed: apt-get install chromium"
	}
	return ""
}

// removeMax bounds how long the directories of a browser that has ended are
// written to: its own processes end after it.
const removeMax = 10 * time.Second

// Browser returns the context of a tab of a browser without a window, which is
// closed with the test, and asks nobody for anything by itself. The test goes on
// only if nothing is Missing.
func Browser(t *testing.T, ctx context.Context, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "virt-ft-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end := time.Now().Add(removeMax)
		for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
			if time.Now().After(end) {
				t.Error(err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	o := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.Env("TMPDIR=" + dir), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("hide-scrollbars", true), chromedp.Flag("mute-audio", true), chromedp.Flag("disable-dev-shm-usage", true)}
	for _, f := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-extensions", "disable-default-apps"} {
		o = append(o, chromedp.Flag(f, true))
	}
	ctx, end := chromedp.NewExecAllocator(ctx, append(o, more...)...)
	t.Cleanup(end)
	ctx, end = chromedp.NewContext(ctx)
	t.Cleanup(end)
	return ctx
}
