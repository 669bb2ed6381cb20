package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	requestBytesMax   = 64 << 10
	readHeaderTimeMax = 5 * time.Second
	readBodyTimeMax   = 5 * time.Second
	idleTimeMax       = 2 * time.Minute
	headerBytesMax    = 16 << 10
	closeTimeMax      = 10 * time.Second
	progressQueueMax  = 16
)

// ServerOptions say where a Server listens.
type ServerOptions struct {
	Socket string
	Group  string // may use the socket besides root; empty: nobody
	Log    *slog.Logger
}

// Server offers a Service on a Unix socket. Open it, then Serve.
type Server struct {
	svc      Service
	o        ServerOptions
	http     *http.Server
	listener *lockedListener
	base     context.Context // of every request; ends with the server
	cancel   context.CancelFunc
	detached sync.WaitGroup
	closing  sync.Once
	closeErr error
}

// NewServer makes a server. It does nothing before Open.
func NewServer(svc Service, o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{svc: svc, o: o}
	s.base, s.cancel = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", s.version)
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/check", s.check)
	mux.HandleFunc("GET /v1/events", s.events)
	mux.HandleFunc("GET /v1/domains", s.domains)
	mux.HandleFunc("GET /v1/epochs", s.epochs)
	mux.HandleFunc("POST /v1/protect", s.protect)
	mux.HandleFunc("POST /v1/unprotect", s.unprotect)
	mux.HandleFunc("POST /v1/activate", s.activate)
	mux.HandleFunc("POST /v1/failback", s.failback)
	mux.HandleFunc("POST /v1/set", s.set)
	s.watching(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, Errorf(CodeInvalid, "use a virt-ft command of the daemon's own version",
			"no such request: %s %s", r.Method, r.URL.Path))
	})
	s.http = &http.Server{
		Handler:           s.logged(mux),
		ReadHeaderTimeout: readHeaderTimeMax,
		IdleTimeout:       idleTimeMax,
		MaxHeaderBytes:    headerBytesMax,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Open binds the socket: from now on commands can connect. It fails with
// CodeConflict when another daemon serves it.
func (s *Server) Open() error {
	l, err := listen(s.o.Socket, s.o.Group)
	if err != nil {
		return err
	}
	l.log = s.o.Log
	s.listener = l
	return nil
}

// Serve answers until ctx ends or Close is called, then closes the server and
// returns nil. Requests under way are cancelled; Serve waits for them.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err := s.http.Serve(s.listener)
	cerr := s.Close()
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return cerr
}

// Close stops the server and waits until its requests have ended, at most ten
// seconds. It may be called more than once, and without Serve.
func (s *Server) Close() error {
	s.closing.Do(func() {
		s.cancel()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeMax)
		defer cancel()
		err := s.http.Shutdown(ctx)
		if err != nil {
			err = fmt.Errorf("control socket: requests still under way: %w", err)
			s.http.Close()
		}
		if s.listener != nil {
			s.listener.Close() // Shutdown did so if Serve ran
		}
		s.detached.Wait()
		s.closeErr = err
	})
	return s.closeErr
}

// logged writes down who asks for what: changes for everybody to see, questions
// for debugging. It also ends a request's context with the server.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		level := slog.LevelDebug
		if r.Method != http.MethodGet {
			level = slog.LevelInfo
		}
		attrs := []any{"method", r.Method, "path", r.URL.Path}
		if cred := peerOf(r.Context()); cred != nil {
			attrs = append(attrs, "uid", cred.Uid, "pid", cred.Pid)
		}
		s.o.Log.Log(r.Context(), level, "control request", attrs...)
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.base, cancel)()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *Server) version(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, s.svc.Version(), nil)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	list, err := s.svc.Status(r.Context(), r.URL.Query().Get("domain"))
	if list == nil {
		list = []Status{} // [] in JSON, not null
	}
	s.answer(w, r, list, err)
}

func (s *Server) check(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	report, err := s.svc.Check(r.Context(), CheckRequest{Domain: q.Get("domain"), To: q.Get("to"), NoBandwidth: q.Get("no_bandwidth") != ""})
	s.answer(w, r, report, err)
}

func (s *Server) unprotect(w http.ResponseWriter, r *http.Request) {
	s.domainRequest(w, r, func(req DomainRequest) error { return s.svc.Unprotect(r.Context(), req.Domain) })
}

func (s *Server) failback(w http.ResponseWriter, r *http.Request) {
	s.domainRequest(w, r, func(req DomainRequest) error { return s.svc.Failback(r.Context(), req.Domain) })
}

func (s *Server) activate(w http.ResponseWriter, r *http.Request) {
	s.domainRequest(w, r, func(req DomainRequest) error { return s.svc.Activate(r.Context(), req.Domain, req.Force) })
}

func (s *Server) set(w http.ResponseWriter, r *http.Request) {
	var req SetRequest
	var now Pacing
	err := decodeBody(w, r, &req)
	if err == nil && req.Domain == "" {
		err = Errorf(CodeInvalid, "", "no domain named")
	}
	if err == nil {
		now, err = s.svc.Set(r.Context(), req)
	}
	s.answer(w, r, now, err)
}

func (s *Server) domainRequest(w http.ResponseWriter, r *http.Request, do func(DomainRequest) error) {
	var req DomainRequest
	err := decodeBody(w, r, &req)
	if err == nil && req.Domain == "" {
		err = Errorf(CodeInvalid, "", "no domain named")
	}
	if err == nil {
		err = do(req)
	}
	s.answer(w, r, struct{}{}, err)
}

// protect streams progress. The service's progress function never waits for a
// slow reader: it replaces what was not yet sent.
func (s *Server) protect(w http.ResponseWriter, r *http.Request) {
	var req ProtectRequest
	err := decodeBody(w, r, &req)
	if err == nil && (req.Domain == "" || req.To == "") {
		err = Errorf(CodeInvalid, "", "protect needs a domain and the host to protect it to")
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx := r.Context()
	if req.Detach {
		ctx = s.base
	}
	latest := make(chan Status, progressQueueMax)
	ended := make(chan error, 1)
	s.detached.Add(1)
	go func() {
		defer s.detached.Done()
		err := s.svc.Protect(ctx, req, func(st Status) { offer(latest, st) })
		if err != nil && req.Detach {
			s.o.Log.Error("protect failed", "domain", req.Domain, "to", req.To, "err", err)
		}
		ended <- err
	}()
	s.streamProgress(w, r, req, latest, ended)
}

func (s *Server) streamProgress(w http.ResponseWriter, r *http.Request, req ProtectRequest, latest <-chan Status, ended <-chan error) {
	out := newStream(w)
	for {
		select {
		case st := <-latest:
			out.line(ProgressLine{Status: &st})
			if req.Detach {
				out.line(ProgressLine{Done: true})
				return
			}
		case err := <-ended:
			for len(latest) > 0 {
				st := <-latest
				out.line(ProgressLine{Status: &st})
			}
			switch {
			case err == nil:
				out.line(ProgressLine{Done: true})
			case out.started:
				out.line(ProgressLine{Error: AsError(err)})
			default:
				s.fail(w, r, err)
			}
			return
		}
	}
}

// offer puts st into a queue, dropping the oldest when it is full.
func offer(queue chan Status, st Status) {
	for {
		select {
		case queue <- st:
			return
		default:
		}
		select {
		case <-queue:
		default:
		}
	}
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	q := EventQuery{Domain: v.Get("domain"), Follow: v.Get("follow") == "1"}
	var err error
	if n := v.Get("last"); n != "" {
		if q.Last, err = strconv.Atoi(n); err != nil {
			s.fail(w, r, Errorf(CodeInvalid, "", "last=%q is not a number of events", n))
			return
		}
	}
	if t := v.Get("since"); t != "" {
		if q.Since, err = time.Parse(time.RFC3339Nano, t); err != nil {
			s.fail(w, r, Errorf(CodeInvalid, "", "since=%q is not a time", t))
			return
		}
	}
	events, err := s.svc.Events(r.Context(), q)
	streamAll(s, w, r, events, err)
}

func (s *Server) domains(w http.ResponseWriter, r *http.Request) {
	list, err := s.svc.Domains(r.Context())
	if list == nil {
		list = []Domain{}
	}
	s.answer(w, r, list, err)
}

func (s *Server) epochs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	last, err := -1, error(nil)
	if n := q.Get("last"); n != "" {
		if last, err = strconv.Atoi(n); err != nil || last < 0 {
			s.fail(w, r, Errorf(CodeInvalid, "", "last=%q is not a number of epochs", n))
			return
		}
	}
	if q.Get("domain") == "" {
		s.fail(w, r, Errorf(CodeInvalid, "", "no domain named"))
		return
	}
	epochs, err := s.svc.Epochs(r.Context(), q.Get("domain"), last, q.Get("follow") == "1")
	streamAll(s, w, r, epochs, err)
}

// streamAll answers with what comes from c, one value a line, or with err.
func streamAll[T any](s *Server, w http.ResponseWriter, r *http.Request, c <-chan T, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := newStream(w)
	out.start()
	for {
		select {
		case v, ok := <-c:
			if !ok {
				return
			}
			out.line(v)
		case <-r.Context().Done():
			return
		}
	}
}

// stream writes one JSON value per line, each at once.
type stream struct {
	w       http.ResponseWriter
	flush   func() error
	started bool
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{w: w, flush: http.NewResponseController(w).Flush}
}

func (o *stream) start() {
	o.started = true
	o.w.Header().Set("Content-Type", "application/x-ndjson")
	o.w.WriteHeader(http.StatusOK)
	_ = o.flush() // a reader that has gone cancels the request's context
}

func (o *stream) line(v any) {
	if !o.started {
		o.start()
	}
	_ = json.NewEncoder(o.w).Encode(v)
	_ = o.flush()
}

// decodeBody reads a request; a field that is not known is an error, because a
// newer command may mean something by it that we would not do.
// It has a bounded time to come.
func decodeBody(w http.ResponseWriter, r *http.Request, v any) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(readBodyTimeMax)) // a recorder in a test has none
	dec := json.NewDecoder(io.LimitReader(r.Body, requestBytesMax))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		// Reading to the end lets the server notice when the client goes away.
		_, err = io.Copy(io.Discard, io.LimitReader(r.Body, requestBytesMax))
	}
	if err != nil {
		w.Header().Set("Connection", "close") // and the deadline stays: the server would wait for the rest
		return Errorf(CodeInvalid, "use a virt-ft command of the daemon's own version", "request: %w", err)
	}
	_ = rc.SetReadDeadline(time.Time{})
	return nil
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := AsError(err)
	if e.Code == CodeInternal {
		s.o.Log.Error("control request failed", "path", r.URL.Path, "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.httpStatus())
	_ = json.NewEncoder(w).Encode(e)
}
