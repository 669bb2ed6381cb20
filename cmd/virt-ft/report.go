package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/report"
)

func (a *app) reportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "report DOMAIN",
		Short: "Write the last hour of a domain as one HTML file",
		Long: `Write what this host's daemon remembers of DOMAIN as one HTML file that needs
nothing else: plots of the last hour, the last checkpoints, events, the settings in
force, and what check finds now. A protection that ended, or a failover, is in it
for an hour. The file is written whole or not at all; with -o - it goes to standard
output.

It names hosts, domains and files of this host. What fence agents are given is left
out.`,
		Example: `  virt-ft report web1
  virt-ft report web1 -o - | ssh desk 'cat >web1.html'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "the file (default: DOMAIN-DATE-TIME.html here)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		r := report.Report{}
		if r.History, err = c.History(cmd.Context(), args[0]); err != nil {
			return err
		}
		if r.Version, err = c.Version(cmd.Context()); err != nil {
			return err
		}
		// A guest that is gone cannot be checked; the report is of its past.
		if found, err := c.Check(cmd.Context(), control.CheckRequest{Domain: r.History.UUID, NoBandwidth: true}); err == nil {
			r.Check = &found
		} else if cmd.Context().Err() != nil {
			return err
		} else {
			r.CheckFailed = err.Error()
		}
		var b bytes.Buffer
		if err := r.Write(&b); err != nil {
			return err
		}
		if file == "-" {
			_, err := a.out.Write(b.Bytes())
			return err
		}
		if file == "" {
			file = reportName(r.History.Domain, r.History.Now)
		}
		if err := writeWhole(file, b.Bytes()); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s (%s)\n", file, byteCount(float64(b.Len())))
		return nil
	}
	return cmd
}

// reportName is a file's name of a domain, whose name may have anything in it.
func reportName(domain string, at time.Time) string {
	plain := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, domain)
	return plain + at.Local().Format("-20060102-150405.html")
}

// writeWhole replaces file by one with that content.
func writeWhole(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".virt-ft-report-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
