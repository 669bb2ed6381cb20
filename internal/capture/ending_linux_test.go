package capture

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const endingEnv = "CAPTURE_ENDING_HELPER"

// TestEnding looks at a process that lives, at one that was killed and takes its
// time over its memory, and at what is left of it.
func TestEnding(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), endingEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if Ending(pid) {
		t.Error("a process that lives is ending")
	}
	// Stopped, and so it stays until the signal has it.
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	gone := func() bool {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if err != unix.EINTR {
				return n == 1
			}
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for end := time.Now().Add(time.Minute); !gone() && time.Now().Before(end); {
		if Ending(pid) {
			seen++
		} else if seen > 0 {
			t.Fatal("an ending process lives again")
		}
	}
	if seen == 0 {
		t.Error("it was not seen to be ending")
	}
	if !Ending(pid) {
		t.Error("a zombie is not ending")
	}
	_ = cmd.Wait() // killed
	if !Ending(pid) {
		t.Error("a process that is gone is not ending")
	}
}

// endingHelper is the process that TestEnding kills.
func endingHelper() {
	memory := make([]byte, 1<<30) // takes the kernel some tens of milliseconds to give back
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	_, _ = os.Stdout.Write([]byte{'y'})
	select {}
}

func TestEndingOf(t *testing.T) {
	stat := func(name, state, flags string) []byte {
		return []byte("12 (" + name + ") " + state + " 1 12 12 0 -1 " + flags + " 0 0\n")
	}
	status := func(pending, shared, dumping string) []byte {
		return []byte("Name:\tqemu\nCoreDumping:\t" + dumping + "\nSigPnd:\t" + pending + "\nShdPnd:\t" + shared + "\n")
	}
	none, kill, term := strings.Repeat("0", 16), "0000000000000100", "0000000000004000"
	for _, c := range []struct {
		name         string
		stat, status []byte
		want         bool
	}{
		{"alive", stat("qemu", "S", "4194560"), status(none, none, "0"), false},
		{"asked to end", stat("qemu", "S", "4194560"), status(none, term, "0"), false},
		{"a name that looks like an end", stat("a) Z 1 1 1 1 1 4", "S", "4194560"), status(none, none, "0"), false},
		{"exiting", stat("qemu", "R", "4194564"), status(none, none, "0"), true},
		{"zombie", stat("qemu", "Z", "4194560"), status(none, none, "0"), true},
		{"killed", stat("qemu", "D", "4194560"), status(kill, none, "0"), true},
		{"killed, all of it", stat("qemu", "D", "4194560"), status(none, kill, "0"), true},
		{"dumping core", stat("qemu", "D", "4194560"), status(none, none, "1"), true},
		{"nothing", nil, nil, false},
	} {
		if got := endingOf(c.stat, c.status); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
