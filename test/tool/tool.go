// Package tool is what the measuring programs under test/ have in common: how
// they end on a signal or after a time, the line of JSON that they close with,
// and the arithmetic of what they measured. test/bench starts them one after
// the other and reads that line.
//
// A program parses its flags, reports bad ones with Usage, and gives the rest of
// its work to Main:
//
//	func main() {
//		lab.MaybeHost()
//		o, err := parseOptions()
//		if err != nil {
//			tool.Usage("load", err)
//		}
//		tool.Main("load", func() time.Duration { return o.timeout }, func(ctx context.Context, r *tool.Result) error {
//			return run(ctx, o, r)
//		})
//	}
package tool

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Result is the closing line of a program. It belongs to one goroutine.
type Result struct {
	Tool string `json:"tool"` // the program's name, without "lab-"
	OK   bool   `json:"ok"`   // it ran to its end; says nothing about the figures
	// Metrics are figures by name. A ratio is to a floor of the same run; the
	// unit of any other is the name's end: _ms, _mib, _hz.
	Metrics map[string]float64 `json:"metrics"`
	// Skipped says for a metric why it could not be measured on this machine.
	Skipped map[string]string `json:"skipped"`
	// Details is what the program wants to show beyond that; anything that
	// marshals.
	Details any    `json:"details,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Metric notes a figure. One that is not a number, such as a ratio without a
// floor, is noted as skipped, for JSON has no such thing.
func (r *Result) Metric(name string, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		r.Skip(name, "nothing to compare with was measured")
		return
	}
	if r.Metrics == nil {
		r.Metrics = map[string]float64{}
	}
	r.Metrics[name] = Round3(v)
	delete(r.Skipped, name)
}

// Skip notes why a figure is not there. A figure that is there stays.
func (r *Result) Skip(name, why string) {
	if _, measured := r.Metrics[name]; measured {
		return
	}
	if r.Skipped == nil {
		r.Skipped = map[string]string{}
	}
	r.Skipped[name] = why
}

// Main carries run out, prints the closing line as the last one of standard
// output, and ends the process: 0 if run returned nil, else 1. The context of
// run ends on SIGINT, SIGTERM and SIGHUP, and when timeout has passed (0: no
// limit); run must return then and have cleaned up, for nothing deferred by the
// caller of Main is run. What is in the Result when run fails is printed too.
func Main(name string, timeout func() time.Duration, run func(ctx context.Context, r *Result) error) {
	ctx, stop := Context(timeout())
	r := &Result{Tool: name}
	complete(ctx, r, run)
	stop()
	End(name, r.line(), r.OK)
}

// End prints a closing line, whatever it is made of, as JSON, and ends the
// process: 0 if all is well, else 1. For programs whose line is not a Result.
func End(name string, line any, ok bool) {
	b, err := json.Marshal(line)
	if err == nil {
		_, err = os.Stdout.Write(append(b, '\n'))
	}
	if err != nil {
		Say(name, "the closing line cannot be written: %v", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
	os.Exit(0)
}

// complete calls run and notes how it ended.
func complete(ctx context.Context, r *Result, run func(context.Context, *Result) error) {
	if err := run(ctx, r); err != nil {
		r.Error = err.Error()
		return
	}
	r.OK = true
}

// Context ends on the signals that ask a program to end, and after timeout; 0
// is no limit. Further signals change nothing: Ctrl-C reaches a program from
// the terminal and from test/bench, and it cleans up all the same.
func Context(timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if timeout <= 0 {
		return ctx, stop
	}
	limited, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %v: %w", timeout, context.DeadlineExceeded))
	return limited, func() { cancel(); stop() }
}

// line is the Result as it is printed: with empty maps rather than none, and
// without Details that do not marshal, for the figures must not be lost for them.
func (r *Result) line() Result {
	out := *r
	if out.Metrics == nil {
		out.Metrics = map[string]float64{}
	}
	if out.Skipped == nil {
		out.Skipped = map[string]string{}
	}
	if _, err := json.Marshal(out.Details); err != nil {
		out.Details = fmt.Sprintf("left out: %v", err)
	}
	return out
}

// Usage reports arguments that make no sense, and ends the process with 2.
func Usage(name string, err error) {
	Say(name, "%v", err)
	os.Exit(2)
}

// Say tells the person before the terminal what happens, on standard error.
func Say(name, format string, args ...any) {
	fmt.Fprintf(os.Stderr, name+": "+format+"\n", args...)
}
