package virt

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxCalls bounds the calls under way: each occupies an operating system thread until libvirtd answers.
	maxCalls = 64
	// Reconnecting is tried after redialMin, then after twice as long each time, at most every redialMax.
	redialMin = 50 * time.Millisecond
	redialMax = 2 * time.Second
	// closeWaitMax bounds how long Close waits for calls that libvirtd does not answer.
	closeWaitMax = 5 * time.Second
)

// Conn is a lasting connection to one libvirtd. It is safe for concurrent use.
type Conn struct {
	uri string
	log *slog.Logger

	slots  chan struct{} // one for each call under way
	lostCh chan struct{} // tells run that link is gone
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   sync.WaitGroup // run, links being closed

	mu   sync.Mutex
	link *link // nil while disconnected and after Close
	subs map[*subscription]struct{}
}

// Open connects to uri ("qemu:///system" when empty). ctx bounds the first connection only, which must
// succeed; from then on the Conn reconnects by itself until Close.
func Open(ctx context.Context, uri string, log *slog.Logger) (*Conn, error) {
	if uri == "" {
		uri = "qemu:///system"
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := startEventLoop(log); err != nil {
		return nil, &CallError{Op: "start event loop", Err: err}
	}
	c := &Conn{
		uri: uri, log: log,
		slots:  make(chan struct{}, maxCalls),
		lostCh: make(chan struct{}, 1),
		subs:   map[*subscription]struct{}{},
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if err := c.connect(ctx); err != nil {
		c.cancel(err)
		return nil, err
	}
	c.done.Add(1)
	go c.run()
	return c, nil
}

// URI returns the libvirt URI in use.
func (c *Conn) URI() string { return c.uri }

// Connected reports whether libvirtd can be reached at the moment.
func (c *Conn) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

func (c *Conn) connect(ctx context.Context) error {
	l, err := dialCtx(ctx, c.uri, c.publish, c.lost)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if err := context.Cause(c.ctx); err != nil {
		c.mu.Unlock()
		l.close()
		return err
	}
	c.link = l
	c.mu.Unlock()
	if !l.alive() { // it broke before we listened to its close callback
		c.lost(l)
	}
	return nil
}

// lost takes a broken link out of use. It is called by the event loop and by failed calls, and never blocks.
func (c *Conn) lost(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != l {
		return
	}
	c.link = nil
	c.retire(l)
	select {
	case c.lostCh <- struct{}{}:
	default:
	}
}

// retire closes l when its last call has returned. c.mu is held.
func (c *Conn) retire(l *link) {
	c.done.Add(1)
	go func() {
		defer c.done.Done()
		l.close()
	}()
}

// run reconnects whenever the link was lost.
func (c *Conn) run() {
	defer c.done.Done()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.lostCh:
		}
		c.log.Warn("connection to libvirtd lost", "uri", c.uri)
		c.publish(Event{Kind: Disconnected, At: time.Now()})
		if !c.redial() {
			return
		}
		c.log.Info("connected to libvirtd again", "uri", c.uri)
		c.publish(Event{Kind: Reconnected, At: time.Now()})
	}
}

// redial tries until it is connected (true) or the Conn is closed (false).
func (c *Conn) redial() bool {
	delay := redialMin
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return false
		case <-timer.C:
		}
		err := c.connect(c.ctx)
		if err == nil {
			return true
		}
		c.log.Debug("libvirtd not reachable yet", "error", err)
		delay = min(2*delay, redialMax)
		timer.Reset(delay)
	}
}

// acquire reserves a place for one call on the current link.
func (c *Conn) acquire(ctx context.Context) (*link, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		<-c.slots
		if c.ctx.Err() != nil {
			return nil, ErrClosed
		}
		return nil, ErrDisconnected
	}
	c.link.calls.Add(1)
	return c.link, nil
}

func (c *Conn) release(l *link) {
	l.calls.Done()
	<-c.slots
}

// Close ends the connection and all subscriptions. It waits for calls under way, but not longer than a few
// seconds: libvirtd may hang. It may be called more than once.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.cancel(ErrClosed)
	l := c.link
	c.link = nil
	if l != nil {
		c.retire(l)
	}
	subs := c.subs
	c.subs = map[*subscription]struct{}{}
	c.mu.Unlock()
	for s := range subs {
		s.close()
	}
	ended := make(chan struct{})
	go func() { c.done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeWaitMax):
		c.log.Warn("libvirtd does not answer; leaving its calls behind", "uri", c.uri)
	}
	return nil
}
