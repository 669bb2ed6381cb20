package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/cpulayout"
	"github.com/virt-ft/virt-ft/internal/guestram"
	"github.com/virt-ft/virt-ft/internal/vmstate"
	"github.com/virt-ft/virt-ft/pkg/kvmclock"
	"github.com/virt-ft/virt-ft/test/clock/guest"
)

const (
	failoverEpochs = 20                     // before the primary is lost
	detect         = 100 * time.Millisecond // for which nobody runs, as while a lost host is noticed
	incomingMax    = 30 * time.Second
)

// failover is one: what the guest's clocks are afterwards, against where they
// would have been had the first QEMU lived.
type failover struct {
	CPUs   int     `json:"cpus"`
	StepUs float64 `json:"step_us"`
	TSCUs  float64 `json:"tsc_step_us"`
	// TSCFixed says that this KVM gives guests the host's TSC, whatever they or
	// QEMU write: tsc_step_us tells nothing then.
	TSCFixed bool             `json:"tsc_fixed"`
	DownMs   float64          `json:"down_ms"`   // from the kill to the resume
	ApplyMs  float64          `json:"resume_ms"` // of that, the resume with the clock set
	Applied  kvmclock.Applied `json:"applied"`
	Steps    steps            `json:"steps"`
}

// standby is a QEMU that gets a guest's memory while that still runs elsewhere.
type standby struct {
	*guest.Machine
	blocks   []guestram.Block
	incoming *vmstate.Incoming
	far      *os.File
	prepared *kvmclock.Prepared
}

// newStandby starts a QEMU for the guest of s.
func newStandby(ctx context.Context, s *subject, cpus int) (b *standby, err error) {
	b = &standby{blocks: s.session.Blocks()}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	machine, err := machineType(ctx, s)
	if err != nil {
		return b, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return b, err
	}
	near := os.NewFile(uintptr(fds[0]), "QEMU's end")
	defer near.Close()
	b.far = os.NewFile(uintptr(fds[1]), "incoming stream")
	if b.Machine, err = guest.Start(ctx, guest.Options{CPUs: cpus, Payload: payload(), Incoming: near}); err != nil {
		return b, err
	}
	sizes := make([]vmstate.BlockSize, len(b.blocks))
	for i, block := range b.blocks {
		sizes[i] = vmstate.BlockSize{Name: block.Name, Used: block.Used}
	}
	b.incoming = vmstate.NewIncoming(b.far, machine, sizes)
	if b.prepared, err = kvmclock.Prepare(ctx, b.PID, kvmclock.Options{Logger: quiet()}); err != nil {
		return b, err
	}
	_, err = b.QMP(ctx, "migrate-incoming", map[string]any{"uri": guest.IncomingURI})
	return b, err
}

// machineType is the canonical name of the machine that QEMU runs, "pc-i440fx-7.2".
func machineType(ctx context.Context, s *subject) (string, error) {
	raw, err := s.QMP(ctx, "qom-get", map[string]any{"path": "/machine", "property": "type"})
	if err != nil {
		return "", err
	}
	var name string
	err = json.Unmarshal(raw, &name)
	return strings.TrimSuffix(name, "-machine"), err
}

// commit sends a batch on.
func (b *standby) commit(batch *capture.Batch) error {
	if batch == nil {
		return nil
	}
	at := 0
	for _, r := range batch.Ranges {
		if err := b.incoming.Pages(b.blocks[r.Block].Name, r.Off, batch.Data[at:at+r.Bytes()]); err != nil {
			return err
		}
		at += r.Bytes()
	}
	return b.incoming.Flush()
}

// load gives QEMU the device state, and waits until the guest stands ready.
func (b *standby) load(ctx context.Context, device []byte) error {
	if err := b.incoming.Finish(device); err != nil {
		return err
	}
	for until := time.Now().Add(incomingMax); ; {
		raw, err := b.QMP(ctx, "query-status", nil)
		if err != nil {
			return errors.Join(err, b.Alive())
		}
		var st struct{ Status string }
		switch err := json.Unmarshal(raw, &st); {
		case err != nil:
			return err
		case st.Status != "inmigrate":
			return nil
		case time.Now().After(until):
			return fmt.Errorf("the standby did not load its devices within %v", incomingMax)
		}
		time.Sleep(200 * time.Microsecond) // there is an event, which this client does not show
	}
}

func (b *standby) close() (err error) {
	if b.prepared != nil {
		err = b.prepared.Close()
	}
	if b.far != nil {
		err = errors.Join(err, b.far.Close())
	}
	if b.Machine != nil {
		err = errors.Join(err, b.Machine.Close())
	}
	return err
}

// failOver runs a guest under checkpoints, kills its QEMU, and lets the guest go
// on in another. long: it reads as the story it is.
func failOver(ctx context.Context, cpus int, layout vmstate.CPULayout) (f failover, err error) {
	f.CPUs = cpus
	s, err := newSubject(ctx, cpus)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b, err := newStandby(ctx, s, cpus)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if _, err = s.session.Live(ctx, func(x *capture.Batch) error { defer x.Free(); return b.commit(x) }); err != nil {
		return f, err
	}
	last, known, err := s.protect(ctx, b)
	if err != nil {
		return f, err
	}
	would, err := s.readFresh(ctx)
	if err != nil {
		return f, err
	}
	killed := time.Now()
	s.Machine.Kill()
	time.Sleep(detect)
	if err := correct(last, layout, known); err != nil {
		return f, err
	}
	if err := b.load(ctx, last); err != nil {
		return f, err
	}
	// What the guest has counted so far it counted on A, up to the checkpoint.
	before, resuming := stepsOf(b.Machine), time.Now()
	f.Applied, err = b.prepared.SetAtResume(ctx, known.clock, func(ctx context.Context) error {
		_, err := b.QMP(ctx, "cont", nil)
		return err
	})
	if err != nil {
		return f, errors.Join(err, b.Alive())
	}
	f.ApplyMs, f.DownMs = ms(time.Since(resuming)), ms(time.Since(killed))
	after, err := newMeter(ctx, b.Machine)
	if err != nil {
		return f, err
	}
	f.TSCFixed = s.sameTSC() && after.sameTSC()
	is, err := after.readFresh(ctx)
	if err != nil {
		return f, err
	}
	f.StepUs = us(is.lead() - would.lead())
	page, err := after.page()
	if err != nil {
		return f, err
	}
	page.TSCTimestamp, page.SystemTimeNs = 0, 0 // only its rate
	f.TSCUs = us(int64(page.At(is.tsc)) - int64(page.At(would.tsc)) - (is.rawNs - would.rawNs))
	f.Steps = stepsOf(b.Machine).since(before)
	return f, nil
}

// lastKnown is what a backup knows of the guest's clocks beside the last checkpoint.
type lastKnown struct {
	clock kvmclock.Reading
	// tscRealNs is when, by CLOCK_REALTIME, the TSCs in the checkpoint were right,
	// give or take its length.
	tscRealNs int64
	kHz       uint32
}

// protect takes checkpoints with a keeper, each for the standby, and returns the
// device state of the last.
func (s *subject) protect(ctx context.Context, b *standby) (device []byte, known lastKnown, err error) {
	if err := s.keep(ctx); err != nil {
		return nil, known, err
	}
	p := newPace(50)
	for range failoverEpochs {
		if err := p.wait(ctx); err != nil {
			return nil, known, err
		}
		known.tscRealNs = time.Now().UnixNano()
		c, err := s.checkpoint(ctx, b.commit)
		if err != nil {
			return nil, known, err
		}
		known.tscRealNs += c.Phases.StopNs // the guest stood still then
		device = c.Device
	}
	var ok bool
	if known.clock, ok = s.clock.Reading(); !ok {
		return nil, known, fmt.Errorf("the keeper has no reading: %+v", s.clock.Report())
	}
	page, err := s.page()
	if err != nil {
		return nil, known, err
	}
	page.TSCTimestamp, page.SystemTimeNs = 0, 0
	known.kHz = uint32(1e6 * float64(1<<40) / float64(page.At(1<<40)))
	return device, known, nil
}

// correct edits the clocks in a device state: to what they are by now.
func correct(device []byte, layout vmstate.CPULayout, known lastKnown) error {
	ds, err := vmstate.ParseDevices(device)
	if err != nil {
		return err
	}
	now := time.Now().UnixNano()
	if err := ds.SetKVMClock(device, known.clock.ClockNs+uint64(now)-known.clock.RealtimeNs); err != nil {
		return err
	}
	cpus, err := ds.CPUClocks(device, layout)
	if err != nil {
		return err
	}
	for _, c := range cpus {
		// All the same, so that KVM goes on to take them for one clock.
		tsc := kvmclock.AdvanceTSC(cpus[0].TSC, known.kHz, time.Duration(now-known.tscRealNs))
		if err := ds.SetTSC(device, layout, c.Instance, tsc); err != nil {
			return err
		}
	}
	return nil
}

// failovers makes some, with each number of processors.
func failovers(ctx context.Context, o options, w io.Writer) (all []failover, err error) {
	if o.failovers == 0 {
		return nil, nil
	}
	layout, err := cpulayout.Learn(ctx, "qemu-system-x86_64", "pc")
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "failover: QEMU is killed %d times, and the guest goes on in another after %v\n", o.failovers*len(o.cpus), detect)
	for _, cpus := range o.cpus {
		for range o.failovers {
			f, err := failOver(ctx, cpus, layout)
			if err != nil {
				return all, fmt.Errorf("failover with %d processors: %w", cpus, err)
			}
			fmt.Fprintf(w, "  %d vCPU: clock %+.3f µs, TSC %+.1f µs off; %.0f ms down, resume %.2f ms; set %v %s; backwards %d, TSC backwards %d; TSC fixed %v\n",
				cpus, f.StepUs, f.TSCUs, f.DownMs, f.ApplyMs, f.Applied.Set, f.Applied.Why, f.Steps.backwards(), f.Steps.TSC, f.TSCFixed)
			all = append(all, f)
		}
	}
	return all, nil
}
