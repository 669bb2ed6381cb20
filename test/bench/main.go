// Command bench measures all that this project says about its speed, in one run:
// the micro-benchmarks, then one program after the other, each of which compares
// with a floor that it measures in the same run. It prints one table, and writes
// bench.json:
//
//	micro    go test -bench, of every package that has benchmarks
//	pause    test/pause      how long a checkpoint stops a guest
//	disk     test/diskbench  what replication costs a guest's writes
//	load     test/load       CPU, latency and throughput of a protected guest, and
//	                         what the daemons take
//	stream   test/stream     the page stream, and zero-copy inside a guest
//	today    test/today      what save, snapshot and migration do to the same guest
//
// A program ends with a line of JSON (test/tool), and its figures become those of
// bench.json; figures that are expected and were not had are null there, and
// "skipped" says why. Parts that -only leaves out keep what an earlier run of the
// same sources wrote. The file is written anew after each part, so that Ctrl-C
// costs no more than the part that runs.
//
// It exits 1 when a part failed. An aim that is missed is no failure: the table
// says so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// options are what the command line says.
type options struct {
	parts     []part
	out       string
	build     string // where the programs are
	benchtime time.Duration
	timeout   time.Duration
}

func main() {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		tool.Usage("bench", err)
	}
	ctx, stop := tool.Context(o.timeout)
	head, err := newHead(ctx)
	if err == nil {
		err = run(ctx, o, head)
	}
	stop()
	if err != nil {
		say("%v", err)
		os.Exit(1)
	}
}

func parseOptions(args []string) (options, error) {
	o := options{parts: allParts()}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := f.String("only", "", "run these parts only, with commas between: "+strings.Join(partNames(), ", "))
	f.StringVar(&o.out, "out", "bench.json", "where the figures go")
	f.StringVar(&o.build, "build", "build", "where the programs are")
	f.DurationVar(&o.benchtime, "benchtime", 200*time.Millisecond, "of each micro-benchmark")
	f.DurationVar(&o.timeout, "timeout", 40*time.Minute, "give up after")
	f.Func("args", "arguments for a part, in the place of its own: 'pause=-rounds 20'; may be repeated", o.setArgs)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if *only == "" {
		return o, nil
	}
	wanted := strings.Split(*only, ",")
	for i, name := range wanted {
		if wanted[i] = strings.TrimSpace(name); !slices.Contains(partNames(), wanted[i]) {
			return o, fmt.Errorf("-only: %q is none of %s", name, strings.Join(partNames(), ", "))
		}
	}
	o.parts = slices.DeleteFunc(o.parts, func(p part) bool { return !slices.Contains(wanted, p.name) })
	return o, nil
}

// setArgs takes a part's arguments from the command line.
func (o *options) setArgs(text string) error {
	name, args, ok := strings.Cut(text, "=")
	i := slices.IndexFunc(o.parts, func(p part) bool { return p.name == name })
	if !ok || i < 0 {
		return fmt.Errorf("not PART=ARGUMENTS with a part of %s", strings.Join(partNames(), ", "))
	}
	o.parts[i].args = strings.Fields(args)
	return nil
}

// run goes through the parts. It returns what failed.
func run(ctx context.Context, o options, head tool.Head) error {
	r, err := begin(o.out, head)
	if err != nil {
		return err
	}
	began := time.Now()
	var failed []error
	for i, p := range o.parts {
		if ctx.Err() != nil {
			failed = append(failed, context.Cause(ctx))
			break
		}
		say("%s, part %d of %d", p.name, i+1, len(o.parts))
		got := p.measure(ctx, o)
		if !got.OK {
			failed = append(failed, fmt.Errorf("%s failed: %s", p.name, got.Error))
		}
		r.Parts[p.name], r.Date = got, got.Date
		r.Merge(owed())
		if err := r.Write(o.out); err != nil {
			return err
		}
		say("%s took %.0f s", p.name, got.Seconds)
	}
	printTable(os.Stdout, r)
	say("%s is written, after %.0f s", o.out, time.Since(began).Seconds())
	return errors.Join(failed...)
}

func say(format string, args ...any) { tool.Say("bench", format, args...) }
