package vmstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// shapes are command lines of guests with and without many devices.
var shapes = []struct {
	name string
	args []string
}{
	{"q35", []string{"-machine", "q35", "-m", "64"}},
	{"q35-rich", []string{"-machine", "q35", "-m", "64", "-smp", "4",
		"-vga", "std", "-device", "virtio-gpu-pci",
		"-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-pci,netdev=n0",
		"-netdev", "hubport,id=n1,hubid=0", "-device", "e1000e,netdev=n1",
		"-blockdev", "null-co,node-name=d0,read-zeroes=on", "-device", "virtio-blk-pci,drive=d0",
		"-blockdev", "null-co,node-name=d1,read-zeroes=on", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d1",
		"-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd",
		"-audiodev", "none,id=a0", "-device", "ich9-intel-hda", "-device", "hda-duplex,audiodev=a0",
		"-device", "virtio-serial-pci", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci",
		"-device", "virtio-keyboard-pci", "-device", "i6300esb", "-device", "pcie-root-port,id=rp0"}},
	{"pc-rich", []string{"-machine", "pc", "-m", "64", "-smp", "2",
		"-vga", "cirrus", "-usb", "-device", "usb-mouse", "-device", "usb-hub",
		"-netdev", "hubport,id=n0,hubid=0", "-device", "rtl8139,netdev=n0",
		"-netdev", "hubport,id=n1,hubid=0", "-device", "ne2k_pci,netdev=n1",
		"-blockdev", "null-co,node-name=d0,read-zeroes=on", "-device", "ide-hd,drive=d0",
		"-blockdev", "null-co,node-name=d1,read-zeroes=on", "-device", "lsi53c895a", "-device", "scsi-hd,drive=d1",
		"-audiodev", "none,id=a0", "-device", "AC97,audiodev=a0",
		"-serial", "null", "-parallel", "null", "-device", "pvpanic"}},
}

// identity is what QEMU's own description says of a section.
type identity struct {
	Name     string
	Instance uint32 `json:"instance_id"`
}

func identities(ds Devices) (out []identity) {
	for _, s := range ds {
		out = append(out, identity{s.Name, s.Instance})
	}
	return out
}

// The oracle is QEMU: a migration stream ends with a JSON description of its
// device sections, in order.
func TestParseDevicesAgreesWithQEMU(t *testing.T) {
	needQEMU(t)
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			q := startQEMU(t, shape.args)
			blob := q.devices()
			began := time.Now()
			ds, err := ParseDevices(blob)
			took := time.Since(began)
			if err != nil {
				t.Fatal(err)
			}
			if !Complete(blob) {
				t.Error("not Complete")
			}
			same(t, encodeDevices(blob, ds), blob)

			stream, err := ReadIncoming(bytes.NewReader(q.stream()), nil)
			if err != nil {
				t.Fatal(err)
			}
			var says struct{ Devices []identity }
			if err := json.Unmarshal(stream.VMDesc, &says); err != nil {
				t.Fatal(err)
			}
			if got := identities(stream.Found); !slices.Equal(got, says.Devices) {
				t.Errorf("stream:\n%v\nQEMU says\n%v", got, says.Devices)
			}
			if got := identities(ds); !slices.Equal(got, says.Devices) {
				t.Errorf("blob:\n%v\nQEMU says\n%v", got, says.Devices)
			}
			for i, s := range ds {
				if i < len(stream.Found) && s.Len != stream.Found[i].Len {
					t.Errorf("%s: %d bytes in the blob, %d in the stream", s.Name, s.Len, stream.Found[i].Len)
				}
			}
			t.Logf("%d bytes, %d sections, parsed in %v", len(blob), len(ds), took)
		})
	}
}

// bootSector counts at 0x8000 for ever, and leaves a trail of its counter over 64 KiB
// from 0x10000 on.
func bootSector() []byte {
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, // mov eax, 0x1000
		0x8e, 0xc0, // mov es, ax
		0x31, 0xff, // xor di, di
		0x66, 0xff, 0x06, 0x00, 0x80, // loop: inc dword [0x8000]
		0x66, 0xa1, 0x00, 0x80, // mov eax, [0x8000]
		0x66, 0xab, // stosd
		0xeb, 0xf3, // jmp loop
	}
	sector := make([]byte, 1<<20) // a whole disk
	copy(sector, code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

const counterAt = 0x8000

// A guest that counts is taken apart and put together in another QEMU, through
// several parts and with junk sent first: the counter must go on there.
func TestIncomingLoadsInQEMU(t *testing.T) {
	needQEMU(t)
	for _, machine := range []string{"q35", "pc"} {
		for _, smp := range []string{"1", "3"} {
			t.Run(machine+"-smp"+smp, func(t *testing.T) { moveGuest(t, machine, smp) })
		}
	}
}

func moveGuest(t *testing.T, machine, smp string) {
	const ramBytes = 32 << 20
	disk := filepath.Join(t.TempDir(), "boot.img")
	if err := os.WriteFile(disk, bootSector(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-machine", machine, "-m", "32", "-smp", smp, "-vga", "std",
		"-drive", "if=none,id=d,format=raw,readonly=on,file=" + disk, "-device", "virtio-blk-pci,drive=d,bootindex=0"}
	source := startQEMU(t, args)
	source.do("cont", nil)
	deadline := time.Now().Add(qemuStepMax)
	for source.word(counterAt) < 100_000 {
		if time.Now().After(deadline) {
			t.Fatal("the guest does not count")
		}
	}
	source.do("stop", nil)
	counted, ram, blob := source.word(counterAt), source.ram(ramBytes), source.devices()
	guest := map[string][]byte{}
	whole := source.stream()
	layout, err := ReadIncoming(bytes.NewReader(whole), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range layout.Blocks {
		guest[b.Name] = make([]byte, b.Used)
	}
	if _, err = ReadIncoming(bytes.NewReader(whole), func(block string, off uint64, page []byte) error {
		clear(guest[block][off : off+PageSize])
		copy(guest[block][off:], page)
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	near, far := socketPair(t)
	standby := startQEMU(t, append(args, "-incoming", "defer"), far)
	far.Close()
	standby.migrationEvents()
	standby.do("migrate-incoming", map[string]any{"uri": "fd:4"})
	feed(t, near, layout, guest, blob)
	standby.await("MIGRATION", "completed")

	if got := standby.word(counterAt); got != counted {
		t.Errorf("counter %d at the standby, %d at the source", got, counted)
	}
	same(t, standby.ram(ramBytes), ram)
	standby.do("cont", nil)
	deadline = time.Now().Add(qemuStepMax)
	for standby.word(counterAt) < counted+1000 {
		if time.Now().After(deadline) {
			t.Fatalf("the counter stays at %d", counted)
		}
	}
	t.Logf("%s: %d blocks, %d bytes of device state; counter %d, then %d",
		layout.Machine, len(layout.Blocks), len(blob), counted, standby.word(counterAt))
}

// feed sends the guest in three rounds: junk everywhere, the guest, the guest's
// first pages one by one; each ends with Flush.
func feed(t *testing.T, w io.WriteCloser, layout *Stream, guest map[string][]byte, blob []byte) {
	t.Helper()
	s := NewIncoming(w, layout.Machine, layout.Blocks)
	for _, b := range layout.Blocks {
		if err := s.Pages(b.Name, 0, bytes.Repeat([]byte{0xee}, int(b.Used))); err != nil {
			t.Fatal(err)
		}
	}
	err := s.Flush()
	for _, b := range layout.Blocks {
		err = errors.Join(err, s.Pages(b.Name, 0, guest[b.Name]))
	}
	err = errors.Join(err, s.Flush())
	for _, b := range layout.Blocks {
		for off := uint64(0); off < min(b.Used, 64<<10); off += PageSize {
			err = errors.Join(err, s.Pages(b.Name, off, guest[b.Name][off:off+PageSize]))
		}
	}
	if err = errors.Join(err, s.Finish(blob), w.Close()); err != nil {
		t.Fatal(err)
	}
}
