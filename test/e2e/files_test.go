package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// openFiles lists the descriptors of a process as "number target" lines.
func openFiles(t *testing.T, pid int) string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, n := range names {
		to, err := os.Readlink(dir + "/" + n.Name())
		if err != nil {
			continue // closed meanwhile
		}
		lines = append(lines, n.Name()+" "+to)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
