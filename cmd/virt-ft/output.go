package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/virt-ft/virt-ft/internal/control"
)

// Values of -o. Every command that prints facts knows the first three.
const (
	formatTable = "table" // for people; its columns may change
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatWide  = "wide" // a table with more columns
	formatName  = "name" // names of domains, one a line
)

// output is how a command prints its facts. What programs get, JSON or YAML, has
// the fields of package control, and nothing else is on standard output.
type output struct {
	format    string
	noHeaders bool
	known     []string
}

// outputFlag adds -o to a command; also are formats beyond those that all know.
func outputFlag(cmd *cobra.Command, also ...string) *output {
	o := &output{known: append([]string{formatTable, formatJSON, formatYAML}, also...)}
	cmd.Flags().StringVarP(&o.format, "output", "o", formatTable, orList(o.known))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.known, cobra.ShellCompDirectiveNoFileComp))
	return o
}

// headersFlag adds --no-headers, for tables that have a line of titles.
func (o *output) headersFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "leave the line of titles out")
}

// check refuses a format that is not known.
func (o *output) check() error {
	if !slices.Contains(o.known, o.format) {
		return usageError("-o %s: known are %s", o.format, orList(o.known))
	}
	return nil
}

// forPrograms reports whether nobody is to read it.
func (o *output) forPrograms() bool { return o.format == formatJSON || o.format == formatYAML }

// whole writes v, all that there is to say, for programs.
func (o *output) whole(w io.Writer, v any) error {
	if o.format == formatYAML {
		b, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// next writes v, one of a stream of values, for programs: a line of JSON, or a
// document of YAML. Each is one write, so that whoever reads has it whole.
func (o *output) next(w io.Writer, v any) error {
	var b bytes.Buffer
	if o.format == formatYAML {
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		b.WriteString("---\n")
		b.Write(text)
	} else {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// show prints v for programs, or what people prints for people.
func (a *app) show(o *output, v any, people func()) error {
	if o.forPrograms() {
		return o.whole(a.out, v)
	}
	people()
	return nil
}

// showNext is show for one of a stream of values.
func (a *app) showNext(o *output, v any, people func() string) error {
	if o.forPrograms() {
		return o.next(a.out, v)
	}
	_, err := fmt.Fprintln(a.out, people())
	return err
}

// ask has f talk to the daemon, when the value of -o is one that is known.
func (a *app) ask(o *output, f func(c *control.Client) error) error {
	if err := o.check(); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// orList is "a, b or c".
func orList(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
