package main

import (
	"bytes"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Sequences of ECMA-48 and xterm's: another screen, and back to what was there.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// key is what was pressed: a character, or one of these.
type key rune

const (
	keyUp key = -1 - iota
	keyDown
	keyHome
	keyEnd
	keyEnter   key = '\r'
	keyEscape  key = 0x1b
	keyCtrlC   key = 0x03
	keyCtrlL   key = 0x0c
	keySuspend key = 0x1a // Ctrl-Z, which does not come as a signal in raw mode
)

// screen is a terminal that is drawn on as a whole. Between enter and leave it is
// in raw mode. leave may be called by any goroutine, more than once: whatever
// ends the program calls it first.
type screen struct {
	in  *os.File // may be no terminal: then there are no keys
	out *terminal

	mu    sync.Mutex
	saved *term.State // nil: not entered, or without keys
	on    bool
}

func (s *screen) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on {
		return nil
	}
	if term.IsTerminal(int(s.in.Fd())) {
		saved, err := term.MakeRaw(int(s.in.Fd()))
		if err != nil {
			return err
		}
		s.saved = saved
	}
	s.on = true
	_, err := s.out.WriteString(enterScreen)
	return err
}

func (s *screen) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return
	}
	s.on = false
	_, _ = s.out.WriteString(leaveScreen) // a terminal that is gone needs no restoring
	if s.saved != nil {
		_ = term.Restore(int(s.in.Fd()), s.saved)
		s.saved = nil
	}
}

// leaveAtPanic is deferred by every goroutine while the screen is entered: a
// message on a raw terminal's other screen would be lost.
func (s *screen) leaveAtPanic() {
	if p := recover(); p != nil {
		s.leave()
		panic(p)
	}
}

// suspend stops the program, as Ctrl-Z does. It may go on for a moment, because
// another thread may be the one that takes the signal: the screen is to be entered
// again when SIGCONT comes, and not before.
func (s *screen) suspend() error {
	s.leave()
	return unix.Kill(unix.Getpid(), unix.SIGSTOP)
}

// draw shows lines, in one write, so that nothing flickers. What is longer than
// the screen is cut by the terminal's own width, see clipCells.
func (s *screen) draw(lines []string) error {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line)
		b.WriteString("\x1b[K")
	}
	b.WriteString("\x1b[J")
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return nil
	}
	_, err := s.out.WriteString(b.String())
	return err
}

// readKeys sends what is pressed until stop is readable or there is no more. It
// does not block in a read: whoever started it can wait for it.
func (s *screen) readKeys(stop *os.File, keys chan<- key) {
	defer close(keys)
	if !term.IsTerminal(int(s.in.Fd())) {
		return
	}
	fds := []unix.PollFd{{Fd: int32(s.in.Fd()), Events: unix.POLLIN}, {Fd: int32(stop.Fd()), Events: unix.POLLIN}}
	buf := make([]byte, 64)
	for {
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(s.in.Fd()), buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for _, k := range parseKeys(buf[:n]) {
			select {
			case keys <- k:
			default: // the program is busy, and somebody leans on the keyboard
			}
		}
	}
}

// parseKeys reads what a terminal sent at once: an escape that is followed by
// nothing is the key of that name.
func parseKeys(b []byte) []key {
	named := []struct {
		code string
		key  key
	}{
		{"\x1b[A", keyUp}, {"\x1bOA", keyUp}, {"\x1b[B", keyDown}, {"\x1bOB", keyDown},
		{"\x1b[H", keyHome}, {"\x1bOH", keyHome}, {"\x1b[F", keyEnd}, {"\x1bOF", keyEnd},
	}
	var keys []key
next:
	for len(b) > 0 {
		for _, n := range named {
			if bytes.HasPrefix(b, []byte(n.code)) {
				keys, b = append(keys, n.key), b[len(n.code):]
				continue next
			}
		}
		switch {
		case b[0] == 0x1b && len(b) > 1:
			return keys // a key that means nothing here
		case b[0] == '\n':
			keys = append(keys, keyEnter)
		case b[0] < 0x80:
			keys = append(keys, key(b[0]))
		}
		b = b[1:]
	}
	return keys
}
