package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/daemon"
	"github.com/virt-ft/virt-ft/internal/journal"
)

func (a *app) daemonCommand() *cobra.Command {
	var printConfig bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of this host",
		Long: `Run the daemon of this host in the foreground, logging to standard error or, under
systemd, to the journal with fields (log.format in the configuration). It tells
systemd when it is ready (sd_notify) and stops on SIGTERM or SIGINT. Guests run on
when it stops, protected ones unprotected until it is back.`,
		Example: `  virt-ft daemon --print-config > /etc/virt-ft/virt-ft.toml
  journalctl -u virt-ft VIRT_FT_DOMAIN=web1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printConfig {
				_, err := io.WriteString(a.out, config.Example())
				return err
			}
			cfg, err := a.configured()
			if err != nil {
				return err
			}
			log, err := newLogger(a.err, cfg.Log)
			if err != nil {
				return err
			}
			// A standard error that nobody reads any more is no reason to die.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			d, err := daemon.New(cfg, log)
			if err != nil {
				return err
			}
			return d.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "print a configuration file with all defaults, and exit")
	return cmd
}

func newLogger(w io.Writer, c config.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	text := slog.NewTextHandler(w, o)
	switch {
	case c.Format == config.LogJSON:
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case c.Format == config.LogJournal, c.Format == config.LogAuto && journal.OnStandardError():
		return slog.New(journal.New(level, text)), nil
	}
	return slog.New(text), nil
}
