package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	answerBytesMax = 16 << 20
	lineBytesMax   = 1 << 20
)

// Client talks to the daemon behind one socket. Its methods are those of
// Service and fail with *Error, or with the context's error when it is
// cancelled. Safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client; it connects when it is first used.
func NewClient(socket string) *Client {
	var dialer net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Version asks what the daemon is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	return v, c.call(ctx, http.MethodGet, "version", nil, nil, &v)
}

// Status asks for one domain, or for all when domain is empty.
func (c *Client) Status(ctx context.Context, domain string) ([]Status, error) {
	var list []Status
	return list, c.call(ctx, http.MethodGet, "status", url.Values{"domain": {domain}}, nil, &list)
}

// Check asks whether a host, and a domain if named, can be protected.
func (c *Client) Check(ctx context.Context, req CheckRequest) (CheckReport, error) {
	var r CheckReport
	v := url.Values{"domain": {req.Domain}, "to": {req.To}}
	if req.NoBandwidth {
		v.Set("no_bandwidth", "1")
	}
	return r, c.call(ctx, http.MethodGet, "check", v, nil, &r)
}

// Unprotect ends a protection.
func (c *Client) Unprotect(ctx context.Context, domain string) error {
	return c.call(ctx, http.MethodPost, "unprotect", nil, DomainRequest{Domain: domain}, &struct{}{})
}

// Set changes the pacing of a domain and returns what is in force then.
func (c *Client) Set(ctx context.Context, req SetRequest) (Pacing, error) {
	var p Pacing
	return p, c.call(ctx, http.MethodPost, "set", nil, req, &p)
}

// Activate lets this host's copy of a domain go on alone.
func (c *Client) Activate(ctx context.Context, domain string, force bool) error {
	return c.call(ctx, http.MethodPost, "activate", nil, DomainRequest{Domain: domain, Force: force}, &struct{}{})
}

// Failback moves a guest to its backup, in order.
func (c *Client) Failback(ctx context.Context, domain string) error {
	return c.call(ctx, http.MethodPost, "failback", nil, DomainRequest{Domain: domain}, &struct{}{})
}

// Protect protects a domain, calling progress as it goes. Cancelling ctx makes
// the daemon undo an initial sync under way, unless req.Detach is set.
func (c *Client) Protect(ctx context.Context, req ProtectRequest, progress func(Status)) error {
	done := false
	err := c.stream(ctx, http.MethodPost, "protect", nil, req, nil, func(b []byte) error {
		var line ProgressLine
		if err := json.Unmarshal(b, &line); err != nil {
			return c.explain(ctx, err)
		}
		switch {
		case line.Error != nil:
			return line.Error
		case line.Status != nil:
			progress(*line.Status)
		}
		done = done || line.Done
		return nil
	})
	if err == nil && !done {
		err = Errorf(CodeUnavailable, "see the daemon's log: journalctl -u virt-ft",
			"the daemon stopped before %s was protected", req.Domain)
	}
	return err
}

// Domains lists the domains of the daemon's host.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	var list []Domain
	return list, c.call(ctx, http.MethodGet, "domains", nil, nil, &list)
}

// Events calls emit for each event that q asks for, until there is no more, ctx
// ends, which is not an error, emit returns one, or the daemon ends the stream of
// those to come. listening, if not nil, is called before the first: what happens
// from then on comes.
func (c *Client) Events(ctx context.Context, q EventQuery, listening func() error, emit func(Event) error) error {
	v := url.Values{"last": {strconv.Itoa(q.Last)}}
	if q.Domain != "" {
		v.Set("domain", q.Domain)
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	err := streamOf(ctx, c, "events", v, listening, emit)
	if err != nil || ctx.Err() != nil || !q.Follow {
		return err
	}
	return Errorf(CodeUnavailable, "is the daemon running? systemctl status virt-ft", "the daemon ended the stream of events")
}

// Epochs calls emit for the last acknowledged checkpoints of a domain, the oldest
// first: at most last, all that the daemon keeps when it is negative. With follow
// it goes on with those to come until ctx ends, which is not an error, emit
// returns one, or the daemon ends the stream, which is one.
func (c *Client) Epochs(ctx context.Context, domain string, last int, follow bool, emit func(Epoch) error) error {
	q := url.Values{"domain": {domain}}
	if last >= 0 {
		q.Set("last", strconv.Itoa(last))
	}
	if follow {
		q.Set("follow", "1")
	}
	err := streamOf(ctx, c, "epochs", q, nil, emit)
	if err != nil || ctx.Err() != nil || !follow {
		return err
	}
	return Errorf(CodeUnavailable, "virt-ft status "+domain, "the stream of epochs ended: the protection did, or this program reads too slowly")
}

// streamOf calls emit with each value of a stream until it ends, or ctx does, and
// before that begun, if not nil, once the daemon answers.
func streamOf[T any](ctx context.Context, c *Client, path string, query url.Values, begun func() error, emit func(T) error) error {
	err := c.stream(ctx, http.MethodGet, path, query, nil, begun, func(b []byte) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return c.explain(ctx, err)
		}
		return emit(v)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, answer any) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax+1))
	if err == nil && len(b) > answerBytesMax {
		err = fmt.Errorf("longer than %d bytes", answerBytesMax)
	}
	if err == nil {
		err = json.Unmarshal(b, answer)
	}
	return c.explain(ctx, err)
}

// stream calls line with each line of the answer, and begun, if not nil, before.
func (c *Client) stream(ctx context.Context, method, path string, query url.Values, body any, begun func() error, line func([]byte) error) error {
	resp, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if begun != nil {
		if err := begun(); err != nil {
			return err
		}
	}
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, lineBytesMax)
	for sc.Scan() {
		if err := line(sc.Bytes()); err != nil {
			return err
		}
	}
	return c.explain(ctx, sc.Err())
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "virt-ft", Path: "/v1/" + path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), payload)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, lineBytesMax))
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		return nil, Errorf(CodeInternal, "is another program using the socket?",
			"%s answered %s, which is not what a virt-ft daemon says", c.socket, resp.Status)
	}
	return nil, e
}

// explain turns failures of the connection into what a user can act on.
func (c *Client) explain(ctx context.Context, err error) error {
	var known *Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &known):
		return known
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return Errorf(CodeNoDaemon, "is the daemon running? systemctl start virt-ft",
			"no virt-ft daemon answers on %s", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return Errorf(CodeNoDaemon, "run as root, or as a member of the group set as `control.group`",
			"not allowed to use %s", c.socket)
	}
	return Errorf(CodeUnavailable, "see the daemon's log: journalctl -u virt-ft", "talking to the daemon on %s: %w", c.socket, err)
}
