// Command mutants proves that `make chaos` bites: it builds virt-ft with one
// line changed so that it breaks the guarantee, lets a short chaos run judge the
// program, and fails unless the run finds a loss. A run that fails for any other
// reason has proved nothing.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// mutant is a program that forgets something.
type mutant struct {
	name     string
	file     string // below the module's root
	old, new string // a whole line that the file has once, and what takes its place
	args     []string
	kills    int // after so many it must have been found out
}

// mutants returns all that must be found out.
func mutants() []mutant {
	return []mutant{
		{
			name: "release-early", // nothing is ever held
			file: "internal/daemon/outputs_linux.go",
			old:  "\t\t\treturn g.Hold()",
			new:  "\t\t\treturn nil",
			args: []string{"-only", "qemu"}, kills: 20,
		},
		{
			name: "release-before-ack", // held until the checkpoint is taken, not until the backup has it
			file: "internal/daemon/outputs_linux.go",
			old:  "\to.queue = append(o.queue, h)",
			new:  "\th.granted, o.queue = true, append(o.queue, h); select { case o.wake <- struct{}{}: default: }",
			args: []string{"-only", "host"}, kills: 30,
		},
		{
			name: "endless-lease", // who was frozen lets out what was acknowledged before
			file: "internal/netgate/release_linux.go",
			old:  "\tns := uint64(until.UnixNano())",
			new:  "\tns := uint64(until.Add(time.Hour).UnixNano())",
			args: []string{"-only", "freeze"}, kills: 60,
		},
		{
			name: "drop-a-page", // every 61st page stays as it was
			file: "internal/daemon/image_linux.go",
			old:  "\t\tcopy(m.Bytes()[off:off+n], src)",
			new:  "\t\tif off%(61<<12) != 0 || m.Bytes()[off] == 0 { copy(m.Bytes()[off:off+n], src) }",
			args: []string{"-only", "qemu"}, kills: 10,
		},
		{
			name: "forget-committed-frame", // the backup performs nothing
			file: "internal/daemon/backup_outputs_linux.go",
			old:  "\terr := b.gate.Pass(ctx, frames)",
			new:  "\terr := b.gate.Pass(ctx, nil)",
			args: []string{"-only", "host"}, kills: 40,
		},
		{
			name: "ack-without-disk", // an epoch is acknowledged, and its writes are nowhere
			file: "internal/daemon/backup_disks_linux.go",
			old:  "\treturn in.diskError(bd.target.Stage(uint64(epoch), ws))",
			new:  "\tfor i := range ws { ws[i].Free() }; return nil",
			args: []string{"-only", "qemu"}, kills: 10,
		},
		{
			name: "write-before-commit", // what arrives of an open epoch is in the image at once
			file: "internal/diskrep/target_linux.go",
			old:  "\t\te.writes = append(e.writes, w)",
			new:  "\t\te.writes = append(e.writes, w); if len(w.Data) > 0 { _ = t.images[w.Disk].put(w.Write) }",
			args: []string{"-only", "qemu"}, kills: 30,
		},
		{
			name: "cut-late", // the first write of the next epoch counts for this one
			file: "internal/diskrep/source_session.go",
			old:  "\ts.cut, s.cutAt = true, s.queue.added",
			new:  "\ts.cut, s.cutAt = true, s.queue.added+1",
			args: []string{"-only", "qemu"}, kills: 30,
		},
		{
			name: "forget-zeroes", // what the guest discards or zeroes stays on the backup
			file: "internal/diskrep/target_apply_linux.go",
			old:  "\treturn im.put(w.Write)",
			new:  "\treturn nil",
			args: []string{"-only", "qemu"}, kills: 20,
		},
	}
}

// overlay writes the changed file and go build's overlay into dir and returns
// the overlay's path. A line that is not there exactly once is an error: the
// mutant must be made anew.
func (m mutant) overlay(root, dir string) (string, error) {
	path := filepath.Join(root, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("mutant %s: %w", m.name, err)
	}
	if n := strings.Count("\n"+string(text), "\n"+m.old+"\n"); n != 1 {
		return "", fmt.Errorf("mutant %s: %s has the line %q %d times, not once", m.name, m.file, m.old, n)
	}
	changed := filepath.Join(dir, m.name+".go")
	text = []byte(strings.Replace("\n"+string(text), "\n"+m.old+"\n", "\n"+m.new+"\n", 1)[1:])
	if err := os.WriteFile(changed, text, 0o644); err != nil {
		return "", fmt.Errorf("mutant %s: %w", m.name, err)
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, m.name+".json")
	return name, os.WriteFile(name, list, 0o644)
}

// build builds the mutant into dir and returns the program's path.
func (m mutant) build(ctx context.Context, root, dir string) (string, error) {
	program := filepath.Join(dir, m.name)
	return program, m.goBuild(ctx, root, dir, "-o", program, "./cmd/virt-ft")
}

// compile compiles the changed package and no more.
func (m mutant) compile(ctx context.Context, root, dir string) error {
	return m.goBuild(ctx, root, dir, "./"+filepath.Dir(m.file))
}

func (m mutant) goBuild(ctx context.Context, root, dir string, args ...string) error {
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-overlay", overlay}, args...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mutant %s: %w: %s", m.name, err, out)
	}
	return nil
}

// verdict is what the closing line of a chaos run says.
type verdict struct {
	Kills          int    `json:"kills"`
	FailedRound    int    `json:"failed_round"`
	AckedLost      uint64 `json:"acked_lost"`
	TCPReset       uint64 `json:"tcp_reset"`
	Contradictions uint64 `json:"contradictions"`
	Unanswered     uint64 `json:"unanswered"`
	MemoryErrors   uint64 `json:"memory_errors"`
	SplitFrames    uint64 `json:"split_brain_frames"`
	Forgotten      uint64 `json:"forgotten"`
	DiskLost       uint64 `json:"disk_lost"`
	DiskForeign    uint64 `json:"disk_foreign"`
	DiskTorn       uint64 `json:"disk_torn"`
	DiskErrors     uint64 `json:"disk_errors"`
	FsckErrors     uint64 `json:"fsck_errors"`
	ImagesDiffer   uint64 `json:"images_differ"`
	Error          string `json:"error"`
}

// found tells whether the run saw a loss.
func (v verdict) found() bool {
	return v.AckedLost+v.TCPReset+v.Contradictions+v.Unanswered+v.MemoryErrors+v.SplitFrames+v.Forgotten+
		v.DiskLost+v.DiskForeign+v.DiskTorn+v.DiskErrors+v.FsckErrors+v.ImagesDiffer != 0
}

// judge lets chaos judge the program and returns an error unless it is found
// out.
func (m mutant) judge(ctx context.Context, chaos, program string, seed uint64) error {
	args := append([]string{"-virt-ft", program, "-kills", strconv.Itoa(m.kills), "-seed", strconv.FormatUint(seed, 10)}, m.args...)
	cmd := exec.Command(chaos, args...) // Ctrl-C reaches it by itself, and it cleans up
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	runErr := cmd.Wait()
	var v verdict
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		return errors.Join(fmt.Errorf("mutant %s: chaos printed no closing line: %w", m.name, err), runErr, errors.New(errOut.String()))
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case runErr == nil:
		return fmt.Errorf("mutant %s SURVIVED %d kills", m.name, v.Kills)
	case !v.found():
		return fmt.Errorf("mutant %s: the run failed, but not for a loss: %s\n%s", m.name, v.Error, errOut.String())
	}
	fmt.Fprintf(os.Stderr, "mutants: %s found out in round %d: acked_lost %d, tcp_reset %d, contradictions %d, unanswered %d, memory_errors %d, split_brain_frames %d, forgotten %d, "+
		"disk_lost %d, disk_foreign %d, disk_torn %d, disk_errors %d, fsck_errors %d, images_differ %d\n",
		m.name, v.FailedRound, v.AckedLost, v.TCPReset, v.Contradictions, v.Unanswered, v.MemoryErrors, v.SplitFrames, v.Forgotten,
		v.DiskLost, v.DiskForeign, v.DiskTorn, v.DiskErrors, v.FsckErrors, v.ImagesDiffer)
	return nil
}

func main() {
	chaos := flag.String("chaos", "build/lab-chaos", "the judge")
	only := flag.String("only", "", "name of one mutant (default all)")
	seed := flag.Uint64("seed", 1, "of the chaos runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *chaos, *only, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, chaos, only string, seed uint64) error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "virt-ft-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var all error
	tried := 0
	for _, m := range mutants() {
		if only != "" && m.name != only {
			continue
		}
		tried++
		program, err := m.build(ctx, root, dir)
		if err == nil {
			err = m.judge(ctx, chaos, program, seed)
		}
		all = errors.Join(all, err)
		if ctx.Err() != nil {
			return all
		}
	}
	if tried == 0 {
		return fmt.Errorf("there is no mutant %q", only)
	}
	return all
}
