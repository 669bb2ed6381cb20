package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// GuardLimitMin is the smallest limit of a guard: less is within what a busy
	// host does to any process.
	GuardLimitMin = 100 * time.Millisecond

	guardConnsMax     = 256
	guardListenersMax = 16

	guardStartMax   = 10 * time.Second // without a deadline of the caller
	guardEndMax     = 2 * time.Second
	guardRetryPause = time.Second
	// beatsPerLimit is how often the guard hears from us within its limit.
	beatsPerLimit = 5
	// unansweredMax is the number of beats without an answer after which the
	// guard itself is taken for dead.
	unansweredMax = 5 * beatsPerLimit
)

// Guard keeps a frozen, dead or stuck server from hanging its clients. It is a
// process of its own, in a session of its own, that holds a duplicate of every
// socket that the server reads from. When it has not heard from us for the
// limit, it shuts them all down, so that a client's requests fail instead of
// waiting; and it accepts and closes what else connects, until we are back. When
// we die, it does the same and ends.
//
// That our process runs does not mean that a request does: a call of a backend
// that takes longer than one and a half limits has its connection dropped too,
// by us. The half is for backends that bound their calls by the limit as well.
//
// A guard that dies is started again. Between that and its death, and while it
// is starved itself, the bound does not hold.
//
// A nil *Guard watches nothing. Methods may be called concurrently.
type Guard struct {
	limit time.Duration
	log   *slog.Logger

	mu      sync.Mutex
	proc    *guardProcess // nil while there is none
	watched map[uint64]watched
	ids     map[any]uint64 // of a *conn or a net.Listener
	nextID  uint64
	closed  bool

	closing chan struct{}
	done    chan struct{}
}

// watched is a socket of which the guard holds a duplicate.
type watched struct {
	raw  syscall.RawConn
	conn *conn // nil for a listener
}

// guardProcess is one life of the guard.
type guardProcess struct {
	cmd  *exec.Cmd
	sock *net.UnixConn
	// reports is closed when nothing more will come.
	reports    chan guardReport
	unanswered int // beats
}

// StartGuard starts a guard and returns when it watches. The binary must call
// MaybeGuard first thing in main, and in TestMain. limit is how long a client
// may have to wait for us, at least GuardLimitMin, and no less than a backend
// takes for any request. ctx ends only the start.
func StartGuard(ctx context.Context, limit time.Duration, log *slog.Logger) (*Guard, error) {
	if limit < GuardLimitMin {
		return nil, fmt.Errorf("nbd guard: a limit of %v: at least %v", limit, GuardLimitMin)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p, err := startGuardProcess(ctx, limit)
	if err != nil {
		return nil, err
	}
	g := &Guard{
		limit: limit, log: log, proc: p,
		watched: map[uint64]watched{}, ids: map[any]uint64{},
		closing: make(chan struct{}), done: make(chan struct{}),
	}
	go g.run(p)
	return g, nil
}

// Close ends the guard and waits for it. Connections that it still watches are
// shut down: close the server first. It may be called more than once.
func (g *Guard) Close() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.closing)
	}
	g.mu.Unlock()
	<-g.done
	return nil
}

// Pid is the guard's process id; 0 while there is none.
func (g *Guard) Pid() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.proc == nil {
		return 0
	}
	return g.proc.cmd.Process.Pid
}

// run keeps a guard alive until Close.
func (g *Guard) run(p *guardProcess) {
	defer close(g.done)
	for {
		if p != nil {
			why := g.attend(p)
			g.mu.Lock()
			g.proc = nil
			g.mu.Unlock()
			if why == nil {
				p.end()
				return
			}
			// Killed before its socket closes: it must not take that for our death.
			state := p.kill()
			g.log.Error("nbd: the guard ended and is started again; until then a frozen daemon would hang guests", "err", why, "state", state)
		}
		p = g.restart()
		if p != nil {
			continue
		}
		select {
		case <-g.closing:
			return
		case <-time.After(guardRetryPause):
		}
	}
}

// restart starts the next guard and hands it what is watched; nil if that failed.
func (g *Guard) restart() *guardProcess {
	p, err := startGuardProcess(context.Background(), g.limit)
	if err != nil {
		g.log.Error("nbd: the guard cannot be started", "err", err)
		return nil
	}
	g.mu.Lock()
	for id, w := range g.watched {
		// One that was closed meanwhile has no descriptor any more; unwatch comes.
		if err := p.hand(id, w); err != nil && !errors.Is(err, net.ErrClosed) {
			g.mu.Unlock()
			g.log.Error("nbd: the new guard does not take a socket", "err", err, "state", p.kill())
			return nil
		}
	}
	g.proc = p
	g.mu.Unlock()
	g.log.Warn("nbd: a guard watches again", "pid", p.cmd.Process.Pid)
	return p
}

// attend beats and listens until the guard is to end, nil, or must be replaced.
func (g *Guard) attend(p *guardProcess) error {
	tick := time.NewTicker(g.limit / beatsPerLimit)
	defer tick.Stop()
	for {
		select {
		case <-g.closing:
			return nil
		case r, ok := <-p.reports:
			if !ok {
				return errors.New("its socket was closed")
			}
			p.unanswered = 0
			if r.kind == reportFired {
				g.log.Error("nbd: this process did not run for too long; the guard has cut the connections so that guests do not hang",
					"silent", r.silent, "limit", g.limit, "connections", r.conns)
			}
		case <-tick.C:
			g.dropStuck()
			if p.unanswered++; p.unanswered > unansweredMax {
				return errors.New("it does not answer")
			}
			g.mu.Lock()
			err := p.send(guardMessage{kind: messageBeat}, nil)
			g.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// dropStuck drops the connections whose request takes too long.
func (g *Guard) dropStuck() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.watched {
		if w.conn == nil || w.conn.busy() <= g.limit+g.limit/2 {
			continue
		}
		w.conn.drop(fmt.Errorf("%w: more than %v", ErrStuck, g.limit+g.limit/2))
	}
}

// watch hands the guard a connection.
func (g *Guard) watch(c *conn) error {
	if g == nil {
		return nil
	}
	return g.add(c, c.nc, watched{conn: c}, guardConnsMax)
}

// listen hands the guard a listener.
func (g *Guard) listen(ln net.Listener) error {
	if g == nil {
		return nil
	}
	return g.add(ln, ln, watched{}, guardListenersMax)
}

func (g *Guard) unwatch(c *conn)                { g.remove(c) }
func (g *Guard) forgetListener(ln net.Listener) { g.remove(ln) }

func (g *Guard) add(key, sock any, w watched, most int) error {
	sc, ok := sock.(syscall.Conn)
	if !ok {
		return fmt.Errorf("nbd guard: %T has no descriptor that could be watched", sock)
	}
	var err error
	if w.raw, err = sc.SyscallConn(); err != nil {
		return fmt.Errorf("nbd guard: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	same := 0
	for _, other := range g.watched {
		if (other.conn == nil) == (w.conn == nil) {
			same++
		}
	}
	switch {
	case g.closed:
		return errors.New("nbd guard: it was closed")
	case same >= most:
		return fmt.Errorf("nbd guard: it watches %d, which is the most", most)
	case g.proc == nil:
		return errors.New("nbd guard: it died and is being started again; try again")
	}
	g.nextID++
	if err := g.proc.hand(g.nextID, w); err != nil {
		return err
	}
	g.watched[g.nextID], g.ids[key] = w, g.nextID
	return nil
}

func (g *Guard) remove(key any) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	id, ok := g.ids[key]
	if !ok {
		return
	}
	delete(g.ids, key)
	delete(g.watched, id)
	if g.proc != nil {
		_ = g.proc.send(guardMessage{kind: messageForget, id: id}, nil) // attend will see what is wrong
	}
}

func startGuardProcess(ctx context.Context, limit time.Duration) (*guardProcess, error) {
	const op = "nbd guard: start"
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "guard"), os.NewFile(uintptr(pair[1]), "guard's end")
	defer ours.Close()
	defer theirs.Close()
	nc, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	cmd := exec.Command("/proc/self/exe", strconv.FormatInt(int64(limit), 10))
	cmd.Args[0] = guardName
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Stderr = os.Stderr // a panic, if anything
	cmd.ExtraFiles = []*os.File{theirs}
	// A session of its own: signals to our group, and job control, do not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		nc.Close()
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	p := &guardProcess{cmd: cmd, sock: nc.(*net.UnixConn), reports: make(chan guardReport, 1)}
	theirs.Close()
	go p.listen()
	ctx, cancel := context.WithTimeout(ctx, guardStartMax)
	defer cancel()
	select {
	case _, ok := <-p.reports:
		if ok {
			return p, nil
		}
		return nil, fmt.Errorf("%s: it ended at once (%v); does main call nbd.MaybeGuard?", op, p.kill())
	case <-ctx.Done():
		p.kill()
		return nil, fmt.Errorf("%s: it does not say that it is ready: %w", op, ctx.Err())
	}
}

// listen passes on what the guard says.
func (p *guardProcess) listen() {
	defer close(p.reports)
	var b [reportBytes + 1]byte
	for {
		n, err := p.sock.Read(b[:])
		if err != nil || n != reportBytes {
			return
		}
		p.reports <- parseReport(b[:n])
	}
}

// hand gives the guard a duplicate of a socket.
func (p *guardProcess) hand(id uint64, w watched) error {
	kind := messageConn
	if w.conn == nil {
		kind = messageListener
	}
	var err error
	if cerr := w.raw.Control(func(fd uintptr) {
		err = p.send(guardMessage{kind: kind, id: id}, unix.UnixRights(int(fd)))
	}); cerr != nil {
		err = cerr
	}
	return err
}

// sendMax bounds how long a message waits for room: a guard that lives reads at
// once.
const sendMax = 50 * time.Millisecond

func (p *guardProcess) send(m guardMessage, rights []byte) error {
	if err := p.sock.SetWriteDeadline(time.Now().Add(sendMax)); err != nil {
		return fmt.Errorf("nbd guard: %w", err)
	}
	if _, _, err := p.sock.WriteMsgUnix(m.append(nil), rights, nil); err != nil {
		return fmt.Errorf("nbd guard: it does not take a message: %w", err)
	}
	return nil
}

// kill ends the guard without letting it do anything, and says how it ended.
func (p *guardProcess) kill() string {
	_ = p.cmd.Process.Kill() // fails if it has ended
	_ = p.cmd.Wait()         // ProcessState tells
	p.sock.Close()
	for range p.reports {
	}
	return p.cmd.ProcessState.String()
}

// end lets the guard end by itself.
func (p *guardProcess) end() {
	bound := time.AfterFunc(guardEndMax, func() { _ = p.cmd.Process.Kill() })
	defer bound.Stop()
	p.sock.Close()
	for range p.reports {
	}
	_ = p.cmd.Wait() // it has nothing to say any more
}

// guardMessage is what the guard is told, one packet each:
//
//	0     1        8            16
//	| kind| zeros  | id         |      and for a socket, its descriptor
type guardMessage struct {
	kind byte
	id   uint64
}

const (
	messageBeat     byte = 1
	messageConn     byte = 2
	messageListener byte = 3
	messageForget   byte = 4
	messageBytes         = 16
)

func (m guardMessage) append(b []byte) []byte {
	b = append(b, m.kind, 0, 0, 0, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint64(b, m.id)
}

func parseMessage(b []byte) guardMessage {
	return guardMessage{kind: b[0], id: binary.BigEndian.Uint64(b[8:])}
}

// guardReport is what the guard says: that it lives, or what it did.
//
//	0     1        4            8                  16
//	| kind| zeros  | connections| silent, ns       |
type guardReport struct {
	kind   byte
	conns  int
	silent time.Duration
}

const (
	reportAlive byte = 1
	reportFired byte = 2
	reportBytes      = 16
)

func (r guardReport) append(b []byte) []byte {
	b = append(b, r.kind, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(r.conns))
	return binary.BigEndian.AppendUint64(b, uint64(r.silent))
}

func parseReport(b []byte) guardReport {
	return guardReport{kind: b[0], conns: int(binary.BigEndian.Uint32(b[4:])), silent: time.Duration(binary.BigEndian.Uint64(b[8:]))}
}
