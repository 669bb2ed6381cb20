// Command demo shows what virt-ft is for: it makes two hosts, boots a Linux
// guest on host A as an ordinary libvirt domain, lets clients work with it over
// TCP and UDP, protects it to host B meanwhile, kills its QEMU, and watches the
// guest go on at B: with every answer that a client ever got, on the same
// connections, and with a disk that holds what the answers said was on it. Its
// last line is JSON. Ctrl-C ends it cleanly at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

// result is the closing line.
type result struct {
	Demo           string  `json:"demo"`
	Epochs         uint64  `json:"epochs"`
	PauseP50Ms     float64 `json:"pause_p50_ms"`
	PauseP99Ms     float64 `json:"pause_p99_ms"`
	FailoverMs     float64 `json:"failover_ms"` // SIGKILL to the first answer that a client gets from host B
	Acked          uint64  `json:"acked"`       // answers that clients got, before and after
	AckedLost      uint64  `json:"acked_lost"`  // of these, what the guest does not know at the end
	TCPReset       uint64  `json:"tcp_reset"`
	Contradictions uint64  `json:"contradictions"`
	Unanswered     uint64  `json:"unanswered"`
	LatencyBaseMs  float64 `json:"latency_base_p50_ms"`  // of a request, unprotected
	LatencyAddedMs float64 `json:"latency_added_p50_ms"` // by the protection
	LostMs         float64 `json:"lost_ms"`              // guest time rolled back: last tick heard from A, less the checkpoint's
	DiskRecords    uint64  `json:"disk_records"`         // answers whose record must be on the disk
	DiskLost       uint64  `json:"disk_lost"`            // of these, what host B's image does not have
	MemoryErrors   uint64  `json:"memory_errors"`
	Verifications  uint64  `json:"memory_passes_after"` // of the whole working set, after failover
	CommittedTick  uint64  `json:"committed_tick"`      // in the backup's memory when QEMU died
	LastTickBefore uint64  `json:"last_tick_before"`    // the last that came from host A
	FirstTickAfter uint64  `json:"first_tick_after"`
	SameBoot       bool    `json:"same_boot"`
	SameProcess    bool    `json:"same_process"`
	UptimeS        float64 `json:"uptime_s"`
	GuestReadyMs   int64   `json:"guest_ready_ms"`
	ProtectMs      int64   `json:"protect_ms"`
	Error          string  `json:"error,omitempty"`
}

// demo is one run.
type demo struct {
	lab     *lab.Lab
	out     *lab.Observer
	guest   *lab.Guest
	meter   *lab.Client // one session at a time: its latency is measured
	load    *lab.Client // many sessions, while the failure comes
	watch   time.Duration
	hold    bool
	result  result
	binary  string
	started time.Time
	since   uint64 // serial of the last answer that has no record on the disk
}

func main() {
	lab.MaybeHost()
	d := demo{started: time.Now()}
	flag.BoolVar(&d.hold, "hold", false, "keep the lab after the failover until Ctrl-C")
	flag.DurationVar(&d.watch, "watch", 8*time.Second, "how long the guest works unprotected, then protected, and how long it is watched after the failover")
	flag.StringVar(&d.binary, "virt-ft", "build/virt-ft", "the program to show")
	limit := flag.Duration("timeout", 5*time.Minute, "give up after")
	flag.Parse()
	if d.hold {
		*limit = 0
	}
	ctx, stop := tool.Context(*limit)
	d.result.Demo = "ok"
	if err := d.run(ctx); err != nil {
		d.result.Demo, d.result.Error = "failed", err.Error()
	}
	stop()
	tool.End("demo", d.result, d.result.Error == "")
}

func (d *demo) run(ctx context.Context) (err error) {
	if err := d.build(ctx); err != nil {
		if d.lab != nil {
			d.lab.Close()
		}
		return err
	}
	defer d.lab.Close()
	defer d.out.Close()
	defer func() {
		if err != nil && !errors.Is(err, context.Canceled) {
			d.showLogs()
		}
	}()
	defer d.stopClients()
	for _, step := range []func(context.Context) error{d.baseline, d.protect, d.work, d.strike} {
		if err := step(ctx); err != nil {
			return errors.Join(err, d.acceptance(ctx))
		}
	}
	if err := d.acceptance(ctx); err != nil {
		return err
	}
	if err := d.disk(ctx); err != nil {
		return err
	}
	if d.hold {
		say("holding; host A is process %d, host B is process %d (nsenter -a -t PID)", d.lab.A.Pid(), d.lab.B.Pid())
		<-ctx.Done()
	}
	return nil
}

// build makes hosts, daemons and the guest.
func (d *demo) build(ctx context.Context) error {
	assets, err := lab.FindAssets()
	if err != nil {
		return err
	}
	if d.lab, err = lab.New(ctx, lab.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}); err != nil {
		return err
	}
	say("hosts A and B are up, each with its own libvirtd (%d ms)", time.Since(d.started).Milliseconds())
	if err := d.lab.InstallDaemons(d.binary, ""); err != nil {
		return err
	}
	if err := d.lab.StartDaemons(ctx); err != nil {
		return err
	}
	if d.out, err = lab.NewObserver(d.lab, 50*time.Millisecond); err != nil {
		return err
	}
	boot, err := d.lab.InstallBoot(assets)
	if err != nil {
		return err
	}
	boot.NIC, boot.Disks = true, []lab.GuestDisk{{Target: recordsDisk, SizeMiB: recordsMiB}}
	start := time.Now()
	if d.guest, err = d.lab.A.StartGuest(ctx, boot); err != nil {
		return err
	}
	d.result.GuestReadyMs = time.Since(start).Milliseconds()
	say("guest %s, an ordinary libvirt domain, booted on host A (%d ms); boot id %s", d.guest.Name, d.result.GuestReadyMs, d.guest.Ready.BootID)
	return nil
}

// protect runs the command a user would run, and shows what it prints.
func (d *demo) protect(ctx context.Context) error {
	a := d.lab.A
	start := time.Now()
	say("host A# virt-ft protect %s --to %s", d.guest.Name, d.lab.B.Name)
	cmd := exec.CommandContext(ctx, a.CtlPath(), "protect", d.guest.Name, "--to", d.lab.B.Name)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	p, err := a.Start(cmd)
	if err == nil {
		err = p.Wait(ctx)
	}
	d.result.ProtectMs = time.Since(start).Milliseconds()
	if err != nil {
		return fmt.Errorf("protect: %w", err)
	}
	return nil
}

// work shows live figures while the guest works protected.
func (d *demo) work(ctx context.Context) error {
	began := time.Now()
	end := began.Add(d.watch)
	for next := time.Now().Add(time.Second); next.Before(end); next = next.Add(time.Second) {
		t, err := d.out.WaitTick(ctx, func(n lab.Observation) bool { return !n.At.Before(next) })
		if err != nil {
			return err
		}
		ps, err := d.lab.A.Protections(ctx, d.guest.Name)
		if err != nil {
			return err
		}
		p := ps[0]
		say("%s: epoch %d acked, pause p50 %.1f ms p99 %.1f ms, %d dirty pages, %.1f MiB/s | guest on %s: tick %d, uptime %.1f s, %d memory errors",
			p.State, p.Epoch.Acked, p.Pause.P50Ms, p.Pause.P99Ms, p.DirtyPages, p.RateBps/(1<<20), t.Host, t.Counter, float64(t.UptimeNs)/1e9, t.MemErrors)
		d.result.Epochs, d.result.PauseP50Ms, d.result.PauseP99Ms = p.Epoch.Acked, p.Pause.P50Ms, p.Pause.P99Ms
	}
	p50 := d.latency("protected", began)
	d.result.LatencyAddedMs = p50 - d.result.LatencyBaseMs
	return nil
}

// strike kills QEMU on A and judges what goes on at B.
func (d *demo) strike(ctx context.Context) error {
	if err := d.startLoad(ctx); err != nil {
		return err
	}
	beacon, err := d.lab.B.OpenBeacon(ctx, d.guest.Name, d.guest.Ready.BeaconGPA)
	if err != nil {
		return err
	}
	committed := lab.WatchCommitted(ctx, beacon)
	defer committed.Close()
	pid, err := d.lab.A.QEMU(d.guest.Name)
	if err != nil {
		return err
	}
	say("host A# kill -KILL %d   (the guest's QEMU)", pid)
	fault := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	first, err := d.out.WaitTick(ctx, func(o lab.Observation) bool { return o.Host == d.lab.B.Name })
	if err != nil {
		return fmt.Errorf("nothing was heard of the guest on host B: %w", err)
	}
	before, _ := d.out.LastFrom(d.lab.A.Name)
	last, resumedNs, ok := committed.Last(fault, first.At)
	if !ok {
		return errors.New("the backup's memory was not seen to stand still before the guest ran there")
	}
	r := &d.result
	answered, err := d.firstAnswer(ctx, fault)
	if err != nil {
		return err
	}
	r.FailoverMs = ms(answered.Sub(fault))
	// Not against the first tick on B: the guest has worked there for a while
	// before that one comes, the longer the colder the emulator's caches are.
	r.LostMs = max(0, float64(int64(before.UptimeNs)-int64(resumedNs))/1e6)
	r.CommittedTick, r.LastTickBefore, r.FirstTickAfter = last, before.Counter, first.Counter
	r.SameBoot, r.SameProcess = first.BootID == before.BootID, first.Pid == before.Pid
	say("a client is answered from host B after %.0f ms; the first tick from there is %d, the last committed was %d, the last heard from A %d", r.FailoverMs, first.Counter, last, before.Counter)
	return d.judge(ctx, first)
}

// judge watches the guest verify all of its memory on B.
func (d *demo) judge(ctx context.Context, first lab.Observation) error {
	end := time.Now().Add(d.watch)
	t, err := d.out.WaitTick(ctx, func(o lab.Observation) bool {
		return o.Host == d.lab.B.Name && o.At.After(end) && o.Passes >= first.Passes+2
	})
	if err != nil {
		return fmt.Errorf("the guest did not verify its memory on host B: %w", err)
	}
	r := &d.result
	r.MemoryErrors, r.Verifications, r.UptimeS = t.MemErrors, t.Passes-first.Passes, float64(t.UptimeNs)/1e9
	out, err := d.lab.B.Virsh(ctx, "list")
	if err != nil {
		return err
	}
	say("host B# virsh list\n%s", out)
	say("%d passes over its memory since, %d errors; uptime %.1f s", r.Verifications, r.MemoryErrors, r.UptimeS)
	switch {
	case r.MemoryErrors != 0:
		return fmt.Errorf("the guest found %d wrong pages", r.MemoryErrors)
	case !r.SameBoot || !r.SameProcess:
		return errors.New("it is not the same guest: it was booted again")
	case r.LastTickBefore > r.CommittedTick:
		return fmt.Errorf("the world was told of tick %d, the backup knew %d", r.LastTickBefore, r.CommittedTick)
	case r.FirstTickAfter < r.CommittedTick:
		return fmt.Errorf("the guest went on from tick %d, but the backup had committed %d", r.FirstTickAfter, r.CommittedTick)
	}
	return nil
}

// showLogs prints the ends of the daemons' logs, which go away with the lab.
func (d *demo) showLogs() {
	for _, h := range d.lab.Hosts() {
		b, err := os.ReadFile(h.Daemon.LogPath())
		if err == nil {
			fmt.Fprintf(os.Stderr, "--- %s, end of the daemon's log\n%s", h.Name, b[max(0, len(b)-4000):])
		}
	}
}

func say(format string, args ...any) { tool.Say("demo", format, args...) }
