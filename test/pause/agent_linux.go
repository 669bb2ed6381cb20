package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/internal/virt"
)

// agentArg0 is the name under which this program starts itself inside host A.
const agentArg0 = "virt-ft-pause-agent"

// request is one line on the agent's standard input.
type request struct {
	Op string `json:"op"` // the name of a kind, or "collect"
}

// answer is one line on its standard output. Times are CLOCK_MONOTONIC.
type answer struct {
	BeginNs   int64          `json:"begin_ns"` // of the first monitor command that may pause the guest
	EndNs     int64          `json:"end_ns"`   // of the reply to the last
	Phases    capture.Phases `json:"phases"`
	LivePages int            `json:"live_pages"`
	Error     string         `json:"error,omitempty"`
}

// agent is the process in the host, seen from here.
type agent struct {
	process *lab.Process
	in      io.WriteCloser
	out     *json.Decoder
	answers chan answer
	failed  chan error
}

// agentEndMax is how long the agent may take to let go of the guest.
const agentEndMax = 5 * time.Second

// startAgent starts the agent and waits until it tracks the guest.
func startAgent(ctx context.Context, h *lab.Host, domain string, passes int) (*agent, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close())
	}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{agentArg0, domain, strconv.Itoa(passes)}, Stdin: inR, Stdout: outW, Stderr: os.Stderr}
	p, err := h.Start(cmd)
	inR.Close()
	outW.Close()
	if err != nil {
		return nil, errors.Join(err, inW.Close(), outR.Close())
	}
	a := &agent{process: p, in: inW, answers: make(chan answer), failed: make(chan error, 1)}
	go a.read(outR)
	_, err = a.wait(ctx)
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *agent) read(out *os.File) {
	defer out.Close()
	dec := json.NewDecoder(out)
	for {
		var v answer
		if err := dec.Decode(&v); err != nil {
			a.failed <- fmt.Errorf("the agent in the host has ended: %w", err)
			return
		}
		select {
		case a.answers <- v:
		case <-a.process.Done():
			a.failed <- errors.New("the agent in the host has ended")
			return
		}
	}
}

// do has one operation carried out. After an error the agent is of no use.
func (a *agent) do(ctx context.Context, r request) (answer, error) {
	if err := json.NewEncoder(a.in).Encode(r); err != nil {
		return answer{}, fmt.Errorf("agent: %w", err)
	}
	return a.wait(ctx)
}

func (a *agent) wait(ctx context.Context) (answer, error) {
	select {
	case v := <-a.answers:
		if v.Error != "" {
			return v, errors.New(v.Error)
		}
		return v, nil
	case err := <-a.failed:
		return answer{}, err
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// close lets the agent finish what it does and waits for it.
func (a *agent) close() {
	_ = a.in.Close()
	ctx, cancel := context.WithTimeout(context.Background(), agentEndMax)
	defer cancel()
	if errors.Is(a.process.Wait(ctx), context.DeadlineExceeded) {
		_ = a.process.Kill()
	}
}

// maybeAgent turns this process into the agent if it was started as one, and
// then never returns.
func maybeAgent() {
	if os.Args[0] != agentArg0 {
		return
	}
	if err := agentMain(os.Args[1:]); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(answer{Error: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

func agentMain(args []string) (err error) {
	ctx := context.Background()
	if len(args) != 2 {
		return fmt.Errorf("%s is not for you to run", agentArg0)
	}
	domain := args[0]
	passes, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conn, err := virt.Open(ctx, "", slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	defer conn.Close()
	dom, err := conn.Lookup(ctx, domain)
	if err != nil {
		return err
	}
	o, err := newOperator(ctx, dom, passes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close(ctx)) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for a := (answer{}); ; {
		if err := out.Encode(a); err != nil {
			return err
		}
		var r request
		if err := in.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if a, err = o.do(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.Op, err)
		}
	}
}
