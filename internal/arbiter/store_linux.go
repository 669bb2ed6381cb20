package arbiter

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	identityName  = "virt-ft-arbiter"
	identityBytes = 16
	maxRaces      = 64               // lost compare-and-swaps before an operation gives up
	tempAgeMax    = 10 * time.Minute // older temporary files of ours were left by a crash
)

// advance reads the records, lets decide choose, and places the chosen step.
// When another step got there first, it reads and decides anew. It returns nil
// only when all that decide has seen, or the step placed, is on stable storage.
func (f *File) advance(ctx context.Context, try *attempt, c Claim, decide decision) error {
	if _, err := f.identify(ctx, f.id); err != nil {
		return undecided(err)
	}
	dir := filepath.Join(f.dir, c.Domain)
	for range maxRaces {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, top, err := f.load(ctx, c.Domain, c.Generation)
		if err != nil && !try.begun() {
			return undecided(err)
		}
		if err != nil {
			return err
		}
		step, err := decide(at, top)
		if err != nil {
			return err
		}
		if step == 0 {
			if at.next == 0 {
				return nil // no record of this generation, perhaps no directory
			}
			// An earlier attempt of ours may have died before its sync.
			return f.syncDir(dir)
		}
		if at.next >= maxStepsPerClaim {
			return fmt.Errorf("%w: more than %d steps in one generation", ErrStorage, maxStepsPerClaim)
		}
		if err := f.makeDir(dir); err != nil {
			return err
		}
		placed, err := f.append(ctx, try, dir, newEntry(c, at.next, f.machine, step))
		if err != nil {
			return err
		}
		if placed {
			return f.syncDir(dir)
		}
	}
	return fmt.Errorf("%w: lost %d races in a row", ErrUnknown, maxRaces)
}

// append places e if its place is free. placed is false when another record
// has it; an error leaves open whether ours was placed.
func (f *File) append(ctx context.Context, try *attempt, dir string, e entry) (placed bool, err error) {
	body, err := encodeEntry(e)
	if err != nil {
		return false, err
	}
	tmp, err := f.writeTemp(dir, e.Host, body)
	if err != nil {
		return false, err
	}
	defer func() {
		if f.at("remove temp") == nil {
			_ = os.Remove(tmp) // a leftover is harmless and removed later
		}
	}()
	if err := ctx.Err(); err != nil {
		return false, err // the caller has gone: do not act behind its back
	}
	if !try.begin() {
		return false, context.Canceled // it went just now, and was told that nothing happens
	}
	final := filepath.Join(dir, recordName(e.Generation, e.Seq))
	err = f.link(tmp, final)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, errCrashed) {
		return false, err
	}
	// open(2), O_EXCL: over NFS the reply may be lost or be that of a
	// retransmission. The link count of the unique file tells, ...
	if info, serr := os.Stat(tmp); serr == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 2 {
			return true, nil
		}
	}
	// ... but the count may come from a cache; the record itself cannot lie.
	there, rerr := f.read(e.Domain, e.Generation, e.Seq)
	switch {
	case rerr == nil && there.ID == e.ID:
		return true, nil
	case rerr == nil && errors.Is(err, fs.ErrExist):
		return false, nil
	}
	return false, fmt.Errorf("%w: %w", ErrUnknown, err)
}

// errCrashed is what a test's fault hook returns to end an operation where a
// crash would: nothing is looked at or cleaned up afterwards.
var errCrashed = errors.New("crashed here")

func (f *File) link(tmp, final string) error {
	if err := f.at("link"); err != nil {
		return err
	}
	if err := f.place(tmp, final); err != nil {
		return err
	}
	return f.at("linked")
}

func (f *File) writeTemp(dir, host string, body []byte) (string, error) {
	f.sweep(dir, host)
	name := filepath.Join(dir, tempPrefix+host+"-"+randomID())
	if err := f.at("create temp"); err != nil {
		return "", err
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return "", err
	}
	_, err = file.Write(body)
	if err == nil {
		err = f.at("sync temp")
	}
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr // NFS reports a failed write at close
	}
	if err != nil {
		if !errors.Is(err, errCrashed) {
			_ = os.Remove(name)
		}
		return "", err
	}
	return name, nil
}

// sweep removes temporary files which this host left behind in a crash. An
// operation of ours that still hangs would merely fail its link.
func (f *File) sweep(dir, host string) {
	names, err := f.list(dir)
	if err != nil {
		return
	}
	for _, name := range names {
		if !strings.HasPrefix(name, tempPrefix+host+"-") {
			continue
		}
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > tempAgeMax {
			_ = os.Remove(path)
		}
	}
}

// load returns the chain of one generation and that of the highest generation.
func (f *File) load(ctx context.Context, domain string, generation uint64) (at, top chain, err error) {
	at, top = chain{generation: generation}, chain{}
	names, err := f.list(filepath.Join(f.dir, domain))
	if err != nil {
		return at, top, err
	}
	counts := map[uint64]int{} // steps seen; bounded by maxDirEntries
	lastSeq := map[uint64]int{}
	for _, name := range names {
		g, seq, ok := parseRecordName(name)
		if !ok {
			continue
		}
		counts[g]++
		lastSeq[g] = max(lastSeq[g], seq)
		top.generation = max(top.generation, g)
	}
	for _, c := range []*chain{&at, &top} {
		n := counts[c.generation]
		if n == 0 {
			continue
		}
		if lastSeq[c.generation] != n-1 {
			return at, top, fmt.Errorf("%w: a step of generation %d is missing", ErrStorage, c.generation)
		}
		if err := ctx.Err(); err != nil {
			return at, top, err
		}
		if c.last, err = f.read(domain, c.generation, n-1); err != nil {
			return at, top, err
		}
		c.next = n
	}
	return at, top, nil
}

// list returns the names in dir; a directory that does not exist is empty.
func (f *File) list(dir string) ([]string, error) {
	if err := f.at("list"); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxDirEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxDirEntries {
		return nil, fmt.Errorf("%w: more than %d files in %s", ErrStorage, maxDirEntries, dir)
	}
	return names, nil
}

func (f *File) read(domain string, generation uint64, seq int) (entry, error) {
	if err := f.at("read"); err != nil {
		return entry{}, err
	}
	name := filepath.Join(f.dir, domain, recordName(generation, seq))
	b, err := readBounded(name)
	if err != nil {
		return entry{}, err
	}
	e, err := decodeEntry(b, domain, generation, seq)
	if err != nil {
		return entry{}, fmt.Errorf("%s: %w", name, err)
	}
	return e, nil
}

func readBounded(name string) ([]byte, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxRecordBytes+1))
}

// makeDir creates a domain's directory and makes its name durable.
func (f *File) makeDir(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if err := f.at("make dir"); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return f.syncDir(f.dir)
}

func (f *File) syncDir(dir string) error {
	if err := f.at("sync dir"); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// identify returns the directory's identity, giving it one if it has none and
// none is expected. want guards against storage that was unmounted or replaced.
func (f *File) identify(ctx context.Context, want string) (string, error) {
	name := filepath.Join(f.dir, identityName)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		b, err := readBounded(name)
		if err == nil {
			id := strings.TrimSpace(string(b))
			if len(id) != 2*identityBytes {
				return "", fmt.Errorf("%w: %s does not hold an identity", ErrStorage, name)
			}
			if want != "" && id != want {
				return "", fmt.Errorf("%w: %s has identity %s, expected %s: is the shared storage mounted?",
					ErrStorage, f.dir, id, want)
			}
			return id, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if want != "" {
			return "", fmt.Errorf("%w: %s is missing: is the shared storage mounted?", ErrStorage, name)
		}
		tmp, err := f.writeTemp(f.dir, "identity", []byte(randomID()+"\n"))
		if err != nil {
			return "", err
		}
		err = os.Link(tmp, name)
		_ = os.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := f.syncDir(f.dir); err != nil {
			return "", err
		}
	}
}

// at tells the fault hook which call comes next.
func (f *File) at(label string) error {
	if f.fault == nil {
		return nil
	}
	return f.fault(label)
}

func randomID() string {
	var b [identityBytes]byte
	_, _ = rand.Read(b[:]) // never fails, says crypto/rand
	return hex.EncodeToString(b[:])
}
