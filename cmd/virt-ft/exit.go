package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

// exitCode is a code that commands end with.
type exitCode struct {
	code int
	text string
}

// exitCodes is what the help, the man pages and docs/CLI.md say of them.
func exitCodes() []exitCode {
	return []exitCode{
		{control.ExitOK, "done, or yes"},
		{control.ExitError, "failed, or no: the message says why and what to do"},
		{control.ExitUsage, "wrong usage"},
		{control.ExitNotProtected, "the domain is not protected, or does not survive the loss of a host now"},
		{control.ExitNoDaemon, "no daemon answers"},
		{control.ExitTimeout, "wait: not within the time given"},
		{exitConfig, "daemon: its configuration cannot work, also next time"},
		{control.ExitInterrupted, "interrupted"},
	}
}

// exitTable is exitCodes for a page of help.
func exitTable() string {
	var b strings.Builder
	b.WriteString("Exit codes:")
	for _, e := range exitCodes() {
		fmt.Fprintf(&b, "\n  %-4d %s", e.code, e.text)
	}
	return b.String()
}

// exitError ends the program with a code but without a message: everything was
// said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// report tells the user what failed and returns the exit code. cmd is the
// command that did.
func (a *app) report(ctx context.Context, cmd *cobra.Command, err error) int {
	var code exitError
	if errors.As(err, &code) {
		return int(code)
	}
	var known *control.Error
	help := cmd.CommandPath() + " --help"
	switch {
	case errors.As(err, &known):
		remedy := known.Remedy
		if remedy == "" && known.Code == control.CodeInvalid {
			remedy = help
		}
		a.complain(known.Message, remedy)
		return known.ExitCode()
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		a.complain("interrupted", "")
		return control.ExitInterrupted
	case !a.started:
		a.complain(err.Error(), help)
		return control.ExitUsage
	}
	a.complain(err.Error(), "")
	return control.ExitError
}

func (a *app) complain(message, remedy string) {
	fmt.Fprintf(a.err, "%s %s\n", a.err.paint(red, "virt-ft:"), message)
	if remedy != "" {
		fmt.Fprintf(a.err, "  %s %s\n", a.err.paint(bold, "try:"), remedy)
	}
}

// usageError makes a message about wrong arguments that only a subcommand can see.
func usageError(format string, args ...any) error {
	return control.Errorf(control.CodeInvalid, "", format, args...)
}

// noSuchCommand is the root command's view of arguments: it takes none, so a
// word there is a command that is not known.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := cmd.CommandPath() + " --help"
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		remedy = cmd.CommandPath() + " " + like[0]
	}
	return control.Errorf(control.CodeInvalid, remedy, "unknown command %q", args[0])
}
