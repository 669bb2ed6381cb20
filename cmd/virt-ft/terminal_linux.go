package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const defaultWidth = 80

// Colours, as SGR parameters.
const (
	bold   = "1"
	red    = "31;1"
	green  = "32"
	yellow = "33"
)

// terminal is an output that may be a terminal. Only then is it coloured and
// redrawn.
type terminal struct {
	*os.File
	isTerminal bool
	colour     bool
}

func newTerminal(f *os.File) *terminal {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	is := err == nil && os.Getenv("TERM") != "dumb"
	return &terminal{File: f, isTerminal: is, colour: is && os.Getenv("NO_COLOR") == ""}
}

// width is the number of columns, now.
func (t *terminal) width() int {
	size, err := unix.IoctlGetWinsize(int(t.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return defaultWidth
	}
	return int(size.Col)
}

// paint colours text if this is a terminal.
func (t *terminal) paint(colour, text string) string {
	if !t.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
