package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) checkCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "check [DOMAIN]",
		Short: "Tell whether this host, and a domain, can be protected",
		Long: `Tell whether this host, and DOMAIN if named, can be protected, and what to do
if not. With --to also whether that host can take it. Nothing is changed.

Exits with 1 when something prevents protection.`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&to, "to", "", "the host that would hold the standby")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.ask(*output, func(c *control.Client, asJSON bool) error {
			domain := ""
			if len(args) > 0 {
				domain = args[0]
			}
			report, err := c.Check(cmd.Context(), domain, to)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(a.out, report)
			} else {
				a.printReport(report)
			}
			if err == nil && report.Worst() == control.LevelFail {
				return exitError(control.ExitError)
			}
			return err
		})
	}
	return cmd
}

func (a *app) printReport(r control.CheckReport) {
	a.printFindings("host "+r.HostName, r.Host)
	if r.DomainName != "" {
		fmt.Fprintln(a.out)
		a.printFindings("domain "+r.DomainName, r.Domain)
	}
	what := "this host"
	if r.DomainName != "" {
		what = safeText(r.DomainName)
	}
	fmt.Fprintln(a.out)
	switch r.Worst() {
	case control.LevelFail:
		fmt.Fprintf(a.out, "%s: %s cannot be protected as it is\n", a.out.paint(red, "no"), what)
	case control.LevelWarn:
		fmt.Fprintf(a.out, "%s: %s can be protected, with the warnings above\n", a.out.paint(yellow, "yes"), what)
	default:
		fmt.Fprintf(a.out, "%s: %s can be protected\n", a.out.paint(green, "yes"), what)
	}
}

func (a *app) printFindings(title string, findings []control.Finding) {
	fmt.Fprintln(a.out, a.out.paint(bold, safeText(title)))
	colours := map[control.Level]string{control.LevelOK: green, control.LevelWarn: yellow, control.LevelFail: red}
	var rows [][]cell
	for _, f := range findings {
		rows = append(rows, []cell{{text: "  " + string(f.Level), colour: colours[f.Level]}, {text: f.Item}, {text: f.Text}})
		if f.Remedy != "" {
			rows = append(rows, []cell{{}, {}, {text: "try: " + f.Remedy}})
		}
	}
	table(a.out, rows)
}
