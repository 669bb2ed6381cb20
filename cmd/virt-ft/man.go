package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/virt-ft/virt-ft/internal/config"
)

// manCommand writes the man pages that packages ship.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages to a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writePages(cmd.Root(), args[0])
		},
	}
}

func writePages(cmd *cobra.Command, dir string) error {
	name := pageName(cmd)
	if err := os.WriteFile(filepath.Join(dir, name+".8"), []byte(manPage(cmd, name)), 0o644); err != nil {
		return err
	}
	for _, sub := range cmd.Commands() {
		if hasPage(sub) {
			if err := writePages(sub, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasPage leaves out what cobra made: `virt-ft completion` explains its shells itself.
func hasPage(cmd *cobra.Command) bool {
	return cmd.IsAvailableCommand() && cmd.Name() != "help" && (!cmd.HasParent() || cmd.Parent().Name() != "completion")
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// nameAndText is a row of a table of explanations.
type nameAndText struct{ name, text string }

// environment is what commands read of it.
func environment() []nameAndText {
	return []nameAndText{
		{"VIRT_FT_SOCKET", "control socket of the daemon, if --socket is not given"},
		{"NO_COLOR", "when set to anything: no colours"},
		{"CLICOLOR_FORCE", "when set, and not to 0: colours also where the output is no terminal"},
		{"TERM", "dumb: no colours, and nothing is redrawn"},
		{"JOURNAL_STREAM", "set by systemd: the daemon writes to the journal if its standard error is that"},
	}
}

// importantFiles are those that a user of commands may look for.
func importantFiles() []nameAndText {
	return []nameAndText{
		{config.DefaultPath, "configuration; every key is optional"},
		{config.Default().RunDir + "/control.sock", "control socket, unless the configuration says otherwise; root may use it, and the group that the configuration names"},
		{config.Default().StateDir, "what the daemon knows of protections over a reboot: leave it alone"},
	}
}

// manPage renders a command in the man(7) language.
func manPage(cmd *cobra.Command, name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 8 \"\" virt\\-ft \"virt\\-ft manual\"\n", roff(strings.ToUpper(name)))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(cmd.Short))
	b.WriteString(".SH SYNOPSIS\n")
	if cmd.HasParent() {
		fmt.Fprintf(&b, ".B %s\n", roff(cmd.UseLine()))
	} else {
		fmt.Fprintf(&b, ".B %s\n.I COMMAND\n[ARGUMENTS]\n", roff(cmd.Name()))
	}
	long, _, _ := strings.Cut(cmd.Long, "\n\nExit codes:\n") // has a section of its own
	if long == "" {
		long = cmd.Short + "."
	}
	b.WriteString(".SH DESCRIPTION\n" + manText(long))
	if !cmd.HasParent() {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range cmd.Commands() {
			if hasPage(sub) {
				fmt.Fprintf(&b, ".TP\n.BR %s (8)\n%s\n", roff(pageName(sub)), roff(sub.Short))
			}
		}
	}
	manFlags(&b, "OPTIONS", cmd.NonInheritedFlags())
	manFlags(&b, "GLOBAL OPTIONS", cmd.InheritedFlags())
	b.WriteString(".SH EXIT STATUS\n")
	for _, e := range exitCodes() {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s\n", e.code, roff(e.text))
	}
	manTable(&b, "ENVIRONMENT", environment())
	manTable(&b, "FILES", importantFiles())
	if cmd.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(cmd.Example))
	}
	seeAlso(&b, cmd)
	return b.String()
}

func manTable(b *strings.Builder, title string, rows []nameAndText) {
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, r := range rows {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(r.name), roff(r.text))
	}
}

func seeAlso(b *strings.Builder, cmd *cobra.Command) {
	var others []string
	if cmd.HasParent() {
		others = append(others, pageName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if hasPage(sub) {
			others = append(others, pageName(sub))
		}
	}
	others = append(others, "virsh")
	b.WriteString(".SH SEE ALSO\n")
	for i, other := range others {
		section, end := "8", ","
		if other == "virsh" {
			section = "1"
		}
		if i == len(others)-1 {
			end = ""
		}
		fmt.Fprintf(b, ".BR %s (%s)%s\n", roff(other), section, end)
	}
}

// manText sets help text: paragraphs are filled, what is indented stays as it is.
func manText(text string) string {
	var b strings.Builder
	for i, part := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(part, "  ") {
			fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(part))
		} else {
			b.WriteString(roff(part) + "\n")
		}
	}
	return b.String()
}

func manFlags(b *strings.Builder, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		option := "--" + f.Name
		if f.Shorthand != "" {
			option = "-" + f.Shorthand + ", " + option
		}
		if f.Value.Type() != "bool" {
			option += " " + strings.ToUpper(f.Name)
		}
		text := f.Usage
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" && f.DefValue != "0s" {
			text += fmt.Sprintf(" (default: %s)", f.DefValue)
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(option), roff(text))
	})
}

// roff escapes text: backslashes, what groff would print as another character,
// hyphens that must stay hyphens, and lines which would be taken for requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`, "↑", `\(ua`, "↓", `\(da`, "…", "...").Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
