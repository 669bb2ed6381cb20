package guestram

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Where things are in a QEMU of 64 bits before 8.2 (include/exec/ramlist.h,
// include/exec/ramblock.h): the mutex and mru_block come before the list head;
// RAMBlock is read up to and including page_size. Seen on 7.2; for any other
// version crossCheck decides whether they hold.
const (
	ramListHead   = 56
	rbHost        = 24
	rbOffset      = 40
	rbUsed        = 48
	rbMax         = 56
	rbFlags       = 72
	rbIdstr       = 76
	rbNext        = 336
	rbPageSize    = 368
	ramBlockBytes = 376

	flagMigratable = 1 << 4 // RAM_MIGRATABLE, include/exec/memory.h
)

type walkedBlock struct {
	Block
	offset uint64 // ram_addr_t, as `info ramblock` prints it
}

// walkRAMList follows QEMU's list of RAM blocks in its memory. QEMU may change
// the list meanwhile: whatever is read is checked, and crossCheck compares the
// outcome with the monitor's answer.
func walkRAMList(pid int) ([]walkedBlock, error) {
	head, err := ramListAddr(pid)
	if err != nil {
		return nil, err
	}
	maps, err := readMaps(pid)
	if err != nil {
		return nil, err
	}
	var buf [ramBlockBytes]byte
	if err := peek(pid, head+ramListHead, buf[:8]); err != nil {
		return nil, err
	}
	at := binary.LittleEndian.Uint64(buf[:])
	var out []walkedBlock
	for at != 0 {
		if len(out) == maxBlocks {
			return nil, fmt.Errorf("ram_list: more than %d blocks: %w", maxBlocks, ErrLayout)
		}
		if m := maps.find(at); at%8 != 0 || m == nil || at+ramBlockBytes > m.end {
			return nil, fmt.Errorf("ram_list: block %d at %#x is outside QEMU's memory: %w", len(out), at, ErrLayout)
		}
		if err := peek(pid, at, buf[:]); err != nil {
			return nil, err
		}
		b, err := decodeRAMBlock(&buf)
		if err != nil {
			return nil, fmt.Errorf("ram_list: block %d: %w", len(out), err)
		}
		out = append(out, b)
		at = binary.LittleEndian.Uint64(buf[rbNext:])
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("ram_list is empty: %w", ErrLayout)
	}
	return out, nil
}

func decodeRAMBlock(buf *[ramBlockBytes]byte) (walkedBlock, error) {
	le := binary.LittleEndian
	id := buf[rbIdstr : rbIdstr+idstrBytes]
	n := bytes.IndexByte(id, 0)
	if n < 0 {
		return walkedBlock{}, fmt.Errorf("name is not terminated: %w", ErrLayout)
	}
	for _, c := range id[:n] {
		if c <= ' ' || c > '~' {
			return walkedBlock{}, fmt.Errorf("name %q is not printable: %w", id[:n], ErrLayout)
		}
	}
	return walkedBlock{
		Block: Block{
			Name:       string(id[:n]),
			Host:       le.Uint64(buf[rbHost:]),
			Used:       le.Uint64(buf[rbUsed:]),
			Max:        le.Uint64(buf[rbMax:]),
			PageSize:   le.Uint64(buf[rbPageSize:]),
			Migratable: le.Uint32(buf[rbFlags:])&flagMigratable != 0,
		},
		offset: le.Uint64(buf[rbOffset:]),
	}, nil
}

// ramListAddr is the address of the variable ram_list in the running process:
// its address in the binary plus where the binary was loaded.
func ramListAddr(pid int) (uint64, error) {
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	f, err := elf.Open(exe)
	if err != nil {
		return 0, fmt.Errorf("read QEMU binary: %w", err)
	}
	defer f.Close()
	addr, ok := findSymbol(f, "ram_list")
	if !ok {
		return 0, fmt.Errorf("%w, and its monitor prints no host addresses (QEMU before 8.2): RAM cannot be found", ErrNoSymbol)
	}
	if f.Type != elf.ET_DYN {
		return addr, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(exe, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: exe, Err: err}
	}
	maps, err := readMaps(pid)
	if err != nil {
		return 0, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Off != 0 {
			continue
		}
		for _, m := range maps {
			if m.inode == st.Ino && m.dev == uint64(st.Dev) && m.off == 0 {
				return m.start - p.Vaddr + addr, nil
			}
		}
	}
	return 0, fmt.Errorf("QEMU binary is not mapped: %w", ErrLayout)
}

func findSymbol(f *elf.File, name string) (uint64, bool) {
	dyn, _ := f.DynamicSymbols() // none is the same as absent
	sym, _ := f.Symbols()
	for _, s := range append(dyn, sym...) {
		if s.Name == name && elf.ST_TYPE(s.Info) == elf.STT_OBJECT && s.Value != 0 {
			return s.Value, true
		}
	}
	return 0, false
}

// peek fills p from the memory of pid.
func peek(pid int, addr uint64, p []byte) error {
	local := []unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}, 0)
	if err != nil {
		return fmt.Errorf("read %d bytes at %#x of process %d: %w", len(p), addr, pid, err)
	}
	if n != len(p) {
		return fmt.Errorf("read %d bytes at %#x of process %d: got %d: %w", len(p), addr, pid, n, ErrLayout)
	}
	return nil
}
