package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func text(lines [][]cell) string {
	var all []string
	for _, line := range lines {
		var b strings.Builder
		for _, c := range line {
			if c.r == 0 {
				c.r = ' '
			}
			b.WriteRune(c.r)
		}
		all = append(all, b.String())
	}
	return strings.Join(all, "\n")
}

func TestScreen(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"lines":         {"a\r\nb\r\n", "a\nb"},
		"carriage":      {"progress 1\rprogress 2", "progress 2"},
		"erase line":    {"some line\r\x1b[Kshort", "short"},
		"up and below":  {"one\r\ntwo\r\n\x1b[2A\x1b[Jnew", "new"},
		"colours":       {"\x1b[32mok\x1b[0m \x1b[31;1mno\x1b[0m", "ok no"},
		"wraps":         {"0123456789abc", "0123456789\nabc"},
		"scrolls":       {"1\r\n2\r\n3\r\n4\r\n5", "2\n3\n4\n5"},
		"unknown":       {"a\x1b[?25lb\x1b=c", "abc"},
		"tab":           {"a\tb", "a       b"},
		"multibyte":     {"\u00e9\u2026\u4e2d", "\u00e9\u2026\u4e2d"},
		"other columns": {"abc\x1b[1Gx", "xbc"},
	} {
		t.Run(name, func(t *testing.T) {
			whole := newScreen(10, 4)
			whole.write(c.in)
			if got := text(whole.shown()); got != c.want {
				t.Errorf("%q shows %q, want %q", c.in, got, c.want)
			}
			// A terminal gets its bytes in pieces.
			bytewise := newScreen(10, 4)
			for i := range len(c.in) {
				bytewise.write(c.in[i : i+1])
			}
			if got := text(bytewise.shown()); got != c.want {
				t.Errorf("byte by byte %q shows %q, want %q", c.in, got, c.want)
			}
		})
	}
}

func TestColours(t *testing.T) {
	s := newScreen(10, 2)
	s.write("\x1b[31;1mx\x1b[39my\x1b[22mz\x1b[96mw")
	want := []cell{{'x', style{2, true}}, {'y', style{0, true}}, {'z', style{}}, {'w', style{7, false}}}
	for i, c := range s.shown()[0] {
		if c != want[i] {
			t.Errorf("character %d is %+v, want %+v", i, c, want[i])
		}
	}
}

func sample() *cast {
	return &cast{cols: 20, rows: 3, title: `a "title" & more`, events: []event{
		{0, "$ one <&>\r\n"}, {10 * time.Millisecond, "early "}, {20 * time.Millisecond, "late\r\n"}, {time.Second, "\x1b[32mend\x1b[0m"}, {2 * time.Second, "\x1b[0m"},
	}}
}

func TestFrames(t *testing.T) {
	fs := sample().frames(100 * time.Millisecond)
	if len(fs) != 2 {
		t.Fatalf("%d frames, want 2: what comes at once is one, and what changes nothing is none", len(fs))
	}
	if got := text(fs[0].lines); got != "$ one <&>\nearly late" {
		t.Errorf("first frame %q", got)
	}
	if got := text(fs[1].lines); got != "$ one <&>\nearly late\nend" || fs[1].at != time.Second {
		t.Errorf("second frame %q at %v", got, fs[1].at)
	}
}

func TestSVGIsXML(t *testing.T) {
	var b bytes.Buffer
	if err := sample().svg(&b, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for dec := xml.NewDecoder(bytes.NewReader(b.Bytes())); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, &b)
		}
		if chars, ok := tok.(xml.CharData); ok {
			seen.Write(chars)
		}
	}
	if got := strings.Count(seen.String(), "$ one <&>"); got != 2 {
		t.Errorf("the first line is in %d frames, want 2:\n%s", got, &seen)
	}
	if err := (&cast{cols: 1, rows: 1}).svg(io.Discard, 0); err == nil {
		t.Error("an empty recording makes a picture")
	}
}

func TestCastIsReadBack(t *testing.T) {
	var b bytes.Buffer
	if err := sample().write(&b); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var head struct{ Version, Width, Height int }
	if err := json.Unmarshal([]byte(lines[0]), &head); err != nil || head.Version != 2 || head.Width != 20 || head.Height != 3 {
		t.Fatalf("header %s: %v", lines[0], err)
	}
	var got []any
	if err := json.Unmarshal([]byte(lines[4]), &got); err != nil || got[0] != 1.0 || got[1] != "o" || got[2] != "\x1b[32mend\x1b[0m" {
		t.Errorf("event %s: %v", lines[4], err)
	}
}
