package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// byteCount writes a number of bytes in the largest binary unit that fits.
func byteCount(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	if i == 0 || n >= 100 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

// millis writes a duration given in milliseconds.
func millis(ms float64) string {
	switch {
	case ms == 0:
		return "-"
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 10_000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return time.Duration(ms * float64(time.Millisecond)).Round(time.Second).String()
}

// bytesOrDash writes a number of bytes, or of bytes in some time; none is no news.
func bytesOrDash(n float64, per string) string {
	if n == 0 {
		return "-"
	}
	return byteCount(n) + per
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// safeText makes text from elsewhere harmless for a terminal.
func safeText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// cell is one field of a table; its colour takes no width.
type cell struct{ text, colour string }

// lastColumnMin is the least width of a last column that is wrapped.
const lastColumnMin = 24

// table prints rows in columns. The last column is not padded; on a terminal it is
// wrapped to the width.
func table(t *terminal, rows [][]cell) {
	for _, line := range tableLines(rows, t.wraps(), t.paint) {
		fmt.Fprintln(t, line)
	}
}

// tableLines is table for a width, 0 being any.
func tableLines(rows [][]cell, width int, paint func(colour, text string) string) []string {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(safeText(c.text)))
		}
	}
	var lines []string
	for _, row := range rows {
		var line strings.Builder
		indent := 0
		for i, c := range row[:max(0, len(row)-1)] {
			text := safeText(c.text)
			line.WriteString(paint(c.colour, text))
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			indent += widths[i] + 2
		}
		if len(row) == 0 {
			lines = append(lines, "")
			continue
		}
		last := row[len(row)-1]
		parts := []string{safeText(last.text)}
		if room := width - indent; width > 0 && room >= lastColumnMin {
			parts = wrapText(parts[0], room)
		}
		for i, part := range parts {
			if i > 0 {
				line.WriteString(strings.Repeat(" ", indent))
			}
			line.WriteString(paint(last.colour, part))
			lines = append(lines, strings.TrimRight(line.String(), " "))
			line.Reset()
		}
	}
	return lines
}

// wrapText breaks text into lines of at most width characters, between words if
// these are not longer.
func wrapText(text string, width int) []string {
	var lines []string
	for utf8.RuneCountInString(text) > width {
		r := []rune(text)
		cut := width
		for i := width; i > 0; i-- {
			if r[i] == ' ' {
				cut = i
				break
			}
		}
		lines = append(lines, string(r[:cut]))
		text = strings.TrimLeft(string(r[cut:]), " ")
	}
	return append(lines, text)
}

func stateColour(s control.Status) string {
	switch {
	case s.Safe():
		return green
	case s.State == control.StateSyncing:
		return yellow
	}
	return red
}

// fillHelp sets the paragraphs of all help texts to the width of a terminal. What is indented
// stays as it is.
func fillHelp(cmd *cobra.Command) {
	parts := strings.Split(cmd.Long, "\n\n")
	for i, part := range parts {
		if !strings.HasPrefix(part, " ") && !strings.Contains(part, "\n ") {
			parts[i] = strings.Join(wrapText(strings.Join(strings.Fields(part), " "), defaultWidth), "\n")
		}
	}
	cmd.Long = strings.Join(parts, "\n\n")
	for _, sub := range cmd.Commands() {
		if sub.Name() != "completion" {
			fillHelp(sub)
		}
	}
}
