// Package web shows what a daemon knows to those who only look: metrics for
// Prometheus, and a status page that lives in one browser tab. Nothing here
// changes anything, and nothing asks who looks: it listens where the operator
// says, which is nowhere by default, and on the loopback address unless an
// address is named.
package web

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/watch"
)

const (
	connectionsMax  = 64 // at once; more wait in the kernel
	headerBytesMax  = 16 << 10
	readTimeMax     = 5 * time.Second
	writeTimeMax    = 20 * time.Second
	idleTimeMax     = 30 * time.Second
	eventsShown     = 200
	closeTimeMax    = time.Second
	warningsShown   = 4
	warningBytesMax = 300
)

//go:embed page
var page embed.FS

// Options say what a Server shows and where. All but Log and Names are required.
type Options struct {
	Listen string   // ADDRESS:PORT; without an address the loopback one
	Names  []string // under which browsers may ask, besides localhost and addresses
	Watch  *watch.Host
	Facts  func() Facts                // asked at each request, concurrently
	Events func(n int) []control.Event // the last n, the oldest first
	Status func() []control.Status     // of all domains, now
	Log    *slog.Logger                // nil: none
}

// Server is the status page, its data and metrics. Open it, then Serve.
type Server struct {
	o    Options
	http *http.Server
	ln   net.Listener
}

// NewServer makes a server. It does nothing before Open.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o}
	files, err := fs.Sub(page, "page")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	static := http.FileServerFS(files)
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", static)
	mux.Handle("GET /page.js", static)
	mux.Handle("GET /chart.js", static)
	mux.Handle("GET /page.css", static)
	mux.Handle("GET /metrics", Metrics(o.Watch, o.Facts))
	mux.HandleFunc("GET /status.json", s.status)
	s.http = &http.Server{
		Handler: s.guarded(mux), ReadTimeout: readTimeMax, WriteTimeout: writeTimeMax, IdleTimeout: idleTimeMax,
		MaxHeaderBytes: headerBytesMax, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Open listens. An address that others can reach is a warning in the log: whoever
// reaches it sees the names of guests and hosts.
func (s *Server) Open(ctx context.Context) error {
	host, port, err := net.SplitHostPort(s.o.Listen)
	if err != nil {
		return err
	}
	if host == "" {
		host = "localhost"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	if a, ok := ln.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
		s.o.Log.Warn("the status page is open to whoever can reach it, and not encrypted: let a proxy with authentication stand before it, or set web.listen to a port alone",
			"listen", ln.Addr())
	}
	s.ln = newBounded(ln, connectionsMax)
	return nil
}

// Addr is where the server listens; nil before Open.
func (s *Server) Addr() net.Addr {
	if s.ln == nil {
		return nil
	}
	return s.ln.Addr()
}

// Serve answers until ctx ends, then closes the server and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		s.Close()
		return err
	}
	return nil
}

// Close stops the server. It may be called more than once, and without Serve.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeMax)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	if s.ln != nil {
		s.ln.Close()
	}
}

// guarded lets nothing in but questions that are meant for this host, and tells
// browsers to be strict with the answers.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !s.meant(r.Host) {
			http.Error(w, "virt-ft: this is not the name of this host", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// meant tells whether a Host header names this server. A name that somebody made
// resolve to our address, so that a browser takes a script of theirs for ours, is
// not one of ours (DNS rebinding).
func (s *Server) meant(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if _, err := netip.ParseAddr(host); err == nil {
		return true // an address is resolved by nobody
	}
	if host == "localhost" {
		return true
	}
	for _, name := range s.o.Names {
		if strings.EqualFold(name, host) {
			return true
		}
	}
	return false
}

// status answers with what the page shows. since, in seconds since 1970, leaves out
// the slots that began before.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	since, err := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if err != nil || since < 0 || since > math.MaxInt32*2 {
		since = 0
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.state(time.Now(), time.Unix(since, 0)))
}
