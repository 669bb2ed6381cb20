package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// Help fits a terminal of 80 columns.
func TestHelpFits(t *testing.T) {
	root := (&app{in: os.Stdin, out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}).command()
	var each func(*cobra.Command)
	each = func(cmd *cobra.Command) {
		if cmd.HasParent() && cmd.Parent().Name() == "completion" {
			return // cobra's words
		}
		var help bytes.Buffer
		cmd.SetOut(&help)
		if err := cmd.Help(); err != nil {
			t.Error(err)
		}
		for _, line := range strings.Split(help.String(), "\n") {
			if utf8.RuneCountInString(line) > defaultWidth {
				t.Errorf("%s: %d columns: %s", cmd.CommandPath(), utf8.RuneCountInString(line), line)
			}
		}
		for _, sub := range cmd.Commands() {
			each(sub)
		}
	}
	each(root)
}

func TestWrapText(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "short": "short", "0123456789": "0123456789", "one two three four": "one two|three four",
		"01234567890123 x": "0123456789|0123 x", "größere Wörter hier": "größere|Wörter|hier",
	} {
		if got := strings.Join(wrapText(text, 10), "|"); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
	rows := [][]cell{{{text: "name"}, {text: strings.Repeat("word ", 12)}}, {{text: "x"}, {text: "y"}}}
	for _, line := range tableLines(rows, 40, func(_, text string) string { return text }) {
		if len(line) > 40 {
			t.Errorf("%q", line)
		}
	}
	if n := len(tableLines(rows, 0, func(_, text string) string { return text })); n != 2 {
		t.Errorf("%d lines without a width", n)
	}
}
