package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/virt-ft/virt-ft/internal/control"
)

// printJSON writes v for programs: indented, followed by a newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

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

// table prints rows in columns. The last column is not padded.
func table(t *terminal, rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(safeText(c.text)))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, c := range row {
			text := safeText(c.text)
			pad := widths[i] - utf8.RuneCountInString(text)
			if c.colour != "" {
				text = t.paint(c.colour, text)
			}
			line.WriteString(text)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", pad+2))
			}
		}
		fmt.Fprintln(t, strings.TrimRight(line.String(), " "))
	}
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
