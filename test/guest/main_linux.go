// Command guest is the only process of the lab's guest: the init of an
// initramfs. It keeps a working set of memory under verification, ticks to an
// observer over UDP and to a page that can be read from outside the guest, and
// obeys commands on port 7 (TCP and UDP).
//
//	status        everything it knows about itself
//	req N         answers a numbered request and remembers the highest
//	spin MS       reads the clock in a loop and reports the longest gap
//	dirty N       rewrites N pages a second from now on
//	verify N      checks all of its memory N times without waiting
//	tick MS       tells the observer a tick every MS milliseconds from now on, 0: never
//	work ...      does something that can be measured from outside; see worker
//	disk ...      see below
//	poweroff | reboot | panic
//
// On a disk it writes records, or files if the disk has a file system, and
// remembers what must be there. A disk's name may stand before these commands,
// which otherwise are about all disks:
//
//	disk status               what is known about them
//	disk load RATE [BYTES]    writes so often a second from now on
//	disk quiet                ends that; answers when nothing is under way any more
//	disk check                reads all and counts what is missing, foreign or torn
//	disk trim | zero [MIB N]  discards, or zeroes, N MiB from there on, or 1 MiB anywhere
//	disk bench SECONDS        measures writes: 4 KiB for so long, then 1 MiB
//	disk accept [off]         port 8 answers when a record of the request is durable
//
// Every answer is one line of JSON. See config for the kernel command line.
//
// On port 8 it serves numbered requests in binary, see guestapi.Request: state
// changes first, in memory that is under verification too, then comes the answer.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// guest ties the parts together; its fields are set before anything runs.
type guest struct {
	bootID  guestapi.BootID
	beacon  *beacon
	work    *workload
	accept  *acceptance
	disks   disks
	counter atomic.Uint64
	gpa     atomic.Uint64
	tellNs  atomic.Int64 // between ticks to the observer; 0: none are sent
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of a virtual machine, not for you to run")
		os.Exit(2)
	}
	if err := run(); err != nil {
		say("failed: %v", err)
	}
	select {} // process 1 must not exit
}

func say(format string, args ...any) { fmt.Printf("VIRTFT-GUEST "+format+"\n", args...) }

func run() error {
	// The heap is tiny and the working set lies outside it: collecting seldom
	// keeps the collector's own writes out of the dirty rate.
	debug.SetGCPercent(400)
	if err := mountAll(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go reap(signals)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	cfg, err := parseConfig(string(cmdline))
	if err != nil {
		say("command line: %v", err)
	}
	loadModules(say)
	g, err := newGuest(cfg)
	if err != nil {
		return err
	}
	g.disks.open(cfg, g.bootID) // before any request comes
	conn, err := g.network(cfg)
	if err != nil {
		say("network: %v (console only)", err)
	}
	g.work.dirtyPerSec.Store(int64(cfg.dirtyPerSec))
	g.work.run(cfg.verifyPerSec)
	go pace(g.accept.ledger.verifyPerSec, g.accept.ledger.verify)
	g.tellNs.Store(int64(cfg.tick))
	say("%s", ready(g))
	g.run(cfg.tick, conn)
	return nil
}

func ready(g *guest) string {
	line := guestapi.Ready{BeaconGPA: g.gpa.Load(), BootID: g.bootID, Pid: os.Getpid(),
		Disks: len(g.disks.records) + len(g.disks.files)}.Line()
	return line[len("VIRTFT-GUEST "):]
}

func newGuest(cfg config) (*guest, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	g := &guest{}
	if g.bootID, err = guestapi.ParseBootID(string(text)); err != nil {
		return nil, err
	}
	if g.beacon, err = newBeacon(g.bootID); err != nil {
		return nil, err
	}
	if g.work, err = newWorkload(cfg.memMiB << 20 / pageBytes); err != nil {
		return nil, err
	}
	if g.accept, err = newAcceptance(g.bootID, g.work.damaged); err != nil {
		return nil, err
	}
	g.disks.accept = g.accept
	g.gpa.Store(g.beacon.gpa())
	return g, nil
}

// network brings up the first interface and the services. The returned
// connection is where ticks go; it is nil when nobody asked for them.
func (g *guest) network(cfg config) (net.Conn, error) {
	if !cfg.ip.IsValid() {
		return nil, fmt.Errorf("no ft.ip given")
	}
	nic, err := firstNIC()
	if err != nil {
		return nil, err
	}
	if err := configure(nic, cfg.ip); err != nil {
		return nil, err
	}
	if err := (&commands{guest: g}).serve(); err != nil {
		return nil, err
	}
	if err := g.accept.serve(); err != nil {
		return nil, err
	}
	if !cfg.observer.IsValid() {
		return nil, nil
	}
	return net.Dial("udp4", cfg.observer.String())
}

// tick says where the guest is now.
func (g *guest) tick() guestapi.Tick {
	return guestapi.Tick{
		BootID: g.bootID, Counter: g.counter.Load(), MonotonicNs: clockNs(unix.CLOCK_MONOTONIC),
		UptimeNs: clockNs(unix.CLOCK_BOOTTIME), Pid: uint64(os.Getpid()), MemErrors: g.work.errors.Load(),
		Passes: g.work.passes.Load(), Writes: g.work.writes.Load(), BeaconGPA: g.gpa.Load(),
	}
}

// quietTick is how often the beacon page changes when ft.tick_ms is 0.
const quietTick = 100 * time.Millisecond

// run ticks for ever: first into the beacon page, then to the observer, so
// that nothing was told to the outside that memory does not know. The observer
// may be told of fewer.
func (g *guest) run(every time.Duration, conn net.Conn) {
	buf := make([]byte, 0, guestapi.TickBytes)
	if every == 0 {
		every = quietTick
	}
	spoken, told, count := time.Now(), time.Now(), uint64(0)
	for now := range time.Tick(every) {
		g.counter.Add(1)
		t := g.tick()
		g.beacon.publish(t)
		tell := time.Duration(g.tellNs.Load())
		if conn != nil && tell > 0 && now.Sub(told) >= tell-every/2 {
			told, t.Told = now, count
			if _, err := conn.Write(t.Append(buf)); err == nil { // an unreachable observer is not our problem
				count++
			}
		}
		if time.Since(spoken) >= time.Second {
			spoken = time.Now()
			g.gpa.Store(g.beacon.gpa())
			say("tick counter=%d uptime_ms=%d beacon_gpa=%#x mem_errors=%d passes=%d writes=%d",
				t.Counter, t.UptimeNs/1e6, t.BeaconGPA, t.MemErrors, t.Passes, t.Writes)
		}
	}
}
