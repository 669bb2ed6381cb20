package guestram

import (
	"fmt"
	"strconv"
	"strings"
)

// ramRow is one line of `info ramblock`.
type ramRow struct {
	name              string // empty for a block without idstr
	pageSize          uint64
	offset, used, max uint64
	host              uint64
}

type ramTable struct {
	rows    []ramRow
	hasHost bool
}

// parseRamblock reads what `info ramblock` prints. Columns are found by their
// heading, so that ones added later (HVA and RO came with 8.2) do no harm:
//
//	Block Name    PSize              Offset               Used              Total                HVA  RO
//	    pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f...         rw
func parseRamblock(text string) (ramTable, error) {
	var t ramTable
	lines := strings.Split(strings.ReplaceAll(text, "\r", ""), "\n")
	head := strings.Fields(lines[0])
	if len(head) < 6 || head[0] != "Block" || head[1] != "Name" || head[2] != "PSize" {
		return t, fmt.Errorf("info ramblock: unknown heading %.80q: %w", lines[0], ErrLayout)
	}
	cols := head[3:]
	for _, l := range lines[1:] {
		if strings.TrimSpace(l) == "" {
			continue
		}
		if len(t.rows) == maxBlocks {
			return t, fmt.Errorf("info ramblock: more than %d blocks: %w", maxBlocks, ErrLayout)
		}
		row, err := parseRow(cols, strings.Fields(l))
		if err != nil {
			return t, fmt.Errorf("info ramblock: line %.200q: %w", l, err)
		}
		t.rows = append(t.rows, row)
	}
	for _, c := range cols {
		t.hasHost = t.hasHost || c == "HVA"
	}
	return t, nil
}

// parseRow takes a line from its right end, because a name may be missing. The
// page size is two words ("4 KiB").
func parseRow(cols, f []string) (ramRow, error) {
	var r ramRow
	names := len(f) - len(cols) - 2
	if names != 0 && names != 1 {
		return r, fmt.Errorf("%d fields: %w", len(f), ErrLayout)
	}
	if names == 1 {
		r.name = f[0]
	}
	size, err := parseSize(f[names], f[names+1])
	if err != nil {
		return r, err
	}
	r.pageSize = size
	for i, c := range cols {
		var to *uint64
		switch c {
		case "Offset":
			to = &r.offset
		case "Used":
			to = &r.used
		case "Total":
			to = &r.max
		case "HVA":
			to = &r.host
		default:
			continue
		}
		v := f[names+2+i]
		if *to, err = strconv.ParseUint(v, 0, 64); err != nil {
			return r, fmt.Errorf("%s %q: %w", c, v, ErrLayout)
		}
	}
	return r, nil
}

// parseSize reads QEMU's size_to_str, for instance "4 KiB" or "1 GiB".
func parseSize(num, unit string) (uint64, error) {
	n, err := strconv.ParseUint(num, 10, 32)
	shift, ok := map[string]uint{"B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[unit]
	if err != nil || !ok {
		return 0, fmt.Errorf("page size %q %q: %w", num, unit, ErrLayout)
	}
	return n << shift, nil
}

// blocks is the table as blocks, for a QEMU that prints host addresses.
func (t ramTable) blocks() []Block {
	var out []Block
	for _, r := range t.rows {
		if r.name == "" {
			continue
		}
		out = append(out, Block{Name: r.name, Host: r.host, Used: r.used, Max: r.max,
			PageSize: r.pageSize, Migratable: true})
	}
	return out
}

// crossCheck accepts the blocks walked in QEMU's memory only if they are, name
// by name and size by size, those the monitor lists. Offsets in RAMBlock that
// are wrong for this QEMU cannot pass it.
func crossCheck(t ramTable, walked []walkedBlock) ([]Block, error) {
	if len(t.rows) != len(walked) {
		return nil, fmt.Errorf("monitor lists %d RAM blocks, memory holds %d: %w", len(t.rows), len(walked), ErrLayout)
	}
	type key struct {
		name   string
		offset uint64
	}
	byKey := make(map[key]walkedBlock, len(walked))
	for _, w := range walked {
		byKey[key{w.Name, w.offset}] = w
	}
	var out []Block
	for _, r := range t.rows {
		w, ok := byKey[key{r.name, r.offset}]
		if !ok || w.Used != r.used || w.Max != r.max || w.PageSize != r.pageSize {
			return nil, fmt.Errorf("RAM block %q: monitor says %#x+%#x/%#x, memory %+v: %w", r.name, r.offset, r.used, r.max, w.Block, ErrLayout)
		}
		delete(byKey, key{r.name, r.offset})
		if w.Migratable != (r.name != "") {
			return nil, fmt.Errorf("RAM block %q at %#x: migratable flag is %v: %w", r.name, r.offset, w.Migratable, ErrLayout)
		}
		if w.Migratable {
			out = append(out, w.Block)
		}
	}
	return out, nil
}
