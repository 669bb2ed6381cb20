package hookd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	socketMode = 0o600 // hooks run as root
	// connsMax bounds the calls that are seen to at once; the others wait in the
	// kernel. callTimeMax bounds one: a hook may be stopped in the middle of it.
	connsMax    = 64
	callTimeMax = time.Second
	// acceptRetry is the pause after an accept that failed, for want of descriptors.
	acceptRetry = 50 * time.Millisecond
)

// Handler is who knows the guests. Its methods are called concurrently. They must
// not call libvirt: libvirtd waits for the hook, and may hold what a call of
// ours would wait for.
type Handler interface {
	// MayStart answers OpPrepare: may this domain be started here now? An answer
	// that is given when ctx ends still counts; a hook that hears none refuses
	// soon after.
	// It is asked only when something in the state directory speaks against it
	// (marker.Object), and also when the daemon itself starts the domain.
	MayStart(ctx context.Context, c Call) Answer
	// Told is everything else. A start that was refused is followed by
	// "stopped" and "release", as the end of a guest is. It returns at once.
	Told(c Call)
}

// Server answers hooks until it is closed.
type Server struct {
	listener *net.UnixListener
	path     string
	file     fs.FileInfo // of the socket: its name may come to be the next daemon's
	h        Handler
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelFunc
	room     chan struct{}
	wg       sync.WaitGroup
	once     sync.Once
}

// Listen serves the socket at path, in place of what a daemon that died left
// there. That no other daemon lives is for the caller to know.
func Listen(path string, h Handler, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{path: path, h: h, log: log, room: make(chan struct{}, connsMax)}
	if err := s.bind(); err != nil {
		return nil, fmt.Errorf("socket of the libvirt hook: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// bind makes the socket appear under its name only when its mode is right.
func (s *Server) bind() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	temp := s.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // by its first name
	err = os.Chmod(temp, socketMode)
	if err == nil {
		s.file, err = os.Lstat(temp)
	}
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return err
	}
	s.listener = l
	return nil
}

// Close ends all calls and waits for them. It may be called more than once.
func (s *Server) Close() {
	s.once.Do(func() {
		// First the name, so that hooks are told at once that nobody is there.
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
			os.Remove(s.path)
		}
		s.cancel()
		s.listener.Close()
	})
	s.wg.Wait()
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		select {
		case s.room <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			<-s.room
			if s.ctx.Err() != nil {
				return
			}
			s.log.Warn("a call of the libvirt hook is not accepted", "err", err)
			select {
			case <-time.After(acceptRetry):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			defer func() { <-s.room }()
			if err := s.serve(conn); err != nil && s.ctx.Err() == nil {
				s.log.Debug("a call of the libvirt hook", "err", err)
			}
		}()
	}
}

// serve sees to one call.
func (s *Server) serve(conn *net.UnixConn) error {
	defer conn.Close()
	defer context.AfterFunc(s.ctx, func() { conn.Close() })()
	begin := time.Now()
	if err := conn.SetDeadline(begin.Add(callTimeMax)); err != nil {
		return err
	}
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	c, err := parseCall(line)
	if err != nil {
		return err
	}
	if c.Op != OpPrepare {
		s.h.Told(c)
		return nil
	}
	ctx, cancel := context.WithDeadline(s.ctx, begin.Add(thinkMax))
	defer cancel()
	a := s.h.MayStart(ctx, c)
	a.Version = version
	if a.Allow {
		a.Reason = ""
	}
	a.Reason = oneLine(a.Reason)
	if a.Allow && time.Since(begin) > AnswerMax {
		return fmt.Errorf("the answer for %s came too late: its start was refused", c.Name)
	}
	answer, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(answer, '\n'))
	return err
}

// parseCall reads a call. What it does not know in one it leaves aside.
func parseCall(line []byte) (Call, error) {
	var c Call
	if err := json.Unmarshal(line, &c); err != nil {
		return c, err
	}
	if c.Version != version {
		return c, fmt.Errorf("a hook of version %d; this daemon speaks %d: install the hook of its own version", c.Version, version)
	}
	for _, field := range [...]string{c.Op, c.Subop, c.Extra, c.Name, c.UUID} {
		if len(field) > fieldBytesMax {
			return c, fmt.Errorf("a hook whose call has a field of %d bytes", len(field))
		}
	}
	if ok := IsUUID(c.UUID); c.Op == "" || !ok && (c.UUID != "" || c.Op == OpPrepare) {
		return c, fmt.Errorf("a hook that calls with op %q and UUID %q", c.Op, c.UUID)
	}
	return c, nil
}
