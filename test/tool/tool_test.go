package tool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"syscall"
	"testing"
	"time"
)

// line is the closing line of a run, read again.
func line(t *testing.T, run func(context.Context, *Result) error) Result {
	t.Helper()
	r := &Result{Tool: "test"}
	complete(t.Context(), r, run)
	b, err := json.Marshal(r.line())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsRune(b, '\n') {
		t.Fatalf("more than a line: %q", b)
	}
	var got Result
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLine(t *testing.T) {
	got := line(t, func(_ context.Context, r *Result) error {
		r.Metric("a_ratio", 1.23456)
		r.Skip("b_ratio", "no floor")
		r.Metric("b_ratio", 2) // measured after all
		r.Metric("c_ratio", math.Inf(1))
		r.Metric("d_ratio", math.NaN())
		r.Skip("a_ratio", "a figure stays")
		r.Details = []int{1}
		return nil
	})
	if want := map[string]float64{"a_ratio": 1.235, "b_ratio": 2}; !maps.Equal(got.Metrics, want) {
		t.Errorf("metrics %v, want %v", got.Metrics, want)
	}
	if len(got.Skipped) != 2 || got.Skipped["c_ratio"] == "" || got.Skipped["d_ratio"] == "" {
		t.Errorf("skipped %v", got.Skipped)
	}
	if !got.OK || got.Tool != "test" || got.Error != "" || got.Details == nil {
		t.Errorf("%+v", got)
	}
}

func TestLineOfAFailure(t *testing.T) {
	got := line(t, func(_ context.Context, r *Result) error {
		r.Metric("a_ratio", 1)
		return errors.New("the lab fell over")
	})
	if got.OK || got.Error != "the lab fell over" || got.Metrics["a_ratio"] != 1 {
		t.Errorf("%+v", got)
	}
}

// Figures are not lost for details that do not marshal.
func TestLineWithoutItsDetails(t *testing.T) {
	got := line(t, func(_ context.Context, r *Result) error {
		r.Metric("a_ratio", 1)
		r.Details = math.NaN()
		return nil
	})
	if got.Metrics["a_ratio"] != 1 || got.Details == nil {
		t.Errorf("%+v", got)
	}
}

func TestContextEndsWithASignal(t *testing.T) {
	ctx, stop := Context(0)
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error(ctx.Err())
	}
}

func TestContextEndsInTime(t *testing.T) {
	ctx, stop := Context(time.Nanosecond)
	defer stop()
	<-ctx.Done()
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		t.Error(ctx.Err(), context.Cause(ctx))
	}
}
