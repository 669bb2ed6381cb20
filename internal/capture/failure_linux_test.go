package capture

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/capture/qmptest"
)

// victimEnv makes the test binary a process that takes checkpoints until it is
// killed: "PID SOCKET".
const victimEnv = "VIRT_FT_TEST_VICTIM"

func victim() {
	pid, sock, _ := strings.Cut(os.Getenv(victimEnv), " ")
	n, _ := strconv.Atoi(pid)
	ctx := context.Background()
	mon, err := qmptest.Dial(ctx, sock)
	if err == nil {
		var s *Session
		if s, err = Open(ctx, n, mon, Options{}); err == nil {
			for said := false; err == nil; said = true {
				var c *Checkpoint
				if c, err = s.Checkpoint(ctx, CheckpointOptions{}); err == nil {
					c.Batch.Free()
				}
				if !said {
					fmt.Println("ready")
				}
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// kill -9 of the capturing process, at whatever moment, never leaves the guest
// paused, and the next session finds and removes what was left.
func TestKilledCaptureLeavesGuestRunning(t *testing.T) {
	kills := 60
	if testing.Short() {
		kills = 20
	}
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy(), Monitors: 1})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := descriptors(t, g.PID)
	longest := time.Duration(0)
	for i := range kills {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", victimEnv, g.PID, g.Sockets[0]))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if i%4 != 0 { // every fourth is killed while it starts
			if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
				t.Fatalf("victim did not start: %v", err)
			}
			time.Sleep(time.Duration(rand.IntN(12000)) * time.Microsecond)
		} else {
			time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
		start := time.Now()
		within(t, 2*time.Second, "guest runs after kill -9 of the capturing process", func() bool { return status(t, g) == "running" })
		longest = max(longest, time.Since(start))
	}
	s := open(t, g, Options{})
	was := ticks(t, g, s, 0)
	within(t, 2*time.Second, "guest makes progress", func() bool { return ticks(t, g, s, 0) != was })
	r := newReplica(s.Blocks())
	r.compare(t, g, s)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A userfaultfd that was created and not yet taken over may be left.
	if after := descriptors(t, g.PID); strings.Count(after, "pipe:") != strings.Count(before, "pipe:") {
		t.Errorf("pipes are left in QEMU; before:\n%s\nafter:\n%s", before, after)
	}
	t.Logf("%d kills; the guest was seen running at most %v later", kills, longest)
}

// faulty is a monitor that loses answers: what it is told does reach QEMU.
type faulty struct {
	*qmptest.Client
	mu      sync.Mutex
	lose    map[string]int // how many answers to a command are lost
	before  func(execute string)
	pending sync.WaitGroup
}

var errLost = errors.New("answer was lost")

func (f *faulty) QMP(ctx context.Context, execute string, args any) (json.RawMessage, error) {
	if f.before != nil {
		f.before(execute)
	}
	f.mu.Lock()
	lost := f.lose[execute] > 0
	f.lose[execute]--
	f.mu.Unlock()
	if !lost {
		return f.Client.QMP(ctx, execute, args)
	}
	f.pending.Add(1)
	go func() {
		defer f.pending.Done()
		f.Client.QMP(context.WithoutCancel(ctx), execute, args)
	}()
	return nil, errLost
}

// A monitor that fails while the guest is held: the guest runs on, and what was
// collected meanwhile is in the next checkpoint.
func TestLostAnswers(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	mon := &faulty{Client: g.Client, lose: map[string]int{}}
	s := openWith(t, g, mon, Options{})
	r := newReplica(s.Blocks())
	for i := range 30 {
		mon.mu.Lock()
		mon.lose["xen-save-devices-state"], mon.lose["query-status"] = 1, i%3
		mon.mu.Unlock()
		if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.Is(err, errLost) {
			t.Fatalf("answer %d: %v", i, err)
		}
		mon.pending.Wait()
		if st := status(t, g); st != "running" {
			t.Fatalf("guest is %s", st)
		}
		mon.mu.Lock()
		clear(mon.lose)
		mon.mu.Unlock()
		if i%5 == 0 {
			r.compare(t, g, s)
		}
	}
}

func openWith(t testing.TB, g *qmptest.Guest, mon Monitor, o Options) *Session {
	t.Helper()
	s, err := Open(t.Context(), g.PID, mon, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// A command that QEMU refuses leaves guest and session as they were.
func TestRefusedCommand(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	r := newReplica(s.Blocks())
	r.checkpoint(t, s)
	number := s.pipe.remote
	// verify passes, and then the number is another one for the command only.
	mon := &renumber{g.Client}
	s.mon = mon
	var qerr *qmptest.Error
	if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.As(err, &qerr) {
		t.Errorf("Checkpoint: %v", err)
	}
	if st := status(t, g); st != "running" || s.pipe.remote != number {
		t.Errorf("guest is %s", st)
	}
	s.mon = g
	r.compare(t, g, s)
}

type renumber struct{ *qmptest.Client }

func (r *renumber) QMP(ctx context.Context, execute string, args any) (json.RawMessage, error) {
	if execute == "xen-save-devices-state" {
		args = saveArgs{Filename: "/nonexistent/file"}
	}
	return r.Client.QMP(ctx, execute, args)
}

func TestPauseMax(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{PauseMax: time.Nanosecond})
	r := newReplica(s.Blocks())
	exceeded := 0
	for range 20 {
		switch c, err := s.Checkpoint(t.Context(), CheckpointOptions{}); {
		case errors.Is(err, ErrPauseExceeded):
			exceeded++
		case err != nil:
			t.Fatal(err)
		default:
			r.apply(c.Batch)
		}
		if st := status(t, g); st != "running" {
			t.Fatalf("guest is %s", st)
		}
	}
	if exceeded == 0 {
		t.Error("no checkpoint exceeded a nanosecond")
	}
	s.o.PauseMax = DefaultPauseMax
	r.compare(t, g, s)
}

func TestSuspendedGuestStaysSuspended(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	r := newReplica(s.Blocks())
	qmp(t, g, "stop")
	for range 3 {
		r.checkpoint(t, s)
		if now := status(t, g); now != "paused" {
			t.Fatalf("the suspended guest is %s", now)
		}
	}
	qmp(t, g, "cont")
	r.checkpoint(t, s)
	if now := status(t, g); now != "running" {
		t.Errorf("the resumed guest is %s", now)
	}
}

func TestQEMUDies(t *testing.T) {
	for i := range 6 {
		g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
		s := open(t, g, Options{})
		newReplica(s.Blocks()).checkpoint(t, s)
		var wg sync.WaitGroup
		wg.Go(func() {
			time.Sleep(time.Duration(i*3) * time.Millisecond)
			g.Process().Kill()
		})
		var err error
		for err == nil {
			var c *Checkpoint
			if c, err = s.Checkpoint(t.Context(), CheckpointOptions{}); err == nil {
				c.Batch.Free()
			}
		}
		wg.Wait()
		if !errors.Is(err, ErrGuestGone) {
			t.Errorf("Checkpoint: %v", err)
		}
		if _, err := s.Live(t.Context(), nil); !errors.Is(err, ErrGuestGone) {
			t.Errorf("Live: %v", err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		g.Kill()
	}
}

// What emit refuses, or what is handed back later, comes again.
func TestUndeliveredRangesComeAgain(t *testing.T) {
	for _, pinned := range []bool{false, true} {
		g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
		s := open(t, g, Options{PinnedIO: pinned})
		r := newReplica(s.Blocks())
		refuse := errors.New("refused")
		for i := range 200 {
			left := i % 4
			_, err := s.Live(t.Context(), func(b *Batch) error {
				if len(b.Data) > liveBytes || uintptr(len(b.Data)) == 0 {
					t.Errorf("batch of %d bytes", len(b.Data))
				}
				if left == 0 && i%3 != 0 {
					b.Free()
					return refuse
				}
				left--
				return r.apply(b)
			})
			if err != nil && !errors.Is(err, refuse) {
				t.Fatal(err)
			}
			c, err := s.Checkpoint(t.Context(), CheckpointOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 { // the backup never got it
				s.Keep(c.Batch.Ranges)
				c.Batch.Free()
			} else if err := r.apply(c.Batch); err != nil {
				t.Fatal(err)
			}
		}
		r.compare(t, g, s)
	}
}

func TestCheckpointWaitsForArena(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	var out []*Batch
	for range checkpointArenas {
		c, err := s.Checkpoint(t.Context(), CheckpointOptions{})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c.Batch)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Checkpoint(ctx, CheckpointOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a checkpoint beyond the bound: %v", err)
	}
	out[0].Free()
	out[0].Free()
	c, err := s.Checkpoint(t.Context(), CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.Batch.Free()
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, b := range out[1:] {
		if len(b.Data) > 0 && b.Data[0] > 255 { // still mapped
			t.Fatal()
		}
		b.Free()
	}
}

func TestCheckLayout(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: []string{"-accel", "tcg", "-m", "64,slots=2,maxmem=1G"}, Payload: busy()})
	s := open(t, g, Options{})
	if err := s.CheckLayout(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"object_add memory-backend-ram,id=more,size=128M", "device_add pc-dimm,id=dimm,memdev=more"} {
		if out, err := g.HMP(t.Context(), c); err != nil || out != "" {
			t.Fatalf("%s: %s %v", c, out, err)
		}
	}
	if err := s.CheckLayout(t.Context()); !errors.Is(err, ErrLayoutChanged) {
		t.Errorf("after memory hot-plug: %v", err)
	}
}

// At the pause the guest has done all that the checkpoint knows of, and nothing
// more; there is one pause in a checkpoint.
func TestAtPause(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	var s *Session
	var seen []uint32
	s = open(t, g, Options{AtPause: func() { seen = append(seen, ticks(t, g, s, 0)) }})
	r := newReplica(s.Blocks())
	for n := 1; n <= 50; n++ {
		r.checkpoint(t, s)
		at := 0
		for s.Blocks()[at].Name != "pc.ram" {
			at++
		}
		copied := binary.LittleEndian.Uint32(r.mem[at][qmptest.TicksAt(0):])
		if len(seen) != n || seen[n-1] != copied {
			t.Fatalf("checkpoint %d: %d pauses, the guest's counter was %d at the last, %d in the checkpoint", n, len(seen), seen[len(seen)-1], copied)
		}
		within(t, 10*time.Second, "the guest goes on", func() bool { return ticks(t, g, s, 0) != copied })
	}
}

// A device state that became smaller than the pipe does not hold the guest: the
// checkpoint that met it is none, the next one is.
func TestStateFitsIntoThePipe(t *testing.T) {
	g := qmptest.Start(t, qmptest.Options{Machine: "q35", Args: tcg, Payload: busy()})
	s := open(t, g, Options{})
	r := newReplica(s.Blocks())
	size := len(r.checkpoint(t, s).Device)
	if b := s.brake(); b >= size || 4*b < size {
		t.Errorf("the pipe takes %d bytes of %d", b, size)
	}
	s.deviceBytes = 4 * brakeMaxBytes
	if _, err := s.Checkpoint(t.Context(), CheckpointOptions{}); !errors.Is(err, ErrNoBrake) {
		t.Fatalf("%d bytes fit into a pipe of %d: %v", size, brakeMaxBytes, err)
	}
	r.checkpoint(t, s)
	r.compare(t, g, s)
}
