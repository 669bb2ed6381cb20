package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const defaultWidth = 80

// Colours, as SGR parameters.
const (
	bold   = "1"
	faint  = "2"
	red    = "31;1"
	green  = "32"
	yellow = "33"
)

// terminal is an output that may be a terminal. Only then is it coloured, unless
// the environment wants it otherwise, and redrawn.
type terminal struct {
	*os.File
	isTerminal bool
	colour     bool
}

func newTerminal(f *os.File) *terminal {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	is := err == nil && os.Getenv("TERM") != "dumb"
	return &terminal{File: f, isTerminal: is, colour: wantColour(is, os.Getenv)}
}

// wantColour follows no-color.org and bixense.com/clicolors: NO_COLOR, when set
// to anything, wins over CLICOLOR_FORCE, which wins over what the output is.
func wantColour(isTerminal bool, getenv func(string) string) bool {
	switch force := getenv("CLICOLOR_FORCE"); {
	case getenv("NO_COLOR") != "":
		return false
	case force != "" && force != "0":
		return true
	}
	return isTerminal
}

// width is the number of columns, now.
func (t *terminal) width() int {
	width, _ := t.size()
	return width
}

// size is the number of columns and lines, now.
func (t *terminal) size() (width, height int) {
	size, err := unix.IoctlGetWinsize(int(t.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return defaultWidth, 24
	}
	return int(size.Col), int(size.Row)
}

// wraps is the width at which text is to be wrapped; 0: it is not, because
// programs look for lines.
func (t *terminal) wraps() int {
	if !t.isTerminal {
		return 0
	}
	return t.width()
}

// paint colours text if this output is coloured.
func (t *terminal) paint(colour, text string) string {
	if !t.colour || text == "" || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
