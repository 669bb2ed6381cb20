package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/daemon"
)

func (a *app) daemonCommand() *cobra.Command {
	var printConfig bool
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of this host",
		Long: `Run the daemon of this host in the foreground, logging to standard error. It
tells systemd when it is ready (sd_notify) and stops on SIGTERM or SIGINT.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printConfig {
				_, err := io.WriteString(a.out, config.Example())
				return err
			}
			cfg, err := config.Load(a.config)
			if err != nil {
				return err
			}
			log, err := newLogger(a.err, cfg.Log)
			if err != nil {
				return err
			}
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
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}
