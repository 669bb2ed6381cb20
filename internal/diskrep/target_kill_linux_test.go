package diskrep

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

const (
	killEnv    = "VIRT_FT_TEST_DISKREP_KILL"
	killRounds = 80
	killSteps  = 120
)

// saying plays on a Target and says before and after each step which it is.
type saying struct {
	driver
	step int
}

func (s *saying) say(word string) { fmt.Fprintf(os.Stdout, "%s %d\n", word, s.step) }

func (s *saying) more(step int) bool {
	if step > 0 {
		s.say("did")
	}
	s.step = step
	if step == killSteps {
		return false
	}
	s.say("does")
	return true
}

// killed is the process that TestTargetKill kills: it plays a script, settles
// when it comes to its end, and then is the guest that writes to its image.
func killed(t *testing.T, arg string) {
	var seed uint64
	var durability int
	var dir string
	if _, err := fmt.Sscan(arg, &seed, &durability, &dir); err != nil {
		t.Fatal(err)
	}
	o := optionsIn(dir, Durability(durability))
	target := mustOpen(t, o)
	var l loans
	s := &saying{driver: targetDriver{t, target, &l}}
	play(seed, o.Disks, s.driver, s.more)
	if err := target.Settle(t.Context(), target.Stats().EndedEpoch); err != nil {
		t.Fatal(err)
	}
	s.say("settled")
	guest, err := os.OpenFile(o.Paths[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if _, err := guest.WriteAt([]byte(fmt.Sprintf("the guest's %08d", i)), int64(i%int(o.Disks[0].SizeBytes-100))); err != nil {
			t.Fatal(err)
		}
		s.step = i
		s.say("guest")
	}
}

// A process that is killed anywhere leaves images and a journal that make the
// disks of the last epoch that ended. If it was killed within a step, that step
// was done or not. Once it has settled, nothing is applied any more.
func TestTargetKill(t *testing.T) {
	if arg := os.Getenv(killEnv); arg != "" {
		killed(t, arg)
		return
	}
	r := rand.New(rand.NewPCG(7, 7))
	within, settled := 0, 0
	for round := range killRounds {
		seed := r.Uint64()
		durability := []Durability{DurabilityMemory, DurabilityFsync}[round%2]
		lines := r.IntN(2 * killSteps)
		if round%5 == 0 {
			lines = 2*killSteps - 3 + r.IntN(40) // around Settle, and behind it
		}
		o := optionsIn(memoryDir(t), durability)
		did, does, guest := killAfter(t, fmt.Sprint(seed, " ", int(durability), " ", strings.TrimSuffix(o.JournalDir, "/journal")), lines)
		before := readImages(t, o)
		target := mustOpen(t, o)
		whole := target.Whole()
		if err := target.Close(); err != nil {
			t.Fatal(err)
		}
		got := readImages(t, o).sum()
		if guest {
			settled++
			if got != before.sum() {
				t.Fatalf("round %d: the image of a guest that runs was written to", round)
			}
			continue
		}
		if did < 0 {
			if whole {
				t.Fatalf("round %d: killed within the initial copy, and the images are whole", round)
			}
			continue
		}
		twin := newModelDriver(o.Disks)
		var states [][32]byte
		play(seed, o.Disks, twin, func(step int) bool {
			if step > did {
				states = append(states, twin.now().sum()) // of step-1
			}
			return step <= does && step < killSteps
		})
		if does > did {
			within++
		}
		if len(states) == 0 || got != states[0] && got != states[len(states)-1] {
			t.Fatalf("round %d, seed %d, %v: the disks after step %d (or %d) are not what they were", round, seed, durability, did, does)
		}
	}
	if within < killRounds/10 || settled < killRounds/20 {
		t.Errorf("killed within a step %d times and after Settle %d times of %d: the test proves little", within, settled, killRounds)
	}
	t.Logf("%d kills: %d within a step, %d while a guest ran on the image", killRounds, within, settled)
}

// killAfter starts the process and kills it when it has said so many lines. It
// returns the last step that was done and the one that was begun, and whether
// the guest ran.
func killAfter(t *testing.T, arg string, lines int) (did, does int, guest bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTargetKill$")
	cmd.Env = append(os.Environ(), killEnv+"="+arg)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	did, does = -1, -1
	said := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == lines {
			cmd.Process.Kill() // and read what it had said
		}
		line, err := said.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		step, err := strconv.Atoi(number)
		switch {
		case err != nil:
			t.Fatalf("it said %q", line)
		case word == "did":
			did = step
		case word == "does":
			does = step
		case word == "settled" || word == "guest":
			guest = true
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("it ended by itself: %v", err)
	}
	return did, does, guest
}
