package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/zcstream"
	"github.com/virt-ft/virt-ft/test/tool"
)

// What moves over loopback: messages of pages from anywhere in a pool that is
// larger than what processors keep at hand, into another one.
const (
	pageBytes    = 4 << 10
	messageBytes = 4 << 20
	messagePages = messageBytes / pageBytes
	poolBytes    = 64 << 20
	streamsMax   = 4
)

// mover moves bytes in one way; move returns when they have arrived.
type mover struct {
	name    string // of its metric, without the floor's
	streams int
	move    func(ctx context.Context, bytes int64) error
	close   func()
}

// cost is one measurement.
type cost struct {
	ns    int64
	cpuNs int64 // of this process; 0: it was not us
	bytes int64
}

// pools are the memory that is sent, in the order of its pages, and where it
// arrives.
type pools struct {
	from  []byte
	pages [][]byte
	to    []byte
}

func newPools() (*pools, error) {
	p := &pools{}
	for _, mem := range []*[]byte{&p.from, &p.to} {
		b, err := unix.Mmap(-1, 0, poolBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("memory to send: %w", err)
		}
		*mem = b
	}
	rng := rand.NewChaCha8([32]byte{1}) // the same on every machine
	_, _ = rng.Read(p.from)             // never fails
	for _, i := range rand.New(rng).Perm(poolBytes / pageBytes) {
		p.pages = append(p.pages, p.from[i*pageBytes:][:pageBytes])
	}
	return p, nil
}

// close gives the memory back; nobody may be sending from it.
func (p *pools) close() {
	for _, b := range [][]byte{p.from, p.to} {
		if b != nil {
			_ = unix.Munmap(b) // of what was mapped so
		}
	}
}

// part is what one of several streams sends from and to, over and over.
type part struct {
	*pools
	first, messages int
}

// part divides the pools: streams share no memory.
func (p *pools) part(stream, streams int) part {
	n := poolBytes / messageBytes / streams
	return part{p, stream * n, n}
}

// message is the pages of the n-th message, and where they go.
func (p part) message(n int) (pages [][]byte, to []byte) {
	n = p.first + n%p.messages
	return p.pages[n*messagePages:][:messagePages], p.to[n*messageBytes:][:messageBytes]
}

// memcpy is the floor: the same pages, by one thread.
func (p *pools) memcpy() *mover {
	all := p.part(0, 1)
	return &mover{name: "memcpy", streams: 1, close: func() {}, move: func(_ context.Context, bytes int64) error {
		for m := range int(bytes / messageBytes) {
			pages, to := all.message(m)
			for i, page := range pages {
				copy(to[i*pageBytes:], page)
			}
		}
		return nil
	}}
}

// lane is one connection: both return when the message is on its way, or there.
type lane struct {
	send func(ctx context.Context, n int, done func(error)) error
	recv func(ctx context.Context, n int) error
}

// over moves messages over lanes, each with a goroutine at both ends, and waits
// until all memory is back.
func over(lanes []lane) func(context.Context, int64) error {
	return func(ctx context.Context, bytes int64) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		errs := make(chan error, 2*len(lanes))
		each := int(bytes / messageBytes / int64(len(lanes)))
		start := func(one func(n int) error) {
			go func() {
				for m := range each {
					if err := one(m); err != nil {
						cancel()
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		var lent sync.WaitGroup
		for _, l := range lanes {
			start(func(n int) error {
				lent.Add(1)
				return l.send(ctx, n, func(error) { lent.Done() })
			})
			start(func(n int) error { return l.recv(ctx, n) })
		}
		var all []error
		for range 2 * len(lanes) {
			all = append(all, <-errs)
		}
		err := errors.Join(all...)
		if err == nil {
			lent.Wait()
		}
		return err
	}
}

// streams moves through pkg/zcstream.
func (p *pools) streams(ctx context.Context, n int, name string, mode zcstream.Mode) (*mover, error) {
	m := &mover{name: name, streams: n}
	var lanes []lane
	var closers []func() error
	m.close = func() {
		for _, c := range closers {
			_ = c() // nothing is under way
		}
	}
	for i := range n {
		p := p.part(i, n)
		a, b, err := loopback(ctx)
		if err != nil {
			m.close()
			return nil, err
		}
		s, r := zcstream.NewSenderOptions(a, zcstream.Options{ZeroCopy: mode}), zcstream.NewReceiver(b)
		closers = append(closers, s.Close, r.Close)
		lanes = append(lanes, lane{
			send: func(ctx context.Context, n int, done func(error)) error {
				pages, _ := p.message(n)
				return s.Send(ctx, done, pages...)
			},
			recv: func(ctx context.Context, n int) error {
				_, to := p.message(n)
				_, err := r.ReadFull(ctx, to)
				return err
			},
		})
	}
	m.move = over(lanes)
	return m, nil
}

// loopback returns both ends of a TCP connection.
func loopback(ctx context.Context) (a, b net.Conn, err error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if a, err = new(net.Dialer).DialContext(ctx, "tcp4", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	if b, err = ln.Accept(); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// handshakeMax bounds the making of a session.
const handshakeMax = 10 * time.Second

// session moves through Pages messages of internal/replica: with a table of
// runs and checksums, each run one page.
func (p *pools) session(ctx context.Context, n int) (*mover, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	plain := replica.Transport{Mode: replica.ModePlain}
	ln, err := replica.Listen(ctx, "127.0.0.1:0", replica.ListenerOptions{Transport: plain, Streams: n,
		Admit: func(context.Context, replica.Peer, *replica.Hello) (*replica.Welcome, *replica.Refuse) {
			return &replica.Welcome{State: replica.BackupStandby, HeartbeatPeriodNs: 1e8, SilenceLimitNs: 5e8, Generation: 1}, nil
		}})
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	type accepted struct {
		s   *replica.Session
		err error
	}
	there := make(chan accepted, 1)
	go func() { s, err := ln.Accept(ctx); there <- accepted{s, err} }()
	dialer := &replica.Dialer{Transport: plain}
	from, err := dialer.Dial(ctx, ln.Addr().String(), replica.UUID{1}, 1, replica.Hello{Role: replica.RolePrimary, WantGeneration: 1,
		Domain: replica.UUID{2}, DomainName: "bench", Host: "a", Streams: uint8(n)})
	if err != nil {
		cancel() // Accept, too
		return nil, errors.Join(err, (<-there).err)
	}
	to := <-there
	if to.err != nil {
		return nil, errors.Join(to.err, from.Close())
	}
	m := &mover{name: "replica", streams: n, close: func() { _, _ = from.Close(), to.s.Close() }}
	if len(from.Streams) != n || len(to.s.Streams) != n {
		m.close()
		return nil, fmt.Errorf("a session has %d streams, and not %d as it should", len(from.Streams), n)
	}
	var lanes []lane
	for i := range n {
		lanes = append(lanes, p.part(i, n).pagesLane(from.Streams[i], to.s.Streams[i]))
	}
	m.move = over(lanes)
	return m, nil
}

func (p part) pagesLane(from, to *replica.Conn) lane {
	runs := make([]replica.Run, messagePages)
	for i := range runs {
		runs[i] = replica.Run{Pages: 1, Off: uint64(2*i) * pageBytes}
	}
	stamp := replica.Stamp{Generation: 1, Epoch: 1}
	return lane{
		send: func(ctx context.Context, n int, done func(error)) error {
			pages, _ := p.message(n)
			return from.SendPages(ctx, stamp, runs, pages, done)
		},
		recv: func(ctx context.Context, n int) error {
			_, to4m := p.message(n)
			_, err := to.RecvPages(ctx, func(bytes int) []byte { return to4m[:bytes] })
			return err
		},
	}
}

// measure takes the time of one move, and the processor's that we used.
func measure(ctx context.Context, m *mover, bytes int64) (c cost, err error) {
	before, err := cpuNs()
	if err != nil {
		return c, err
	}
	began := time.Now()
	if err := m.move(ctx, bytes); err != nil {
		return c, fmt.Errorf("%s, %d streams: %w", m.name, m.streams, err)
	}
	c.ns, c.bytes = time.Since(began).Nanoseconds(), bytes
	after, err := cpuNs()
	c.cpuNs = after - before
	return c, err
}

func cpuNs() (int64, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return u.Utime.Nano() + u.Stime.Nano(), nil
}

// gbps is a speed in GB/s.
func (c cost) gbps() float64 { return float64(c.bytes) / float64(c.ns) }

// hostLine is what one mover did: medians over all rounds.
type hostLine struct {
	Name     string  `json:"name"`
	Streams  int     `json:"streams"`
	GBps     float64 `json:"gb_per_s"`
	VsMemcpy float64 `json:"vs_memcpy"` // of the same round
	VsIperf3 float64 `json:"vs_iperf3,omitempty"`
	CPUNsMiB float64 `json:"cpu_ns_per_mib,omitempty"`
}

// measureHost goes through the movers, round after round.
func measureHost(ctx context.Context, o options, r *tool.Result, d *details) error {
	if o.host == 0 {
		for _, metric := range hostMetrics() {
			r.Skip(metric, "left out: -host 0")
		}
		return nil
	}
	p, err := newPools()
	if err != nil {
		return err
	}
	movers := []*mover{p.memcpy()}
	defer func() {
		for _, m := range movers {
			m.close()
		}
		p.close()
	}()
	for _, n := range counts() {
		for _, make := range []func() (*mover, error){
			func() (*mover, error) { return p.streams(ctx, n, "stream", zcstream.ModeAuto) },
			func() (*mover, error) { return p.streams(ctx, n, "stream-plain", zcstream.ModeOff) },
			func() (*mover, error) { return p.streams(ctx, n, "stream-forced", zcstream.ModeForce) },
			func() (*mover, error) { return p.session(ctx, n) },
		} {
			m, err := make()
			if err != nil {
				return err
			}
			movers = append(movers, m)
		}
	}
	iperf, err := startIperf3(ctx)
	var missing *missingError
	if errors.As(err, &missing) {
		for _, n := range counts() {
			r.Skip(metricName("stream_vs_iperf3", n), missing.Error())
		}
	} else if err != nil {
		return err
	} else {
		defer iperf.close()
	}
	table, err := hostRounds(ctx, o, movers, iperf)
	if err != nil {
		return err
	}
	d.Host = table.lines(movers, r)
	return nil
}

// counts are the numbers of connections that are measured.
func counts() []int { return []int{1, 2, streamsMax} }

// metricName of a number of streams: one is the name itself.
func metricName(base string, streams int) string {
	if streams == 1 {
		return base
	}
	return fmt.Sprintf("%s_%d", base, streams)
}

func hostMetrics() (all []string) {
	for _, n := range counts() {
		all = append(all, metricName("stream_vs_memcpy", n), metricName("stream_vs_iperf3", n), metricName("replica_vs_memcpy", n))
	}
	return all
}
