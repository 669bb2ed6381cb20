package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

func (a *app) checkCommand() *cobra.Command {
	var req control.CheckRequest
	cmd := &cobra.Command{
		Use:   "check [DOMAIN]",
		Short: "Tell whether this host, and a domain, can be protected",
		Long: `Tell whether this host, and DOMAIN if named, can be protected, and what to do
if not. With --to also whether that host can take it: its daemon is asked, and
round trip, clocks and bandwidth are measured by the transport that a protection
uses. Nothing is changed. The measurement of bandwidth sends for less than a
second, and a tenth of that where guests are protected already; --no-bandwidth
leaves it out. What each finding means is in docs/CHECK.md, by the "id" of
-o json.

Exits with 1 when something prevents protection.`,
		Example: `  virt-ft check
  virt-ft check web1 --to hostB`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.runningDomains(),
	}
	a.toFlag(cmd, &req.To, "the host that would hold the standby")
	cmd.Flags().BoolVar(&req.NoBandwidth, "no-bandwidth", false, "do not measure what the link carries")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.ask(output, func(c *control.Client) error {
			if len(args) > 0 {
				req.Domain = args[0]
			}
			report, err := c.Check(cmd.Context(), req)
			if err != nil {
				return err
			}
			err = a.show(output, report, func() { a.printReport(report) })
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
	if r.PeerName != "" {
		fmt.Fprintln(a.out)
		a.printFindings("peer "+r.PeerName, r.Peer)
	}
	if r.DomainName != "" {
		fmt.Fprintln(a.out)
		a.printFindings("domain "+r.DomainName, r.Domain)
	}
	fmt.Fprintln(a.out)
	a.printVerdict(r)
}

// printVerdict says in a line what the findings come to.
func (a *app) printVerdict(r control.CheckReport) {
	what := "this host"
	if r.DomainName != "" {
		what = safeText(r.DomainName)
	}
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
