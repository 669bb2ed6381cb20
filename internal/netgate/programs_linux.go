package netgate

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Names in the kernel, at most 15 bytes; gateProgram is how a gate before an
// interface is recognised.
const (
	gateProgram    = "virtft_gate"
	strayProgram   = "virtft_stray"
	releaseProgram = "virtft_release"
	muteProgram    = "virtft_mute"
)

const (
	// markCaptured is on a frame from the guest's tap to the capture tap, and
	// markRelease on one that goes back. Neither is seen outside.
	markCaptured = 0x66746331
	markRelease  = 0x66746332

	skbMark         = 8 // offset of mark in struct __sk_buff
	redirectIngress = 1 // BPF_F_INGRESS

	// enum tcx_action_base of linux/bpf.h
	tcxNext = -1
	tcxDrop = 2
)

// Registers that hold the same in all programs; they survive calls.
const (
	regCtx   = asm.R6
	regState = asm.R7
)

// programs are those of one interface; they share its map.
type programs struct {
	gate    *ebpf.Program // guest's tap, ingress
	stray   *ebpf.Program // capture tap, egress
	release *ebpf.Program // capture tap, ingress
	mute    *ebpf.Program // guest's tap, egress
}

func loadPrograms(s *state) (*programs, error) {
	p := &programs{}
	for _, load := range [...]struct {
		to     **ebpf.Program
		name   string
		attach ebpf.AttachType
		code   asm.Instructions
	}{
		{&p.gate, gateProgram, ebpf.AttachTCXIngress, gateCode(s.m.FD())},
		{&p.stray, strayProgram, ebpf.AttachTCXEgress, strayCode(s.m.FD())},
		{&p.release, releaseProgram, ebpf.AttachTCXIngress, releaseCode(s.m.FD())},
		{&p.mute, muteProgram, ebpf.AttachTCXEgress, muteCode(s.m.FD())},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: load.name, Type: ebpf.SchedCLS, AttachType: load.attach, Instructions: load.code, License: "Apache-2.0",
		})
		if err != nil {
			p.close()
			return nil, fmt.Errorf("loading %s: %w", load.name, err)
		}
		*load.to = prog
	}
	return p, nil
}

func (p *programs) close() error {
	var errs []error
	for _, prog := range []*ebpf.Program{p.gate, p.stray, p.release, p.mute} {
		if prog != nil {
			errs = append(errs, prog.Close())
		}
	}
	return errors.Join(errs...)
}

func begin(mapFD int) asm.Instructions {
	return asm.Instructions{asm.Mov.Reg(regCtx, asm.R1), asm.LoadMapValue(regState, mapFD, 0)}
}

func count(word int16) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(regState, asm.R1, asm.DWord, word)}
}

func mark(value int32) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R1, value), asm.StoreMem(regCtx, skbMark, asm.R1, asm.Word)}
}

// finish counts and ends with a verdict. It is where a jump to label goes.
func finish(label string, word int16, verdict int32) asm.Instructions {
	c := count(word)
	c[0] = c[0].WithSymbol(label)
	return append(c, asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

// lease goes on if the lease holds, else to the label "late". The clock stands
// behind whatever may have frozen the thread that wrote the frame.
func lease() asm.Instructions {
	return asm.Instructions{
		asm.FnKtimeGetBootNs.Call(),
		asm.LoadMem(asm.R1, regState, wordLease, asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, "late"),
	}
}

// redirect sends the frame to the interface in word. If that is gone the
// kernel drops the frame: the gate fails closed.
func redirect(word int16, flags int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R1, regState, word, asm.DWord),
		asm.Mov.Imm(asm.R2, flags),
		asm.FnRedirect.Call(),
		asm.Return(),
	}
}

func program(parts ...asm.Instructions) asm.Instructions {
	var all asm.Instructions
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// gateCode is the gate itself. The lease of a released frame is checked here a
// second time, because between the two programs it waits in a CPU's backlog,
// in which a host may freeze.
func gateCode(mapFD int) asm.Instructions {
	released := mark(0)
	released[0] = released[0].WithSymbol("released")
	return program(begin(mapFD),
		asm.Instructions{
			asm.LoadMem(asm.R1, regState, wordMode, asm.DWord),
			asm.LoadMem(asm.R2, regCtx, skbMark, asm.Word),
			asm.JEq.Imm(asm.R2, markRelease, "released"),
			asm.JEq.Imm(asm.R1, int32(Passing), "pass"),
			asm.JNE.Imm(asm.R1, int32(Holding), "sealed"),
		},
		count(wordCaptured), mark(markCaptured), redirect(wordCapture, 0),
		released,
		asm.Instructions{
			asm.LoadMem(asm.R1, regState, wordMode, asm.DWord),
			asm.JEq.Imm(asm.R1, int32(Sealed), "sealed"),
		},
		lease(), count(wordReleased),
		asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()},
		finish("pass", wordPassed, tcxNext),
		finish("sealed", wordDroppedSealed, tcxDrop),
		finish("late", wordDroppedLease, tcxDrop),
	)
}

// strayCode lets nothing into the capture tap that the guest did not send: a
// daemon of the host that speaks on every interface must not speak for the
// guest.
func strayCode(mapFD int) asm.Instructions {
	return program(begin(mapFD),
		asm.Instructions{
			asm.LoadMem(asm.R1, regCtx, skbMark, asm.Word),
			asm.JNE.Imm(asm.R1, markCaptured, "stray"),
		},
		mark(0),
		asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()},
		finish("stray", wordDroppedStray, tcxDrop),
	)
}

// releaseCode sends what we write to the capture tap into the guest's tap, as
// if the guest had just sent it.
func releaseCode(mapFD int) asm.Instructions {
	return program(begin(mapFD), lease(), mark(markRelease), redirect(wordGuest, redirectIngress),
		finish("late", wordDroppedLease, tcxDrop))
}

// muteCode keeps everything from a guest that does not run yet: its tap would
// fill with what is old news when it does.
func muteCode(mapFD int) asm.Instructions {
	return program(begin(mapFD),
		asm.Instructions{
			asm.LoadMem(asm.R1, regState, wordMuted, asm.DWord),
			asm.Mov.Imm(asm.R0, tcxNext),
			asm.JEq.Imm(asm.R1, 0, "heard"),
			asm.Mov.Imm(asm.R0, tcxDrop),
			asm.Return().WithSymbol("heard"),
		})
}
