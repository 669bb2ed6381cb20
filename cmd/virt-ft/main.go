// Command virt-ft keeps a running libvirt guest alive when its host dies: its
// daemon on two hosts, and the commands that talk to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/daemon"
)

func main() {
	daemon.Early() // must be first: this process may have been started as a helper of the daemon
	os.Exit(run())
}

// run executes the command line of this process and returns its exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &app{out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}
	root := a.command()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return control.ExitOK
	}
	return a.report(ctx, err)
}

// app is what all subcommands share.
type app struct {
	out, err *terminal
	socket   string // of --socket
	config   string // of --config
	started  bool   // arguments are fine, a subcommand runs
}

const rootLong = `virt-ft keeps a running libvirt guest alive when its host dies: a standby on
another host has its memory, a few milliseconds old, and goes on by itself.

Exit codes:
  0    done
  1    failed: the message says why and what to do
  2    wrong usage
  3    the domain is not protected (any more)
  4    no daemon answers
  130  interrupted`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:               "virt-ft",
		Short:             "Fault tolerance for libvirt guests",
		Long:              rootLong,
		Args:              cobra.NoArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableAutoGenTag: true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.PersistentFlags().StringVar(&a.socket, "socket", "",
		"control socket of the daemon (default: $VIRT_FT_SOCKET, else that of the configuration)")
	root.PersistentFlags().StringVar(&a.config, "config", config.DefaultPath, "configuration file")
	root.AddCommand(a.activateCommand(), a.checkCommand(), a.daemonCommand(), a.epochsCommand(), a.eventsCommand(), a.failbackCommand(), a.manCommand(),
		a.protectCommand(), a.setCommand(), a.statusCommand(), a.unprotectCommand(), a.versionCommand())
	for _, cmd := range root.Commands() {
		work := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true // what fails from now on is no mistake in the arguments
			return work(cmd, args)
		}
	}
	return root
}

// client returns a client of the daemon's control socket.
func (a *app) client() (*control.Client, error) {
	socket := a.socket
	if socket == "" {
		socket = os.Getenv("VIRT_FT_SOCKET")
	}
	if socket == "" {
		c, err := config.Load(a.config)
		if errors.Is(err, os.ErrPermission) {
			c, err = config.Parse("", "") // group members may use the socket, not read the configuration
		}
		if err != nil {
			return nil, err
		}
		socket = c.Control.Socket
	}
	return control.NewClient(socket), nil
}

// ask has f talk to the daemon, when output, the value of -o, is one that is known.
func (a *app) ask(output string, f func(c *control.Client, asJSON bool) error) error {
	asJSON, err := wantJSON(output)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c, asJSON)
}

// exitError ends the program with a code but without a message: everything was
// said already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// report tells the user what failed and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	var code exitError
	if errors.As(err, &code) {
		return int(code)
	}
	var known *control.Error
	switch {
	case errors.As(err, &known):
		a.complain(known.Message, known.Remedy)
		return known.ExitCode()
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		a.complain("interrupted", "")
		return control.ExitInterrupted
	case !a.started:
		a.complain(err.Error(), "virt-ft --help")
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
	return control.Errorf(control.CodeInvalid, "virt-ft --help", format, args...)
}

// outputFlag adds -o to a command and returns where its value is.
func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "table", "table or json")
}

// wantJSON interprets the value of -o.
func wantJSON(output string) (bool, error) {
	switch output {
	case "json":
		return true, nil
	case "table":
		return false, nil
	}
	return false, usageError("-o %s: only table and json are known", output)
}
