package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/pki"
)

// expiresSoon is when the rest of a certificate's time is worth a word.
const expiresSoon = 30 * 24 * time.Hour

const pkiLong = `Daemons prove to each other who they are with certificates, in the files where
libvirt has its own (https://libvirt.org/kbase/tlscerts.html). Where there are none,
this makes an authority and what each host needs:

  virt-ft pki ca ca
  virt-ft pki host hostA --ca ca --address 192.0.2.1
  virt-ft pki host hostB --ca ca --address 192.0.2.2

It is meant for laboratories and small sites. Whoever has the authority's key can
pretend to be any host, to libvirt's own TLS, too: keep it off the hosts.`

func (a *app) pkiCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "pki", Short: "Certificates of hosts: show them, make them", Long: pkiLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.pkiCACommand(), a.pkiHostCommand(), a.pkiShowCommand())
	for _, sub := range cmd.Commands() {
		work := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return work(cmd, args)
		}
	}
	return cmd
}

func (a *app) pkiCACommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ca DIR", Short: "Make a certificate authority in a directory", Args: cobra.ExactArgs(1)}
	name := cmd.Flags().String("name", "virt-ft-ca", "what the authority calls itself")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		dir := args[0]
		if err := pki.CreateCA(dir, *name, time.Now()); err != nil {
			return pkiError(err, "an authority that is there is never replaced: name another directory")
		}
		fmt.Fprintf(a.out, "%s  for every host\n%s   secret: signs hosts; belongs on none of them\n\nnext: virt-ft pki host NAME --ca %s --address ADDRESS\n",
			filepath.Join(dir, pki.CACertFile), filepath.Join(dir, pki.CAKeyFile), dir)
		return nil
	}
	return cmd
}

func (a *app) pkiHostCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "host NAME", Short: "Make the certificates of a host, signed by such an authority", Args: cobra.ExactArgs(1)}
	ca := cmd.Flags().String("ca", ".", "directory of the authority")
	out := cmd.Flags().String("out", "", "directory to be made (default: NAME in the authority's)")
	addresses := cmd.Flags().StringSlice("address", nil, "IP address at which other hosts reach it; may be repeated")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		name := args[0]
		ips := make([]netip.Addr, len(*addresses))
		for i, text := range *addresses {
			var err error
			if ips[i], err = netip.ParseAddr(text); err != nil {
				return control.Errorf(control.CodeInvalid, "names go before the flags: virt-ft pki host NAME --address 192.0.2.1", "%q is not an IP address", text)
			}
		}
		if *out == "" {
			*out = filepath.Join(*ca, name)
		}
		files, err := pki.CreateHost(*ca, name, ips, *out, time.Now())
		if err != nil {
			return pkiError(err, "certificates that are there are never replaced: move them away, or name another directory with --out")
		}
		for _, f := range []string{files.CACert, files.ServerCert, files.ServerKey, files.ClientCert, files.ClientKey} {
			fmt.Fprintln(a.out, f)
		}
		fmt.Fprintf(a.out, "\ncopy them to %s, as root there, keeping modes, after a look at what it has already:\n  tar -C %s -c etc | ssh root@%s tar -C / -xv --no-same-owner --skip-old-files\nand set in /etc/virt-ft/virt-ft.toml there: host = %q, and the other hosts in [peers]\n",
			name, *out, name, name)
		return nil
	}
	return cmd
}

func pkiError(err error, there string) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		return control.Errorf(control.CodeConflict, there, "%w", err)
	case errors.Is(err, fs.ErrNotExist):
		return control.Errorf(control.CodeNotFound, "virt-ft pki ca DIR makes an authority", "%w", err)
	}
	return err
}

// shownCertificate is a certificate as `virt-ft pki show -o json` has it.
type shownCertificate struct {
	Use       string    `json:"use"`
	File      string    `json:"file"`
	Names     []string  `json:"names"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Error     string    `json:"error,omitempty"`
}

func (a *app) pkiShowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: "Show whom this host's certificates are made out to, and until when", Args: cobra.NoArgs}
	output := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := output.check(); err != nil {
			return err
		}
		c, err := config.Load(a.config)
		if err != nil {
			return err
		}
		t, now := c.Transport, time.Now()
		found := pki.Files{CACert: t.CA, ServerCert: t.ServerCert, ServerKey: t.ServerKey, ClientCert: t.ClientCert, ClientKey: t.ClientKey}.Certificates(now)
		shown := make([]shownCertificate, len(found))
		bad := false
		for i, x := range found {
			shown[i] = shownCertificate{Use: string(x.Use), File: x.File, Names: x.Names, NotBefore: x.NotBefore, NotAfter: x.NotAfter}
			if x.Err != nil {
				bad, shown[i].Error = true, x.Err.Error()
			}
		}
		err = a.show(output, shown, func() { table(a.out, certificateRows(found, now)) })
		if err == nil && bad {
			err = exitError(control.ExitError)
		}
		return err
	}
	return cmd
}

func certificateRows(found []pki.Certificate, now time.Time) [][]cell {
	rows := [][]cell{{{text: "USE"}, {text: "FILE"}, {text: "NAMES"}, {text: "EXPIRES"}, {text: "STATE"}}}
	for _, x := range found {
		until, state := "-", cell{"ok", green}
		if !x.NotAfter.IsZero() {
			until = x.NotAfter.UTC().Format("2006-01-02")
		}
		switch {
		case x.Err != nil:
			state = cell{safeText(x.Err.Error()), red}
		case x.Left(now) < expiresSoon:
			state = cell{fmt.Sprintf("expires in %d days", int(x.Left(now).Hours()/24)), yellow}
		}
		rows = append(rows, []cell{{text: string(x.Use)}, {text: safeText(x.File)}, {text: dash(safeText(strings.Join(x.Names, ", ")))}, {text: until}, state})
	}
	return rows
}
