package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/pkg/zcstream"
)

// Limits of the command stream-send.
const (
	streamMaxMiB   = 16 << 10
	streamMax      = 5 * time.Minute
	streamBytesMax = 4 << 20  // of one chunk, which is one Send
	streamPool     = 32 << 20 // of memory that is sent again and again
	// numberStep times the number of a word is the word: odd, so that no two
	// words of a stream are equal. test/stream looks for them.
	numberStep = 0x9e3779b97f4a7c15
)

// streamJob is what stream-send is asked to do:
//
//	stream-send ADDR PORT MIB plain|zerocopy|auto CHUNKBYTES [numbered]
//
// sends so much from page-aligned memory through a zcstream.Sender, a chunk at
// a time, and reports what that cost. The receiver answers with one byte when
// it has everything. With numbered, every chunk is written anew before it is
// sent, the words of the stream counted through; memory that went back to us
// too early would reach the receiver with the wrong numbers.
type streamJob struct {
	addr     string
	bytes    int64
	mode     zcstream.Mode
	chunk    int
	numbered bool
}

// streamSend obeys the words behind stream-send.
func streamSend(words []string) (map[string]any, error) {
	j, err := parseStreamJob(words)
	if err != nil {
		return nil, fmt.Errorf("stream-send: %w", err)
	}
	answer, err := j.run()
	if err != nil {
		return nil, fmt.Errorf("stream-send: %w", err)
	}
	return answer, nil
}

func parseStreamJob(words []string) (j streamJob, err error) {
	if len(words) < 5 || len(words) > 6 || len(words) == 6 && words[5] != "numbered" {
		return j, errors.New("give ADDR PORT MIB plain|zerocopy|auto CHUNKBYTES [numbered]")
	}
	j.addr, j.numbered = net.JoinHostPort(words[0], words[1]), len(words) == 6
	mib, err := number(words[2], streamMaxMiB)
	if err != nil || mib == 0 {
		return j, fmt.Errorf("%q is not a number of MiB from 1 to %d", words[2], streamMaxMiB)
	}
	j.bytes = int64(mib) << 20
	switch words[3] {
	case "plain":
		j.mode = zcstream.ModeOff
	case "zerocopy":
		j.mode = zcstream.ModeForce
	case "auto":
		j.mode = zcstream.ModeAuto
	default:
		return j, fmt.Errorf("%q is neither plain nor zerocopy nor auto", words[3])
	}
	if j.chunk, err = number(words[4], streamBytesMax); err != nil || j.chunk == 0 || j.chunk%pageBytes != 0 {
		return j, fmt.Errorf("chunks of %q bytes are not whole pages up to %d", words[4], streamBytesMax)
	}
	return j, nil
}

// run connects, sends and waits until the receiver has it all and all memory
// is back; what it cost in between is the answer.
func (j streamJob) run() (_ map[string]any, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), streamMax)
	defer cancel()
	p, err := newChunkPool(min(streamPool/j.chunk, int((j.bytes+int64(j.chunk)-1)/int64(j.chunk))), j.chunk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.release()) }() // after the stream's end, or it might never come back
	// From here to the end of the connection the receiver may look at what this
	// guest costs: what it sends is ready.
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", j.addr)
	if err != nil {
		return nil, err
	}
	opts := zcstream.Options{ZeroCopy: j.mode}
	if j.mode == zcstream.ModeForce {
		opts.MinZeroCopyBytes = 1 // whatever the size: it is what is measured
	}
	s := zcstream.NewSenderOptions(conn, opts)
	defer s.Close()
	before, err := takeUsage()
	if err != nil {
		return nil, err
	}
	if err := j.send(ctx, s, p); err != nil {
		return nil, err
	}
	if _, err := zcstream.NewReceiver(conn).ReadFull(ctx, make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("the receiver does not say that it has everything: %w", err)
	}
	received, err := takeUsage()
	if err != nil {
		return nil, err
	}
	if err := p.reclaim(ctx); err != nil {
		return nil, err
	}
	answer := received.since(before)
	stats := s.Stats()
	for key, v := range map[string]any{
		"bytes": j.bytes, "chunk_bytes": j.chunk, "sends": stats.Sends, "zero_copy_bytes": stats.ZeroCopyBytes,
		"completions": stats.Completions, "copied_completions": stats.CopiedCompletions, "no_buffers": stats.NoBuffers,
		"late_ns": clockNs(unix.CLOCK_MONOTONIC) - received.wallNs, "mode": stats.Mode, "nic": nicFeatures(),
	} {
		answer[key] = v
	}
	return answer, nil
}

func (j streamJob) send(ctx context.Context, s *zcstream.Sender, p *chunkPool) error {
	for off := int64(0); off < j.bytes; off += int64(j.chunk) {
		i, err := p.take(ctx)
		if err != nil {
			return err
		}
		b := p.chunk(i)[:min(int64(j.chunk), j.bytes-off)]
		if j.numbered {
			for at := 0; at < len(b); at += 8 {
				binary.LittleEndian.PutUint64(b[at:], (uint64(off)+uint64(at)+8)/8*numberStep)
			}
		}
		if err := s.Send(ctx, func(error) { p.free <- i }, b); err != nil {
			return err
		}
	}
	return nil
}

// chunkPool is memory in chunks, each of which is ours or the kernel's.
type chunkPool struct {
	mem   []byte
	bytes int
	free  chan int // chunks that are ours; has room for all
	taken int      // ours no more, as far as whoever sends knows
}

func newChunkPool(chunks, bytes int) (*chunkPool, error) {
	mem, err := anonymous(chunks * bytes)
	if err != nil {
		return nil, err
	}
	for at := 0; at < len(mem); at += pageBytes { // so that every page exists
		mem[at] = 1
	}
	p := &chunkPool{mem: mem, bytes: bytes, free: make(chan int, chunks)}
	for i := range chunks {
		p.free <- i
	}
	return p, nil
}

func (p *chunkPool) chunk(i int) []byte { return p.mem[i*p.bytes:][:p.bytes] }

func (p *chunkPool) take(ctx context.Context) (int, error) {
	select {
	case i := <-p.free:
		return i, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("no chunk comes back: %w", ctx.Err())
	}
}

// reclaim waits until every chunk is ours.
func (p *chunkPool) reclaim(ctx context.Context) error {
	for ; p.taken < cap(p.free); p.taken++ {
		if _, err := p.take(ctx); err != nil {
			return err
		}
	}
	return nil
}

// reclaimMax bounds how long the kernel may keep the memory of a stream that
// was closed.
const reclaimMax = 20 * time.Second

// release gives the memory back to the kernel, or nothing if some of it is
// still being sent.
func (p *chunkPool) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), reclaimMax)
	defer cancel()
	if err := p.reclaim(ctx); err != nil {
		return err
	}
	return release(p.mem)
}

// usage is what was used up so far, in nanoseconds.
type usage struct {
	wallNs               uint64
	selfUserNs, selfSyNs uint64            // of this process
	guest                map[string]uint64 // of all CPUs, by the name that /proc/stat's manual gives
}

// statTickNs is the unit of /proc/stat.
const statTickNs = 10_000_000

func takeUsage() (u usage, err error) {
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return u, err
	}
	u.selfUserNs, u.selfSyNs = uint64(self.Utime.Nano()), uint64(self.Stime.Nano())
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	words := strings.Fields(line)
	names := [...]string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"}
	if len(words) < 1+len(names) || words[0] != "cpu" {
		return u, fmt.Errorf("/proc/stat begins with %q", line)
	}
	u.guest = map[string]uint64{}
	for i, name := range names {
		ticks, err := strconv.ParseUint(words[1+i], 10, 63)
		if err != nil {
			return u, fmt.Errorf("/proc/stat: %w", err)
		}
		u.guest[name] = ticks * statTickNs
	}
	u.wallNs = clockNs(unix.CLOCK_MONOTONIC)
	return u, nil
}

// since returns what was used up since an earlier usage. Idle time is exact, as
// the kernel measures it from one interrupt to the next; the other figures are
// samples of its tick. So busy is what is left of the time.
func (u usage) since(before usage) map[string]any {
	wall := u.wallNs - before.wallNs
	a := map[string]any{"wall_ns": wall, "cpus": runtime.NumCPU(),
		"self_user_ns": u.selfUserNs - before.selfUserNs, "self_system_ns": u.selfSyNs - before.selfSyNs}
	for name, ns := range u.guest {
		a[name+"_ns"] = ns - before.guest[name]
	}
	idle := u.guest["idle"] + u.guest["iowait"] - before.guest["idle"] - before.guest["iowait"]
	a["busy_ns"] = max(0, int64(wall)*int64(runtime.NumCPU())-int64(idle))
	return a
}

// nicFeatures tells what the first network interface can do of what sending
// without copying needs: frames in pieces (sg) and checksums made by the card
// (tx_checksum); and frames larger than the network's (tso, gso).
func nicFeatures() map[string]any {
	nic, err := firstNIC()
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	f := map[string]any{"name": nic}
	for key, code := range map[string]uint32{"sg": unix.ETHTOOL_GSG, "tx_checksum": unix.ETHTOOL_GTXCSUM,
		"tso": unix.ETHTOOL_GTSO, "gso": unix.ETHTOOL_GGSO} {
		on, err := ethtool(nic, code)
		if err != nil {
			f["error"] = err.Error()
		}
		f[key] = on
	}
	return f
}

// ethtool asks whether a feature of an interface is on: struct ethtool_value
// behind an ifreq.
func ethtool(nic string, code uint32) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	value := [2]uint32{code, 0}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], nic)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
		return false, fmt.Errorf("%s: ethtool command %#x: %w", nic, code, e)
	}
	return value[1] != 0, nil
}
