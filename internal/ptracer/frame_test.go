package ptracer

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestResumePoint(t *testing.T) {
	const rip, nr = 0x1000, 7
	negative := func(n int64) uint64 { return uint64(-n) }
	for _, c := range []struct {
		name             string
		origRax, rax     uint64
		wantRip, wantRax uint64
	}{
		{"user code", ^uint64(0), 5, rip, 5},
		{"user code that looks like a restart", ^uint64(0), negative(512), rip, negative(512)},
		{"ERESTARTSYS", nr, negative(512), rip - 2, nr},
		{"ERESTARTNOINTR", nr, negative(513), rip - 2, nr},
		{"ERESTARTNOHAND", nr, negative(514), rip - 2, nr},
		{"ERESTART_RESTARTBLOCK", nr, negative(516), rip, negative(4)},
		{"system call that ended", nr, 42, rip, 42},
		{"system call that failed", nr, negative(4), rip, negative(4)},
	} {
		gotRip, gotRax := resumePoint(&unix.PtraceRegs{Rip: rip, Orig_rax: c.origRax, Rax: c.rax})
		if gotRip != c.wantRip || gotRax != c.wantRax {
			t.Errorf("%s: rip %#x rax %d, want %#x %d", c.name, gotRip, int64(gotRax), c.wantRip, int64(c.wantRax))
		}
	}
}

func xstateImage(size int, features, inUse uint64) []byte {
	x := make([]byte, size)
	binary.LittleEndian.PutUint64(x[xsaveSwReserved:], features)
	binary.LittleEndian.PutUint64(x[xsaveHeader:], inUse)
	return x
}

func TestFrameLayout(t *testing.T) {
	for rsp := uint64(0x7ffd00001000); rsp < 0x7ffd00001080; rsp++ {
		f, err := buildFrame(&unix.PtraceRegs{Rsp: rsp}, xstateImage(576, 3, 3), 0x55, 0x1234)
		if err != nil {
			t.Fatal(err)
		}
		le := binary.LittleEndian
		fpstate := le.Uint64(f.data[frameUcontext+ucSigcontext+scFpstate:])
		if fpstate%64 != 0 || f.addr%16 != 8 {
			t.Fatalf("rsp %#x: frame at %#x, xstate at %#x", rsp, f.addr, fpstate)
		}
		if end := f.addr + uint64(len(f.data)); end > rsp-redZoneBytes {
			t.Fatalf("rsp %#x: frame ends at %#x, in the red zone", rsp, end)
		}
		if le.Uint64(f.data) != 0x1234 || le.Uint64(f.data[frameUcontext+ucSigmask:]) != 0x55 {
			t.Fatal("restorer or mask misplaced")
		}
		if x := f.data[fpstate-f.addr:]; le.Uint32(x[464:]) != fpXstateMagic1 || le.Uint32(x[576:]) != fpXstateMagic2 {
			t.Fatal("magic numbers misplaced")
		}
	}
}

func TestXstateExtent(t *testing.T) {
	for _, c := range []struct {
		name         string
		image        []byte
		wantFeatures uint64
		wantSize     int // 0: error
	}{
		{"SSE only", xstateImage(576, 3, 3), 3, 576},
		{"tile data unused", xstateImage(11008, 3|xfeatureTileData, 3), 3, 576},
		{"in use but not there", xstateImage(576, 3, 7), 0, 0},
		{"no header", make([]byte, 512), 0, 0},
		{"empty", nil, 0, 0},
	} {
		features, size, err := xstateExtent(c.image)
		if (err != nil) != (c.wantSize == 0) || features != c.wantFeatures && err == nil || size != c.wantSize {
			t.Errorf("%s: features %#x, %d bytes, %v", c.name, features, size, err)
		}
	}
}

func TestNoStack(t *testing.T) {
	if _, err := buildFrame(&unix.PtraceRegs{Rsp: 500}, xstateImage(576, 3, 3), 0, 0); err == nil {
		t.Error("a frame below address 0")
	}
}

func TestParseStatus(t *testing.T) {
	for text, want := range map[string]error{
		"State:\tS (sleeping)\nTracerPid:\t0\nx86_Thread_features:\t\n":            nil,
		"State:\tS (sleeping)\nTracerPid:\t0\nx86_Thread_features:\tshstk wrss \n": ErrShadowStack,
		"State:\tt (tracing stop)\nTracerPid:\t12\n":                               ErrTraced,
		"State:\tZ (zombie)\nTracerPid:\t0\n":                                      ErrGone,
	} {
		if err := parseStatus(text).refusal(1); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
}

func TestParseMaps(t *testing.T) {
	maps := parseMaps("55d0c0000000-55d0c0001000 r-xp 00000000 fe:00 12   /opt/my app/qemu\n" +
		"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n" +
		"7f1000000000-7f1000001000 r-xp 00001000 fe:00 13   /lib/libc.so.6\nrubbish\n")
	if len(maps) != 3 || maps[0].path != "/opt/my app/qemu" || maps[1].path != "" {
		t.Fatalf("%+v", maps)
	}
	if code := codeMappings(maps); len(code) != 2 || code[0].path != "/lib/libc.so.6" {
		t.Errorf("libc is not first: %+v", code)
	}
}

func TestArgs(t *testing.T) {
	want := Call{Nr: 323, Args: [6]uint64{1, ^uint64(0), 3, 4, 5, 6}}
	pid, got, err := decodeArgs(encodeArgs(77, want))
	if err != nil || pid != 77 || got != want {
		t.Errorf("%d %+v %v", pid, got, err)
	}
	for _, args := range [][]string{nil, {"1"}, {"1", "2", "3", "4", "5", "6", "7", "x"}} {
		if _, _, err := decodeArgs(args); err == nil {
			t.Errorf("%q accepted", args)
		}
	}
}

func TestReportRoundTrip(t *testing.T) {
	for _, want := range append(failures(), unix.EIO) {
		got := reportOf(&Error{Op: "attach", PID: 1, Err: want, Detail: "so"}).err(1, Call{})
		if !errors.Is(got, want) {
			t.Errorf("%v became %v", want, got)
		}
	}
}

func TestFindGadgets(t *testing.T) {
	tg := startTarget(t, "poll")
	g, err := findGadgets(tg.pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.verify(tg.pid); err != nil {
		t.Error(err)
	}
	if (gadgets{call: g.call + 1, restore: g.restore}).verify(tg.pid) == nil {
		t.Error("the wrong instructions pass")
	}
}
