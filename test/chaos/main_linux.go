// Command chaos asks one question again and again: does anybody lose anything?
// Clients work with a guest that virt-ft protects; at a random moment something
// dies, stands still or is cut off, or an operator does something: see the list
// of faults. The guest must go on, on one host, with all that it ever answered
// and on the same connections. Then it is protected again, to the other host,
// and the next round begins. The clients' own log is the judge, and an observer
// behind the switch, which hears everything that has the guest's address: from
// the moment when the guest is heard from one host, a frame from the other is
// that of a second copy.
//
// The guest has two disks. On one, every answer's record was durable before the
// answer was given; on the other it makes, renames and removes files. After each
// fault the guest compares both with its memory, and the image under it must
// hold the record of every answer that a client ever got. Now and then the file
// system on the image is checked, and the images of both hosts are compared.
//
// Every round has a line on standard error; the last line, on standard output,
// is JSON. The first loss ends the run. A seed repeats the choices of a run,
// not its timing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// chaos is one run.
type chaos struct {
	lab    *lab.Lab
	out    *lab.Observer
	client *lab.Client
	guest  *lab.Guest
	home   *lab.Host // where the guest runs

	kinds   []kind
	chosen  bool // by the caller
	seed    uint64
	first   int // number of the first round
	kills   int
	binary  string
	dir     string // of the lab, kept; "" is a temporary one
	extra   string // TOML for both daemons
	stepMax time.Duration
	tick    time.Duration
	// patience is for how long the daemons may protect the guest by themselves
	// before they are asked.
	patience time.Duration
	looked   time.Time // when was looked last who is heard
	arbiter  string
	load     lab.ClientOptions
	rounds   map[kind][]outcome
	report   report
}

func main() {
	lab.MaybeHost()
	c := &chaos{rounds: map[kind][]outcome{}}
	flag.IntVar(&c.kills, "kills", 200, "rounds, each with one fault")
	flag.Uint64Var(&c.seed, "seed", 0, "of all random choices; 0 takes one from the clock")
	flag.IntVar(&c.first, "from", 1, "number of the first round, to repeat a part of a run")
	only := flag.String("only", "", "faults to choose from, such as qemu,link (default all)")
	flag.StringVar(&c.binary, "virt-ft", "build/virt-ft", "the program under test")
	flag.StringVar(&c.dir, "dir", "", "where the hosts' disks and logs are to stay (default: nowhere)")
	flag.StringVar(&c.extra, "config", "", "TOML for both daemons' configurations")
	flag.StringVar(&c.arbiter, "arbiter", arbiterFile, "of both daemons: file, a directory that both hosts share, or etcd, one member in a third place")
	flag.DurationVar(&c.patience, "patience", 8*time.Second, "after a failover, until the daemons are asked to protect again; 0 forbids them to do so by themselves")
	flag.DurationVar(&c.stepMax, "step", time.Minute, "limit of each wait")
	flag.DurationVar(&c.tick, "tick", 10*time.Millisecond, "how often the guest tells the observer where it is, at least 1ms")
	flag.IntVar(&c.load.TCP, "tcp", 4, "TCP sessions")
	flag.IntVar(&c.load.UDP, "udp", 2, "UDP sessions")
	flag.BoolVar(&c.load.IPv6, "ipv6", true, "every other session over IPv6")
	flag.DurationVar(&c.load.Pace, "pace", 10*time.Millisecond, "of each session, from an answer to the next request")
	flag.DurationVar(&c.load.Jitter, "jitter", 30*time.Millisecond, "added to the pace at random")
	flag.Parse()
	var err error
	c.kinds, err = parseKinds(*only)
	if known := c.arbiter == arbiterFile || c.arbiter == arbiterEtcd; err != nil || !known || c.kills < 1 || c.first < 1 || c.tick < time.Millisecond {
		fmt.Fprintln(os.Stderr, "chaos: bad arguments:", err)
		os.Exit(2)
	}
	c.chosen = *only != ""
	if c.seed == 0 {
		c.seed = uint64(time.Now().UnixNano())
	}
	ctx, stop := tool.Context(0)
	ok := c.main(ctx)
	stop()
	tool.End("chaos", c.report, ok)
}

// main runs it all and fills the closing line. It tells whether all is well.
func (c *chaos) main(ctx context.Context) bool {
	began := time.Now()
	err := c.run(ctx)
	r := &c.report
	r.Chaos, r.Seed, r.Seconds = "ok", c.seed, time.Since(began).Seconds()
	r.tally(c.rounds)
	if err != nil {
		r.Error = err.Error()
	}
	if err != nil || r.lost() {
		r.Chaos = "failed"
	}
	return r.Chaos == "ok"
}

func (c *chaos) run(ctx context.Context) error {
	if err := c.build(ctx); err != nil {
		c.close()
		return err
	}
	defer c.close()
	say("seed %d, %d rounds of %v; guest %s boot %v", c.seed, c.kills, c.kinds, c.guest.Name, c.guest.Ready.BootID)
	for i := c.first; i < c.first+c.kills; i++ {
		rng := rand.New(rand.NewPCG(c.seed, uint64(i)))
		k := draw(c.kinds, rng)
		o, err := c.round(ctx, i, k, rng)
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), c.judge(context.WithoutCancel(ctx)))
		}
		if err != nil {
			c.report.FailedRound = i
			say("round %d, %s: FAILED: %v", i, k, err)
			say("again: -seed %d -from %d", c.seed, i)
			c.showLogs(context.WithoutCancel(ctx))
			return fmt.Errorf("round %d, %s: %w", i, k, err)
		}
		c.rounds[k] = append(c.rounds[k], o)
		where := "stays on"
		if o.moved {
			where = fmt.Sprintf("after %.0f ms on", float64(o.failover.Microseconds())/1000)
		}
		say("round %d: %-16s guest %s %s, longest silence %.0f ms, %d answers in all, protected again after %.1f s",
			i, k, where, c.home.Name, float64(o.silence.Microseconds())/1000, c.client.Verdict().Acked, o.spent[phaseRepair].Seconds())
	}
	return c.judge(ctx)
}

// The arbiters to choose from.
const arbiterFile, arbiterEtcd = "file", "etcd"

// lookMax bounds a look at what a failed run leaves.
const lookMax = 20 * time.Second

// guestMemMiB and the working set are small, so that a round is short.
const (
	guestMemMiB  = 192
	guestCmdline = "ft.mem_mb=16 ft.dirty_pages_s=1000 ft.verify_pages_s=16000 ft.tick_ms=%d"
)

// build makes hosts, daemons, guest and client.
func (c *chaos) build(ctx context.Context) error {
	assets, err := lab.FindAssets()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.stepMax)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if c.lab, err = lab.New(ctx, lab.Options{Dir: c.dir, Log: log}); err != nil {
		return err
	}
	if !strings.Contains(c.extra, "reprotect") {
		c.extra = fmt.Sprintf("reprotect = %t\n", c.patience > 0) + c.extra
	}
	o := lab.DaemonOptions{Extra: c.extra, Arbiter: lab.FileArbiter}
	if c.arbiter == arbiterEtcd {
		o.Arbiter = lab.EtcdArbiter
		if _, err := c.lab.StartEtcd(ctx); err != nil {
			return err
		}
	}
	if err := c.lab.InstallDaemonsWith(c.binary, o); err != nil {
		return err
	}
	if err := c.lab.StartDaemons(ctx); err != nil {
		return err
	}
	c.home, c.looked = c.lab.A, time.Now()
	if !c.chosen {
		c.dropFailback(ctx)
	}
	if c.out, err = lab.NewObserver(c.lab, time.Second); err != nil {
		return err
	}
	boot, err := c.lab.InstallBoot(assets)
	if err != nil {
		return err
	}
	boot.NIC, boot.MemMiB, boot.Cmdline = true, guestMemMiB, fmt.Sprintf(guestCmdline, c.tick.Milliseconds())
	boot.Disks, boot.AcceptDisk = guestDisks(), recordsDisk
	if c.guest, err = c.home.StartGuest(ctx, boot); err != nil {
		return err
	}
	c.load.ID, c.load.Seed, c.load.AnswerMax = 1, c.seed, c.stepMax/2
	if c.client, err = c.lab.StartClient(ctx, c.load); err != nil {
		return err
	}
	return c.loadDisks(ctx)
}

// dropFailback takes a fault off the list that the program under test, which may
// be an older one, does not know.
func (c *chaos) dropFailback(ctx context.Context) {
	if help, err := c.home.Ctl(ctx, "failback", "--help"); err != nil || !strings.Contains(help, "failback DOMAIN") {
		c.kinds = slices.DeleteFunc(c.kinds, func(k kind) bool { return k == faultFailback })
	}
}

func (c *chaos) close() {
	if c.client != nil {
		c.client.Stop()
	}
	if c.out != nil {
		c.out.Close()
	}
	if c.lab != nil {
		c.lab.Close()
	}
}

// showLogs prints what goes away with the lab: the ends of the daemons' logs and
// of the guest's console, and what libvirt and the last tick say.
func (c *chaos) showLogs(ctx context.Context) {
	const tail, consoleTail = 8000, 1000
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	for _, h := range c.lab.Hosts() {
		b, err := os.ReadFile(h.Daemon.LogPath())
		if err == nil {
			fmt.Fprintf(os.Stderr, "--- %s, end of the daemon's log\n%s", h.Name, b[max(0, len(b)-tail):])
		}
		if text, err := h.Console(c.guest.Name); err == nil {
			fmt.Fprintf(os.Stderr, "--- %s, end of the guest's console\n%s\n", h.Name, text[max(0, len(text)-consoleTail):])
		}
		list, err := h.Virsh(ctx, "list", "--all")
		fmt.Fprintf(os.Stderr, "--- %s, virsh list\n%s%v\n", h.Name, list, err)
	}
	for _, h := range c.lab.Hosts() {
		text, err := h.Ctl(ctx, "status", "-o", "json")
		fmt.Fprintf(os.Stderr, "--- %s, virt-ft status\n%s\n%v\n", h.Name, text, err)
	}
	for _, s := range c.out.Skips() {
		fmt.Fprintf(os.Stderr, "--- ticks from %d to %d were not heard in their turn: %s at %v, then %s at %v\n", s.Before.Told+1, s.After.Told-1,
			s.Before.Host, s.Before.At.Format(time.StampMicro), s.After.Host, s.After.At.Format(time.StampMicro))
	}
	fmt.Fprintf(os.Stderr, "--- the observer had no room for %d frames\n", c.out.Unread())
	if last, ok := c.out.Last(); ok {
		fmt.Fprintf(os.Stderr, "--- the last tick came %v ago from %s: %+v\n", time.Since(last.At), last.Host, last.Tick)
	}
}

func say(format string, args ...any) { tool.Say("chaos", format, args...) }
