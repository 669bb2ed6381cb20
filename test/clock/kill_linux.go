package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
	"github.com/virt-ft/virt-ft/test/clock/guest"
	"github.com/virt-ft/virt-ft/test/tool"
)

// victimEnv makes this program the victim of the kill campaign: "PID SOCKET".
const victimEnv = "CLOCK_VICTIM"

const (
	victimHz = 50
	// killWithin is how long after a pause begins a victim is killed, at most.
	killWithin = 12 * time.Millisecond
	readyMax   = 30 * time.Second
	// failedMax victims, and a tenth of the kills, may fail by themselves.
	failedMax = 5
)

var errVictim = errors.New("the victim ended by itself")

// kills is what a campaign showed.
type kills struct {
	CPUs      int       `json:"cpus"`
	Kills     int       `json:"kills"`
	Failed    int       `json:"failed"`  // victims that gave up by themselves: the machine was too busy for them
	Deaths    int       `json:"deaths"`  // of QEMU
	LostUs    []float64 `json:"lost_us"` // of the guest's clock, by each kill
	LostUsP50 float64   `json:"lost_us_p50"`
	LostUsMax float64   `json:"lost_us_max"`
	Losing    int       `json:"losing"` // kills that cost more than 50 µs: a pause, or a part of it
	Steps     steps     `json:"steps"`
	Traced    bool      `json:"traced"` // something was left attached to QEMU
}

// maybeVictim does not return in a victim: it takes checkpoints with a keeper
// until it is killed, and writes a byte at each pause.
func maybeVictim() {
	spec := os.Getenv(victimEnv)
	if spec == "" {
		return
	}
	tool.Say("clock victim", "%v", victim(spec))
	os.Exit(1)
}

// tell is a keeper that tells the one who kills of each pause.
type tell struct{ *kvmclock.Keeper }

func (t tell) Paused() {
	t.Keeper.Paused()
	_, _ = os.Stdout.Write([]byte{'p'}) // whoever reads it may be gone, and so are we then
}

func victim(spec string) error {
	var pid int
	var socket string
	if _, err := fmt.Sscanf(spec, "%d %s", &pid, &socket); err != nil {
		return fmt.Errorf("%s=%q: %w", victimEnv, spec, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyMax)
	defer cancel()
	mon, err := qmptest.Dial(ctx, socket)
	if err != nil {
		return err
	}
	k, err := kvmclock.Open(ctx, pid, kvmclock.Options{Logger: quiet()})
	if err != nil {
		return err
	}
	s, err := capture.Open(ctx, pid, mon, capture.Options{Clock: tell{k}, Logger: quiet()})
	if err != nil {
		return err
	}
	for p := newPace(victimHz); ; {
		if err := p.wait(ctx); err != nil {
			return err
		}
		c, err := s.Checkpoint(ctx, capture.CheckpointOptions{})
		if err != nil {
			return err
		}
		if c.Batch != nil {
			c.Batch.Free()
		}
	}
}

// campaign kills processes that keep the clock of a guest, one after the other.
func campaign(ctx context.Context, cpus, n int, rng *rand.Rand) (k kills, err error) {
	k.CPUs = cpus
	m, err := guest.Start(ctx, guest.Options{CPUs: cpus, Payload: payload()})
	if err != nil {
		return k, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	t, err := newMeter(ctx, m)
	if err != nil {
		return k, err
	}
	before := stepsOf(m)
	for k.Kills < n {
		lost, err := t.killOne(ctx, rng)
		if errors.Is(err, errVictim) && k.Failed < failedMax+n/10 && m.Alive() == nil {
			k.Failed++
			continue
		}
		if err != nil {
			if m.Alive() != nil {
				k.Deaths++
			}
			return k, fmt.Errorf("kill %d: %w", k.Kills+1, err)
		}
		k.Kills++
		k.LostUs = append(k.LostUs, us(lost))
		if lost > 50_000 {
			k.Losing++
		}
	}
	k.Steps = stepsOf(m).since(before)
	k.Traced, err = traced(m.PID)
	return k, errors.Join(err, t.check(ctx))
}

// killOne starts a victim, lets it take some checkpoints, and kills it: every
// second one soon after a pause has begun, the others at any time. It returns
// what the guest's clock has lost from the start to after the kill, in ns.
func (t *meter) killOne(ctx context.Context, rng *rand.Rand) (lostNs int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	before, err := t.readFresh(ctx)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), victimEnv+"="+strconv.Itoa(t.m.PID)+" "+t.m.Socket)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pauses := bufio.NewReader(out)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	for range 2 + rng.IntN(6) {
		if _, err = pauses.ReadByte(); err != nil {
			break
		}
	}
	if err == nil {
		within := killWithin
		if rng.IntN(2) == 0 {
			within = 2 * time.Second / victimHz
		}
		time.Sleep(time.Duration(rng.Int64N(int64(within)))) // the random moment
	}
	kerr := cmd.Process.Kill()
	werr := cmd.Wait()
	if err != nil || kerr != nil {
		return 0, errors.Join(errVictim, err, kerr, werr, t.m.Alive())
	}
	after, err := t.readFresh(ctx)
	if err != nil {
		return 0, fmt.Errorf("the guest did not go on: %w", err)
	}
	return before.lead() - after.lead(), nil
}

// traced says whether something is attached to the main thread of a process.
func traced(pid int) (bool, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var by int
		if n, _ := fmt.Sscanf(lines.Text(), "TracerPid: %d", &by); n == 1 {
			return by != 0, nil
		}
	}
	return false, errors.New("/proc does not say whether QEMU is traced")
}

// repair is what a keeper makes of a pause that it missed.
type repair struct {
	MissedUs float64 `json:"missed_us"` // what the guest's clock had lost then
	LeftUs   float64 `json:"left_us"`   // and is behind in the end
	Restored uint64  `json:"restored"`
}

// repairs lets a keeper miss n pauses, one at a time, and go on.
func repairs(ctx context.Context, s *subject, n int) (all []repair, err error) {
	if err := s.keep(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.release()) }()
	k := s.clock.Keeper
	for range n {
		var lead [3]int64 // before, after the pause, in the end
		for i := range lead {
			epochs := 3
			if i == 1 {
				epochs, s.clock.Keeper = 1, nil // nobody tells it
			}
			for range epochs {
				if _, err := s.checkpoint(ctx, nil); err != nil {
					return all, err
				}
			}
			s.clock.Keeper = k
			r, err := s.readFresh(ctx)
			if err != nil {
				return all, err
			}
			lead[i] = r.lead()
		}
		all = append(all, repair{us(lead[0] - lead[1]), us(lead[0] - lead[2]), k.Report().Restored})
	}
	return all, nil
}

func (k *kills) print(w io.Writer) {
	fmt.Fprintf(w, "  %d vCPU: %d kills, %d victims that failed by themselves, %d deaths of QEMU; a kill cost the guest's clock p50 %.1f, max %.1f µs, %d of them more than 50 µs; backwards %d; traced in the end: %v\n",
		k.CPUs, k.Kills, k.Failed, k.Deaths, k.LostUsP50, k.LostUsMax, k.Losing, k.Steps.backwards(), k.Traced)
}
