package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// event is something that appeared on the terminal.
type event struct {
	at   time.Duration // since the beginning, as the recording plays it
	text string
}

// cast is a recording.
type cast struct {
	cols, rows int
	title      string
	events     []event
}

// write writes asciicast v2: a header, and one event a line.
func (c *cast) write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	head := struct {
		Version int    `json:"version"`
		Width   int    `json:"width"`
		Height  int    `json:"height"`
		Title   string `json:"title"`
	}{2, c.cols, c.rows, c.title}
	if err := enc.Encode(head); err != nil {
		return err
	}
	for _, e := range c.events {
		if err := enc.Encode([]any{e.at.Round(time.Millisecond).Seconds(), "o", e.text}); err != nil {
			return err
		}
	}
	return nil
}

// frame is a screen that is shown from a moment on.
type frame struct {
	at    time.Duration
	lines [][]cell
}

// frames plays the recording, not more often than every step.
func (c *cast) frames(step time.Duration) []frame {
	s := newScreen(c.cols, c.rows)
	var out []frame
	for i, e := range c.events {
		s.write(e.text)
		if i+1 < len(c.events) && c.events[i+1].at-e.at < step {
			continue
		}
		now := frame{e.at, s.shown()}
		if n := len(out); n == 0 || !slices.EqualFunc(out[n-1].lines, now.lines, slices.Equal[[]cell]) {
			out = append(out, now)
		}
	}
	return out
}

const (
	charWidth, lineHeight, margin = 8.43, 18, 14 // of a 14 px monospace font
	lastFrame                     = 6 * time.Second
)

// colours of the ANSI palette on a dark ground, by style.fg; all are readable
// on it (contrast above 4.5).
func colours() [9]string {
	return [9]string{"#e2e8f0", "#94a3b8", "#fca5a5", "#86efac", "#fde68a", "#93c5fd", "#f0abfc", "#67e8f9", "#f8fafc"}
}

// svg draws the recording as an animated picture: all frames one above the
// other, of which a window shows one at a time. Without animation it shows the
// last one.
func (c *cast) svg(w io.Writer, step time.Duration) error {
	fs := c.frames(step)
	if len(fs) == 0 {
		return fmt.Errorf("nothing was recorded")
	}
	total := fs[len(fs)-1].at + lastFrame
	width, height := float64(c.cols)*charWidth+2*margin, float64(c.rows*lineHeight+2*margin)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" role="img" aria-label="%s">`+"\n", width, height, width, escape(c.title))
	fmt.Fprintf(&b, "<style>text{font:14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre;fill:%s}.b{font-weight:700}", colours()[0])
	for i, colour := range colours() {
		if i > 0 {
			fmt.Fprintf(&b, ".c%d{fill:%s}", i, colour)
		}
	}
	fmt.Fprintf(&b, "\n.f{animation:p %.3fs steps(1,end) infinite}\n@keyframes p{", total.Seconds())
	for i, f := range fs {
		fmt.Fprintf(&b, "%.3f%%{transform:translateY(%.0fpx)}", 100*f.at.Seconds()/total.Seconds(), -float64(i)*height)
	}
	fmt.Fprintf(&b, "to{transform:translateY(%.0fpx)}}\n@media(prefers-reduced-motion:reduce){.f{animation:none}}</style>\n", -float64(len(fs)-1)*height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="10" fill="#0f172a"/>`+"\n"+`<g class="f" transform="translate(0,%.0f)">`+"\n", -float64(len(fs)-1)*height)
	for i, f := range fs {
		fmt.Fprintf(&b, `<svg y="%.0f" width="%.0f" height="%.0f">`+"\n", float64(i)*height, width, height)
		for y, line := range f.lines {
			if len(line) > 0 {
				fmt.Fprintf(&b, `<text xml:space="preserve" x="%d" y="%d">%s</text>`+"\n", margin, margin+(y+1)*lineHeight-4, spans(line))
			}
		}
		b.WriteString("</svg>\n")
	}
	b.WriteString("</g>\n</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// spans is a line, with an element for each run of one style.
func spans(line []cell) string {
	var b strings.Builder
	for len(line) > 0 {
		n := 1
		for n < len(line) && line[n].style == line[0].style {
			n++
		}
		var text strings.Builder
		for _, c := range line[:n] {
			if c.r == 0 {
				c.r = ' '
			}
			text.WriteRune(c.r)
		}
		var class []string
		if line[0].fg > 0 {
			class = append(class, fmt.Sprintf("c%d", line[0].fg))
		}
		if line[0].bold {
			class = append(class, "b")
		}
		if len(class) == 0 {
			b.WriteString(escape(text.String()))
		} else {
			fmt.Fprintf(&b, `<tspan class="%s">%s</tspan>`, strings.Join(class, " "), escape(text.String()))
		}
		line = line[n:]
	}
	return b.String()
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}
