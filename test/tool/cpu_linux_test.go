package tool

import (
	"os"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	const line = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 8 0 100 1 2"
	if ticks, err := parseStat([]byte(line)); err != nil || ticks != 100 {
		t.Errorf("%d, %v", ticks, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 2 3", strings.Replace(line, "70", "x", 1)} {
		if ticks, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %d", bad, ticks)
		}
	}
}

func TestCPUTime(t *testing.T) {
	if d, err := CPUTime(os.Getpid()); err != nil || d < 0 {
		t.Errorf("this process: %v, %v", d, err)
	}
	if d, err := CPUTime(0); err == nil {
		t.Errorf("no process: %v", d)
	}
}
