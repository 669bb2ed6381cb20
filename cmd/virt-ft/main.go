// Command virt-ft keeps a running libvirt guest alive when its host dies: its
// daemon on two hosts, and the commands that talk to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
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
	a := &app{in: os.Stdin, out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}
	root := a.command()
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return control.ExitOK
	}
	return a.report(ctx, cmd, err)
}

// app is what all subcommands share.
type app struct {
	in       *os.File
	out, err *terminal
	socket   string // of --socket
	config   string // of --config
	started  bool   // arguments are fine, a subcommand runs
}

const rootLong = `virt-ft keeps a running libvirt guest alive when its host dies: a standby on
another host has its memory, a few milliseconds old, and goes on by itself.

`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:               "virt-ft",
		Short:             "Fault tolerance for libvirt guests",
		Long:              rootLong + exitTable(),
		Args:              noSuchCommand,
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
	root.SuggestionsMinimumDistance = 2
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", fmt.Sprintf(".FlagUsagesWrapped %d", defaultWidth)))
	root.AddCommand(a.activateCommand(), a.checkCommand(), a.daemonCommand(), a.epochsCommand(), a.eventsCommand(), a.failbackCommand(), a.manCommand(),
		a.pkiCommand(), a.protectCommand(), a.reportCommand(), a.setCommand(), a.statusCommand(), a.topCommand(), a.unprotectCommand(), a.versionCommand(), a.waitCommand())
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" { // cobra's own takes any word for a request for help
			cmd.Args, cmd.RunE = noSuchCommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	a.markStart(root)
	fillHelp(root)
	return root
}

// markStart has every command note that it runs: what fails from then on is no
// mistake in the arguments.
func (a *app) markStart(parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		a.markStart(cmd)
		if work := cmd.RunE; work != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				a.started = true
				return work(cmd, args)
			}
		}
	}
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
