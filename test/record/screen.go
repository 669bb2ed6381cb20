package main

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// style is how a character looks.
type style struct {
	fg   int // 0: default, else 1 + the ANSI colour
	bold bool
}

// cell is one character of the screen; the zero value is empty.
type cell struct {
	r rune
	style
}

// screen is as much of a terminal as the recorded programs use: lines that
// scroll, carriage returns, erasing, moving up, and colours (ECMA-48).
type screen struct {
	cols, rows int
	lines      [][]cell // at least rows once they are full; older ones scrolled away
	x, y       int      // of the cursor; y is an index of lines
	now        style
	rest       string // of an escape sequence that is not complete
}

func newScreen(cols, rows int) *screen {
	return &screen{cols: cols, rows: rows, lines: make([][]cell, 1)}
}

// write shows what a program printed.
func (s *screen) write(text string) {
	text = s.rest + text
	s.rest = ""
	for len(text) > 0 {
		if text[0] == 0x1b {
			n := s.escape(text)
			if n == 0 {
				s.rest = text
				return
			}
			text = text[n:]
			continue
		}
		if !utf8.FullRuneInString(text) {
			s.rest = text
			return
		}
		r, n := utf8.DecodeRuneInString(text)
		text = text[n:]
		s.put(r)
	}
}

func (s *screen) put(r rune) {
	switch {
	case r == '\r':
		s.x = 0
	case r == '\n':
		s.down()
	case r == '\t':
		s.x = min(s.cols-1, s.x/8*8+8)
	case r < ' ':
	default:
		if s.x == s.cols {
			s.x = 0
			s.down()
		}
		line := &s.lines[s.y]
		for len(*line) <= s.x {
			*line = append(*line, cell{})
		}
		(*line)[s.x] = cell{r, s.now}
		s.x++
	}
}

func (s *screen) down() {
	if s.y++; s.y == len(s.lines) {
		s.lines = append(s.lines, nil)
	}
}

// escape obeys the sequence that text begins with and returns its length; 0
// means that it is not complete.
func (s *screen) escape(text string) int {
	if len(text) < 2 {
		return 0
	}
	if text[1] != '[' {
		return 2
	}
	end := strings.IndexFunc(text[2:], func(r rune) bool { return r >= 0x40 && r <= 0x7e })
	if end < 0 {
		return 0
	}
	args, final := text[2:2+end], text[2+end]
	n, err := strconv.Atoi(args)
	if err != nil {
		n = 0
	}
	switch final {
	case 'm':
		s.paint(args)
	case 'A':
		s.y = max(0, len(s.lines)-s.rows, s.y-max(n, 1))
	case 'G':
		s.x = min(max(n, 1), s.cols) - 1
	case 'K':
		if n == 2 {
			s.lines[s.y] = nil
		} else if s.x < len(s.lines[s.y]) {
			s.lines[s.y] = s.lines[s.y][:s.x]
		}
	case 'J':
		s.lines = s.lines[:s.y+1]
		if s.x < len(s.lines[s.y]) {
			s.lines[s.y] = s.lines[s.y][:s.x]
		}
	}
	return 3 + end
}

func (s *screen) paint(args string) {
	for _, word := range strings.Split(args, ";") {
		switch n, _ := strconv.Atoi(word); {
		case n == 0:
			s.now = style{}
		case n == 1:
			s.now.bold = true
		case n == 22:
			s.now.bold = false
		case n >= 30 && n <= 37:
			s.now.fg = n - 30 + 1
		case n >= 90 && n <= 97:
			s.now.fg = n - 90 + 1
		case n == 39:
			s.now.fg = 0
		}
	}
}

// shown returns what is on the screen now, without what is blank at the end.
func (s *screen) shown() [][]cell {
	out := make([][]cell, 0, s.rows)
	for _, line := range s.lines[max(0, len(s.lines)-s.rows):] {
		end := len(line)
		for end > 0 && (line[end-1].r == 0 || line[end-1].r == ' ') {
			end--
		}
		out = append(out, slices.Clone(line[:end]))
	}
	for len(out) > 0 && len(out[len(out)-1]) == 0 {
		out = out[:len(out)-1]
	}
	return out
}
