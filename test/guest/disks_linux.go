package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// disks are all disks of the guest; the fields are set before anything runs.
type disks struct {
	accept  *acceptance
	records []*recordDisk
	files   []*fileDisk
}

// open finds the disks and gives each its workload, which rests until it is
// told. One that fails is reported and left out: the console's ready line says
// how many there are.
func (d *disks) open(cfg config, id guestapi.BootID) {
	end := time.Now().Add(diskWait)
	for _, c := range cfg.disks {
		if err := d.openOne(c, id.Generation(), end); err != nil {
			say("disk %s: %v", c.name, err)
		}
	}
	if cfg.acceptDisk == "" {
		return
	}
	for _, r := range d.records {
		if r.name == cfg.acceptDisk {
			d.accept.writeTo(r)
			return
		}
	}
	say("ft.disk=%s: no such disk of records", cfg.acceptDisk)
}

func (d *disks) openOne(c diskConfig, generation uint64, end time.Time) error {
	name, err := findDisk(c.name, end)
	if err != nil {
		return err
	}
	if c.workload == "ext4" {
		f, err := mountFiles(c.name, filepath.Join("/dev", name), filepath.Join("/mnt", c.name), generation)
		if err == nil {
			d.files = append(d.files, f)
		}
		return err
	}
	dev, err := openBlockDevice(name)
	if err != nil {
		return err
	}
	r, err := newRecordDisk(c.name, dev, dev.bytes, generation)
	if err == nil {
		d.records = append(d.records, r)
	}
	return err
}

// run obeys a command behind the word disk; the first word may be a disk's
// name, or it is about all.
func (d *disks) run(words []string) (map[string]any, error) {
	some := d
	if len(words) > 0 {
		if named := d.named(words[0]); named != nil {
			some, words = named, words[1:]
		}
	}
	if len(words) == 0 || len(some.records)+len(some.files) == 0 {
		return nil, fmt.Errorf("disk: no command, or no disk")
	}
	args := words[1:]
	switch words[0] {
	case "status":
		return some.status(), nil
	case "load":
		return some.load(args)
	case "quiet":
		return map[string]any{"ok": true}, some.quiet()
	case "check":
		return some.check()
	case "trim", "zero":
		return some.erase(words[0] == "zero", args)
	case "bench":
		n, err := numbers(args, 1, 1)
		if err == nil && len(some.records) == 0 {
			err = fmt.Errorf("disk bench: not a disk of records")
		}
		if err != nil {
			return nil, err
		}
		return some.records[0].bench(time.Duration(min(n[0], 1<<20)) * time.Second)
	case "accept":
		return some.acceptTo(args)
	}
	return nil, fmt.Errorf("disk: unknown command %q", words[0])
}

// named returns the one disk with a name, or nil.
func (d *disks) named(name string) *disks {
	for _, r := range d.records {
		if r.name == name {
			return &disks{accept: d.accept, records: []*recordDisk{r}}
		}
	}
	for _, f := range d.files {
		if f.name == name {
			return &disks{accept: d.accept, files: []*fileDisk{f}}
		}
	}
	return nil
}

// numbers parses between least and most arguments.
func numbers(args []string, least, most int) ([]int64, error) {
	if len(args) < least || len(args) > most {
		return nil, fmt.Errorf("disk: %d arguments, want %d to %d", len(args), least, most)
	}
	var all []int64
	for _, a := range args {
		n, err := strconv.ParseInt(a, 10, 48)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("disk: bad number %q", a)
		}
		all = append(all, n)
	}
	return all, nil
}

func (d *disks) status() map[string]any {
	all := map[string]any{}
	text := func(p *string) string {
		if p == nil {
			return ""
		}
		return *p
	}
	for _, r := range d.records {
		all[r.name] = map[string]any{"workload": "records", "bytes": r.bytes, "accept_slots": r.layout.Accept, "load_slots": r.layout.Load,
			"load_per_s": r.rate.Load(), "writes": r.writes.Load(), "failures": r.failures.Load(), "first_error": text(r.firstError.Load())}
	}
	for _, f := range d.files {
		all[f.name] = map[string]any{"workload": "ext4", "load_per_s": f.rate.Load(), "changes": f.changes.Load(),
			"failures": f.failures.Load(), "first_error": text(f.firstError.Load())}
	}
	accepting := ""
	if s := d.accept.scribe.Load(); s != nil {
		accepting = s.disk.name
	}
	return map[string]any{"disks": all, "accept": accepting}
}

// load starts writes: to a disk of records of so many bytes each, or as many
// changes of files.
func (d *disks) load(args []string) (map[string]any, error) {
	n, err := numbers(args, 1, 2)
	if err != nil {
		return nil, err
	}
	bytes := int64(slotBytes)
	if len(n) == 2 {
		bytes = n[1]
	}
	if n[0] > diskRateMax || bytes == 0 || bytes > diskWriteMax || bytes%slotBytes != 0 {
		return nil, fmt.Errorf("disk load: at most %d a second, of a multiple of %d bytes up to %d", diskRateMax, slotBytes, diskWriteMax)
	}
	for _, r := range d.records {
		if err := r.startLoad(n[0], bytes); err != nil {
			return nil, err
		}
	}
	for _, f := range d.files {
		f.startLoad(n[0])
	}
	return map[string]any{"load_per_s": n[0], "bytes": bytes}, nil
}

// quiet ends all load. What the acceptance service was asked for before is on
// the disk too when it returns; clients that go on are not its concern.
func (d *disks) quiet() error {
	if s := d.accept.scribe.Load(); s != nil {
		s.idle()
	}
	var errs []error
	for _, r := range d.records {
		errs = append(errs, r.quiet())
	}
	for _, f := range d.files {
		errs = append(errs, f.quiet())
	}
	return errors.Join(errs...)
}

func (d *disks) check() (map[string]any, error) {
	var all findings
	failures := uint64(0)
	for _, r := range d.records {
		f, err := r.check()
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", r.name, err)
		}
		all.add(f)
		failures += r.failures.Load()
	}
	for _, r := range d.files {
		f, err := r.check()
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", r.name, err)
		}
		all.add(f)
		failures += r.failures.Load()
	}
	return map[string]any{"whole": all.Whole, "missing": all.Missing, "foreign": all.Foreign, "torn": all.Torn,
		"failures": failures, "findings": all.Texts}, nil
}

// erase discards or zeroes a range, given in MiB; without one, any MiB that the
// load writes to.
func (d *disks) erase(zero bool, args []string) (map[string]any, error) {
	n, err := numbers(args, 0, 2)
	if err != nil || len(args) == 1 {
		return nil, errors.Join(err, fmt.Errorf("disk trim, zero: give MiB where it begins and how many, or nothing"))
	}
	if len(d.records) == 0 {
		return nil, fmt.Errorf("disk trim, zero: not a disk of records")
	}
	for _, r := range d.records {
		if len(args) == 0 {
			n = []int64{int64(r.layout.Accept/stripeSlots + rand.Uint64N(r.layout.Load/stripeSlots)), 1}
		}
		if err := r.erase(zero, n[0]<<20, n[1]<<20); err != nil {
			return nil, fmt.Errorf("disk %s: %w", r.name, err)
		}
	}
	return map[string]any{"from_mib": n[0], "mib": n[1]}, nil
}

// acceptTo lets the acceptance service write to the disk, or to none.
func (d *disks) acceptTo(args []string) (map[string]any, error) {
	switch {
	case len(args) == 1 && args[0] == "off":
		return map[string]any{"since": d.accept.writeTo(nil)}, nil
	case len(args) == 0 && len(d.records) == 1:
		return map[string]any{"since": d.accept.writeTo(d.records[0])}, nil
	}
	return nil, fmt.Errorf("disk accept: give a disk of records before it, or off behind it")
}
