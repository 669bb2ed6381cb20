package web

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, addr, path, host string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestServer(t *testing.T) {
	addr, _ := serve(t, newFeed(time.Now(), 2), ":0")
	if host, _, _ := net.SplitHostPort(addr); !net.ParseIP(host).IsLoopback() {
		t.Errorf("a port alone listens on %s", addr)
	}
	for _, path := range []string{"/", "/page.js", "/chart.js", "/page.css", "/metrics", "/status.json"} {
		resp, b := get(t, addr, path, "")
		if resp.StatusCode != 200 || len(b) == 0 {
			t.Errorf("%s: %s", path, resp.Status)
		}
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	for _, path := range []string{"/v1/status", "/page/", "/web.go", "/debug/pprof/"} {
		if resp, _ := get(t, addr, path, ""); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	resp, err := http.Post("http://"+addr+"/status.json", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
}

// A name that somebody made resolve to us is not ours.
func TestHostHeader(t *testing.T) {
	addr, _ := serve(t, newFeed(time.Now(), 0), ":0")
	_, port, _ := net.SplitHostPort(addr)
	for host, want := range map[string]int{
		"localhost": 200, "LocalHost.:" + port: 200, "127.0.0.1:" + port: 200, "[::1]:" + port: 200, "hosta:" + port: 200,
		"evil.example": 421, "hostA.evil.example:" + port: 421, "127.0.0.1.evil.example": 421, "localhost.evil.example:80": 421,
	} {
		if resp, _ := get(t, addr, "/status.json", host); resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", host, resp.Status, want)
		}
	}
}

func TestStatusSince(t *testing.T) {
	now := time.Now()
	addr, _ := serve(t, newFeed(now, 1), ":0")
	slots := func(query string) int {
		_, b := get(t, addr, "/status.json"+query, "")
		var s state
		if err := json.Unmarshal(b, &s); err != nil || len(s.Domains) != 1 {
			t.Fatalf("%v: %.200s", err, b)
		}
		return len(s.Domains[0].Slots.At)
	}
	all := slots("")
	if all < 700 || all > 720 {
		t.Errorf("%d slots of an hour", all)
	}
	if n := slots("?since=" + time.Now().Add(-20*time.Second).Format("0")); n != all {
		t.Errorf("a since that is no number leaves %d slots", n)
	}
	if n := slots("?since=" + jsonNumber(now.Add(-20*time.Second).Unix())); n < 3 || n > 5 {
		t.Errorf("%d slots of 20 s", n)
	}
}

func jsonNumber(n int64) string {
	b, _ := json.Marshal(n) // a number
	return string(b)
}

// An address that others can reach is said to be one.
func TestOpenAddressIsAWarning(t *testing.T) {
	for listen, want := range map[string]bool{"0.0.0.0:0": true, ":0": false, "127.0.0.1:0": false} {
		var log bytes.Buffer
		o := newFeed(time.Now(), 0).options(listen)
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		s := NewServer(o)
		if err := s.Open(context.Background()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.Close()
		if warned := strings.Contains(log.String(), "level=WARN"); warned != want {
			t.Errorf("%s: %s", listen, log.String())
		}
	}
}

// Connections beyond the bound wait, and get their turn.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := newBounded(inner, 2)
	accepted := make(chan net.Conn, 3)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, second := <-accepted, <-accepted
	if len(ln.free) != 2 {
		t.Errorf("%d turns taken of 2", len(ln.free))
	}
	first.Close()
	first.Close() // counts once
	third := <-accepted
	second.Close()
	third.Close()
	ln.Close()
	if _, more := <-accepted; more {
		t.Error("a closed listener accepts")
	}
}
