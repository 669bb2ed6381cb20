package hostmem

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMeminfo(t *testing.T) {
	m, err := parseMeminfo([]byte("MemTotal:       24684092 kB\nMemFree:        1 kB\nMemAvailable:   24063280 kB\nBuffers: x kB\n"))
	if err != nil || m.TotalBytes != 24684092<<10 || m.AvailableBytes != 24063280<<10 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "MemTotal: 5 kB\n", "MemTotal: 5 kB\nMemAvailable: -1 kB\n", "MemTotal: 5 kB\nMemAvailable: 99999999999999999999 kB\n", "MemTotal:\nMemAvailable: 1"} {
		if m, err := parseMeminfo([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, m)
		}
	}
}

// TestThisHost reads the machine it runs on.
func TestThisHost(t *testing.T) {
	m, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if m.TotalBytes == 0 || m.AvailableBytes == 0 || m.AvailableBytes > m.TotalBytes {
		t.Errorf("%d of %d bytes are available", m.AvailableBytes, m.TotalBytes)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if want := info.Totalram * uint64(info.Unit); m.TotalBytes != want {
		t.Errorf("%d bytes in all, the kernel says %d", m.TotalBytes, want)
	}
	t.Logf("%+v", m)
}

func TestPools(t *testing.T) {
	dir := t.TempDir()
	write := func(pool string, nr, free, reserved int) {
		t.Helper()
		for name, n := range map[string]int{"nr_hugepages": nr, "free_hugepages": free, "resv_hugepages": reserved} {
			put(t, filepath.Join(dir, pool, name), fmt.Sprintln(n))
		}
	}
	write("hugepages-2048kB", 100, 60, 10)
	write("hugepages-1048576kB", 0, 0, 0)
	put(t, filepath.Join(dir, "something", "else"), "")
	got, err := readPools(dir)
	want := []Pool{{PageBytes: gib}, {PageBytes: 2 * mib, TotalBytes: 200 * mib, FreeBytes: 100 * mib}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	put(t, filepath.Join(dir, "hugepages-64kB", "nr_hugepages"), "many\n")
	if got, err := readPools(dir); err == nil {
		t.Errorf("nonsense is %+v", got)
	}
	if got, err := readPools(filepath.Join(dir, "none")); got != nil || err != nil {
		t.Errorf("a kernel without huge pages: %v, %v", got, err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestGroups reads trees as the kernel shows them, made of files.
func TestGroups(t *testing.T) {
	two, one := t.TempDir(), t.TempDir()
	put(t, two+"/memory.current", "1\n") // the root has no limit
	put(t, two+"/system.slice/memory.max", "max\n")
	put(t, two+"/system.slice/virt-ft.service/memory.max", fmt.Sprintln(2*gib))
	put(t, two+"/system.slice/virt-ft.service/memory.current", fmt.Sprintln(gib))
	put(t, two+"/system.slice/virt-ft.service/memory.stat", "anon 5\ninactive_file 1048576\nactive_file 7\n")
	put(t, two+"/machine.slice/memory.max", fmt.Sprintln(3*gib))
	put(t, two+"/machine.slice/memory.current", "0\n")
	put(t, two+"/machine.slice/memory.stat", "")
	put(t, one+"/shown/memory.limit_in_bytes", fmt.Sprintln(gib))
	put(t, one+"/shown/memory.usage_in_bytes", fmt.Sprintln(mib))
	put(t, one+"/shown/memory.stat", "inactive_file 77\ntotal_inactive_file 1000\n")
	put(t, one+"/memory.limit_in_bytes", "9223372036854771712\n") // none
	put(t, one+"/memory.usage_in_bytes", "5\n")
	put(t, one+"/memory.stat", "")
	mounts := fmt.Sprintf(`30 23 0:26 / %s rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
31 23 0:27 /deep %s rw,nosuid shared:9 - cgroup cgroup rw,memory
32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
33 23 0:29 / /proc rw - proc proc rw
broken
`, two, one)
	cgroup := []byte("5:cpu,cpuacct:/elsewhere\n4:memory:/deep/shown\n0::/system.slice/virt-ft.service\n")
	var got []Group
	for _, h := range hierarchies([]byte(mounts)) {
		got = h.limits(got, h.pathOf(cgroup), 8*gib)
		got = h.limits(got, machineSlice, 8*gib)
	}
	want := []Group{
		{two + "/system.slice/virt-ft.service", 2 * gib, gib - mib},
		{two + "/machine.slice", 3 * gib, 0},
		{one + "/shown", gib, mib - 1000},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// limitedEnv makes TestInALimitedGroup's child say what it sees.
const limitedEnv = "VIRT_FT_HOSTMEM_CHILD"

// TestInALimitedGroup puts a process into a real control group with a limit.
func TestInALimitedGroup(t *testing.T) {
	const limit = 300 * mib
	if os.Getenv(limitedEnv) != "" {
		m, err := Read()
		if err != nil {
			t.Fatal(err)
		}
		room, group := report(t, New(Options{FloorBytes: 1, Read: fixed(m)})).RoomBytes()
		fmt.Printf("room %d in %q\n", room, group)
		return
	}
	dir, ok := makeGroup(t, limit)
	if !ok {
		t.Skip("no hierarchy of control groups here takes a limit of memory")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0/cgroup.procs" && exec "$1" -test.run '^TestInALimitedGroup$'`, dir, exe)
	cmd.Env = append(os.Environ(), limitedEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, rest, found := strings.Cut(string(out), "room ")
	number, rest, _ := strings.Cut(rest, " in ")
	room, err := strconv.ParseUint(number, 10, 64)
	if err != nil || !found {
		t.Fatalf("%s: %v", out, err)
	}
	if room == 0 || room >= limit || !strings.Contains(rest, filepath.Base(dir)) {
		t.Errorf("in a group of %d bytes there is room for %d, because of %s", limit, room, rest)
	}
	t.Logf("room for %d of %d MiB", room/mib, limit/mib)
}

// makeGroup makes a control group below this process's own, or at the top where
// version 2 does not let it be there.
func makeGroup(t *testing.T, limit uint64) (dir string, ok bool) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies(mounts) {
		name := "memory.max"
		if h.v1 {
			name = "memory.limit_in_bytes"
		}
		dir := filepath.Join(h.mount, fmt.Sprintf("virt-ft-test-%d", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		if os.WriteFile(filepath.Join(dir, name), []byte(strconv.FormatUint(limit, 10)), 0) == nil {
			return dir, true
		}
	}
	return "", false
}

// A memfd's memory is resident page by page, and not where it has holes.
func TestResidentBytes(t *testing.T) {
	fd, err := unix.MemfdCreate("hostmem-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	resident := func() uint64 {
		n, err := ResidentBytes(f)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := f.Truncate(64 * mib); err != nil {
		t.Fatal(err)
	}
	if n := resident(); n != 0 {
		t.Errorf("%d bytes of an empty file", n)
	}
	if _, err := f.WriteAt(make([]byte, 3*mib), 8*mib); err != nil {
		t.Fatal(err)
	}
	if n := resident(); n < 3*mib || n > 6*mib { // huge pages may round
		t.Errorf("%d bytes of 3 MiB", n)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 64*mib); err != nil {
		t.Fatal(err)
	}
	if n := resident(); n != 0 {
		t.Errorf("%d bytes of a hole", n)
	}
}
