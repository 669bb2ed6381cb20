package vmstate

import (
	"encoding/json"
	"fmt"
)

// Names in QEMU's description (target/i386/machine.c).
const (
	fieldTSC        = "env.tsc"
	fieldSystemTime = "env.system_time_msr"
	subsectionTSC   = "cpu/tsc_khz"
	fieldTSCkHz     = "env.tsc_khz"
)

// Bounds of a description.
const (
	maxVMDescBytes = 16 << 20
	maxCPUBytes    = 1 << 20 // of one section "cpu"; 7.2's is 2.7 KB, AMX tiles are 8 KB more
)

// CPULayout says where fields lie in the sections "cpu" of one version of QEMU,
// whatever its accelerator and CPU model: what comes and goes with those are
// subsections, behind all fields. The zero value fits no section. Comparable with ==.
type CPULayout struct {
	version      uint32 // of the section
	bytes        int    // of all its fields, without subsections
	tscAt        int    // offset of env.tsc
	systemTimeAt int    // offset of env.system_time_msr; 0: this version has none

	khzVersion uint32 // of subsection cpu/tsc_khz
	khzBytes   int    // of its fields; 0: the description did not have it
	khzAt      int    // offset of env.tsc_khz in it
}

// description is one object of the JSON that ends a migration stream: a section,
// a subsection, or a struct within one (migration/vmstate.c). What a field has
// written is its Size, for each of ArrayLen elements if they are alike; else each
// of them is a field of its own.
type description struct {
	Name        string        `json:"name"`
	VMSDName    string        `json:"vmsd_name"`
	Version     uint32        `json:"version"`
	Fields      []field       `json:"fields"`
	Subsections []description `json:"subsections"`
}

type field struct {
	Name     string       `json:"name"`
	Type     string       `json:"type"`
	ArrayLen *int         `json:"array_len"`
	Size     int          `json:"size"`
	Struct   *description `json:"struct"`
	Fields   []field      `json:"fields"` // of type "tmp", which is a struct without the object
}

// ParseCPULayout reads the description of a whole migration stream
// (Stream.VMDesc). Where the rate of the TSC lies is known only if one of the
// CPUs described has said it, which they do under KVM, and under TCG with
// -cpu MODEL,tsc-frequency=HZ. Errors are ErrLayout.
func ParseCPULayout(vmdesc []byte) (CPULayout, error) {
	if len(vmdesc) > maxVMDescBytes {
		return CPULayout{}, fmt.Errorf("%w: %d bytes", ErrLayout, len(vmdesc))
	}
	var all struct {
		Devices []json.RawMessage `json:"devices"`
	}
	if err := json.Unmarshal(vmdesc, &all); err != nil {
		return CPULayout{}, fmt.Errorf("%w: %w", ErrLayout, err)
	}
	var l CPULayout
	for _, raw := range all.Devices {
		var section struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(raw, &section); err != nil {
			return CPULayout{}, fmt.Errorf("%w: %w", ErrLayout, err)
		}
		if section.Name != SectionCPU {
			continue
		}
		var d description
		if err := json.Unmarshal(raw, &d); err != nil {
			return CPULayout{}, fmt.Errorf("%w: %w", ErrLayout, err)
		}
		this, err := d.cpuLayout()
		if err != nil {
			return CPULayout{}, err
		}
		if l, err = l.and(this); err != nil {
			return CPULayout{}, err
		}
	}
	if l.bytes == 0 {
		return CPULayout{}, fmt.Errorf("%w: no such section", ErrLayout)
	}
	return l, nil
}

// and joins what two CPUs' sections say; only a subsection may be missing in one.
func (l CPULayout) and(m CPULayout) (CPULayout, error) {
	if l.bytes == 0 {
		return m, nil
	}
	if m.khzBytes == 0 {
		m.khzVersion, m.khzBytes, m.khzAt = l.khzVersion, l.khzBytes, l.khzAt
	}
	if l.khzBytes == 0 {
		l.khzVersion, l.khzBytes, l.khzAt = m.khzVersion, m.khzBytes, m.khzAt
	}
	if l != m {
		return CPULayout{}, fmt.Errorf("%w: two CPUs differ: %+v and %+v", ErrLayout, l, m)
	}
	return l, nil
}

func (d *description) cpuLayout() (CPULayout, error) {
	l := CPULayout{version: d.Version}
	var err error
	if l.bytes, err = size(d.Fields); err != nil {
		return CPULayout{}, err
	}
	var found bool
	if l.tscAt, found, err = at(d.Fields, fieldTSC); err != nil {
		return CPULayout{}, err
	} else if !found {
		return CPULayout{}, fmt.Errorf("%w: no field %s", ErrLayout, fieldTSC)
	}
	if l.systemTimeAt, _, err = at(d.Fields, fieldSystemTime); err != nil {
		return CPULayout{}, err
	}
	for _, sub := range d.Subsections {
		if sub.VMSDName != subsectionTSC || len(sub.Subsections) > 0 {
			continue
		}
		if l.khzAt, found, err = at(sub.Fields, fieldTSCkHz); err != nil {
			return CPULayout{}, err
		}
		if found {
			l.khzVersion = sub.Version
			if l.khzBytes, err = size(sub.Fields); err != nil {
				return CPULayout{}, err
			}
		}
	}
	return l, nil
}

// at returns the offset of the field of that name, which has to be one number of
// 8 bytes; false if there is none, which other versions of QEMU may mean so.
func at(fields []field, name string) (offset int, found bool, err error) {
	for i := range fields {
		f := &fields[i]
		if f.Name != name {
			continue
		}
		if found {
			return 0, false, fmt.Errorf("%w: two fields %s", ErrLayout, name)
		}
		if f.Type != "uint64" && f.Type != "int64" || f.Size != 8 || f.ArrayLen != nil {
			return 0, false, fmt.Errorf("%w: field %s of type %q and %d bytes", ErrLayout, name, f.Type, f.Size)
		}
		if offset, err = size(fields[:i]); err != nil {
			return 0, false, err
		}
		found = true
	}
	return offset, found, nil
}

// size returns how many bytes the fields are, and checks that a struct is as long as what is in it.
func size(fields []field) (int, error) {
	total := 0
	for i := range fields {
		f := &fields[i]
		n := 1
		if f.ArrayLen != nil {
			n = *f.ArrayLen
		}
		if f.Size < 0 || n < 0 || f.Size > maxCPUBytes || n > maxCPUBytes {
			return 0, fmt.Errorf("%w: field %s: %d elements of %d bytes", ErrLayout, f.Name, n, f.Size)
		}
		inner := f.Size
		var err error
		switch {
		case f.Struct != nil:
			inner, err = f.Struct.size()
		case f.Fields != nil:
			inner, err = size(f.Fields)
		}
		if err != nil {
			return 0, err
		}
		if inner != f.Size {
			return 0, fmt.Errorf("%w: field %s of %d bytes, what is in it of %d", ErrLayout, f.Name, f.Size, inner)
		}
		if total += n * f.Size; total > maxCPUBytes {
			return 0, fmt.Errorf("%w: more than %d bytes", ErrLayout, maxCPUBytes)
		}
	}
	return total, nil
}

// size is that of a struct with its subsections, each with mark, name and version.
func (d *description) size() (int, error) {
	total, err := size(d.Fields)
	for i := range d.Subsections {
		if err != nil {
			break
		}
		sub := &d.Subsections[i]
		var n int
		n, err = sub.size()
		if total += len(subsectionHeader(sub.VMSDName, sub.Version)) + n; total > maxCPUBytes {
			err = fmt.Errorf("%w: more than %d bytes", ErrLayout, maxCPUBytes)
		}
	}
	return total, err
}
