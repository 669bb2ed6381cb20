package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/virt-ft/virt-ft/internal/control"
)

const (
	topDelayMin = 100 * time.Millisecond
	// What the view of one domain asks for.
	topEpochs = 256
	topEvents = 50
)

// seconds is a flag as top(1) has it, a number of seconds, or a duration.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }
func (s *seconds) Type() string   { return "duration" }

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, nerr := strconv.ParseFloat(text, 64); nerr == nil && n >= 0 && n < 1e6 {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	*s = seconds(d)
	return err
}

func (a *app) topCommand() *cobra.Command {
	delay := seconds(time.Second)
	var rounds int
	var batch bool
	cmd := &cobra.Command{
		Use:   "top [DOMAIN]",
		Short: "Watch the domains of this host, live",
		Long: `Watch the domains of this host that are protected or stand by: states, checkpoints
a second, pauses, what the guests write and what is sent, output that waits, the age
of the last commit and the drift of clocks; or one of them in detail.

  q            quit                     ↑ ↓, k j     choose a domain
  Enter        its details, and back    s            sort by another column
  ?            help                     space        again, now

Where the output is no terminal, or with --batch, print one table after the other,
--iterations times.`,
		Example: `  virt-ft top
  virt-ft top web1 -d 0.5
  virt-ft top -b -n 1`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.protectedDomains(),
	}
	cmd.Flags().VarP(&delay, "delay", "d", "between two rounds: seconds, or a duration such as 500ms")
	cmd.Flags().IntVarP(&rounds, "iterations", "n", 0, "end after so many rounds; 0: never")
	cmd.Flags().BoolVarP(&batch, "batch", "b", false, "print tables, also to a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if time.Duration(delay) < topDelayMin {
			return usageError("--delay %s is below %s", delay.String(), topDelayMin)
		}
		if rounds < 0 {
			return usageError("--iterations %d is not a number of rounds", rounds)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		t := &topLoop{client: c, delay: time.Duration(delay), rounds: rounds, view: &topView{paint: a.out.paint, plain: !speaksUTF8(os.Getenv)}}
		if len(args) > 0 {
			t.view.selected, t.view.detail = args[0], true
		}
		if batch || !a.out.isTerminal {
			return t.batch(cmd.Context(), a)
		}
		return t.live(cmd.Context(), a)
	}
	return cmd
}

// topLoop asks the daemon and draws what it says.
type topLoop struct {
	client *control.Client
	delay  time.Duration
	rounds int // 0: no end
	view   *topView
}

// ask is one round: what the view shows now, or why that is not known.
func (t *topLoop) ask(ctx context.Context, selected string, detail bool) topSample {
	s := topSample{at: time.Now()}
	if s.list, s.err = t.client.Status(ctx, ""); s.err != nil || !detail {
		return s
	}
	domain := ""
	for _, st := range s.list {
		if st.Domain == selected || st.UUID == selected {
			domain = st.UUID
			if st.Role == control.RolePrimary {
				// Without them the rest is still worth seeing.
				_ = t.client.Epochs(ctx, st.Domain, topEpochs, false, func(e control.Epoch) error {
					s.epochs = append(s.epochs, e)
					return nil
				})
			}
		}
	}
	if domain == "" {
		domain = selected
	}
	_ = t.client.Events(ctx, control.EventQuery{Domain: domain, Last: topEvents}, nil, func(e control.Event) error {
		s.events = append(s.events, e)
		return nil
	})
	return s
}

// batch prints plain tables.
func (t *topLoop) batch(ctx context.Context, a *app) error {
	tick := time.NewTicker(t.delay)
	defer tick.Stop()
	for round := 1; ; round++ {
		s := t.ask(ctx, t.view.selected, t.view.detail)
		var known *control.Error
		switch {
		case ctx.Err() != nil:
			return nil
		case s.err != nil && (round == 1 || !errors.As(s.err, &known)):
			return s.err
		case s.err != nil:
			a.complain(known.Message, known.Remedy)
		default:
			if round > 1 {
				fmt.Fprintln(a.out)
			}
			t.view.take(s)
			for _, line := range t.view.page(a.out.wraps(), 0) {
				if _, err := fmt.Fprintln(a.out, line); err != nil {
					return err
				}
			}
		}
		if round == t.rounds {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// live draws on the whole terminal until q is pressed or ctx ends, and leaves the
// terminal as it was, whatever happens.
func (t *topLoop) live(ctx context.Context, a *app) error {
	ctx, cancel := context.WithCancel(ctx)
	stopRead, stopWrite, err := os.Pipe()
	if err != nil {
		cancel()
		return err
	}
	scr := &screen{in: a.in, out: a.out}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	keys, samples := make(chan key, 64), make(chan topSample, 1)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		stopWrite.Close()
		wg.Wait()
		stopRead.Close()
	}()
	defer scr.leave() // before waiting for anybody
	if err := scr.enter(); err != nil {
		return err
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer scr.leaveAtPanic()
		scr.readKeys(stopRead, keys)
	}()
	return t.run(ctx, scr, &wg, keys, samples, signals)
}

// run is the loop of live: one goroutine draws; a round that takes long delays
// only the next one, not keys.
func (t *topLoop) run(ctx context.Context, scr *screen, wg *sync.WaitGroup, keys <-chan key, samples chan topSample, signals <-chan os.Signal) error {
	tick := time.NewTicker(t.delay)
	defer tick.Stop()
	asking := false
	ask := func() {
		if asking {
			return
		}
		asking = true
		selected, detail := t.view.selected, t.view.detail
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer scr.leaveAtPanic()
			samples <- t.ask(ctx, selected, detail)
		}()
	}
	ask()
	for round := 0; ; {
		width, height := scr.out.size()
		if err := scr.draw(t.view.page(width, height)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			ask()
		case s := <-samples:
			asking = false
			t.view.take(s)
			if round++; round == t.rounds {
				return nil
			}
		case k, ok := <-keys:
			if !ok {
				keys = nil // no keyboard: signals still end it
				continue
			}
			switch t.view.press(k) {
			case topQuit:
				return nil
			case topSuspend:
				if err := scr.suspend(); err != nil {
					return err
				}
			case topAgain:
				ask()
			}
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP, syscall.SIGQUIT:
				return nil
			case syscall.SIGTSTP:
				if err := scr.suspend(); err != nil {
					return err
				}
			case syscall.SIGCONT: // others used the terminal since
				scr.leave()
				if err := scr.enter(); err != nil {
					return err
				}
			}
		}
	}
}

// speaksUTF8 reports whether the locale does.
func speaksUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			return utf8Locale(v)
		}
	}
	return false
}
