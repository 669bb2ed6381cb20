package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a lab.
type Options struct {
	// Dir holds the hosts' disks and logs and is kept; when it is empty the
	// lab makes one in the system's temporary directory and removes it. Both
	// hosts must see it at its own path, so it may not lie below /run, /etc,
	// /var/lib, /var/log or /var/cache.
	Dir string
	Log *slog.Logger // nil: discard
	// Migration makes each libvirtd take calls, without asking who is there,
	// from the other host over the replication network, as
	// "virsh migrate DOMAIN qemu+tcp://host-b/system" needs it.
	Migration bool
	// RootA and RootB are directories with another release of a distribution: that
	// host's libvirtd and QEMU, and all other programs and libraries that it runs,
	// come from there [the machine's own]. They are not written to, but for
	// what libvirtd found out about its QEMU.
	RootA, RootB string
}

// Lab is two hosts and the switch between them.
type Lab struct {
	A, B *Host
	Dir  string

	log     *slog.Logger
	listen  bool // libvirtds do, see Options.Migration
	roots   [2]string
	net     *network
	spawn   *spawner
	ownDir  bool
	etcd    etcd
	lock    *os.File // flock on the directory says that its lab lives
	closing sync.Once
}

// side is what differs between the hosts.
type side struct{ name, repl, client, arb, uuid, root string }

const (
	dirPattern = "virt-ft-lab-"
	// sweepAgeMin is how old a directory must be to pass for abandoned.
	sweepAgeMin = time.Minute
)

// New builds the lab and boots both hosts, libvirtd included. A MissingError
// says what the machine lacks. The caller must Close it; if it cannot, because
// it is killed, the kernel does, but for files.
func New(ctx context.Context, o Options) (*Lab, error) {
	if err := checkMachine(); err != nil {
		return nil, err
	}
	l := &Lab{log: o.Log, listen: o.Migration, roots: [2]string{o.RootA, o.RootB}}
	for _, root := range l.roots {
		if err := checkRoot(root); err != nil {
			return nil, err
		}
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.openDir(o.Dir); err != nil {
		return nil, err
	}
	l.spawn = newSpawner()
	if err := l.build(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) (err error) {
	l.A = l.newHost(side{"host-a", ReplicationA, "10.78.0.2", "10.79.0.2", "f7f7f7f7-0000-4000-8000-00000000000a", l.roots[0]})
	l.B = l.newHost(side{"host-b", ReplicationB, "10.78.0.3", "10.79.0.3", "f7f7f7f7-0000-4000-8000-00000000000b", l.roots[1]})
	if l.net, err = newNetwork(); err != nil {
		return err
	}
	booted := make(chan error, 2)
	for _, h := range l.Hosts() {
		if err := os.MkdirAll(filepath.Join(h.Dir, "disk"), 0o755); err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		h.lendCapabilities()
		go func() { booted <- h.PowerOn(ctx) }()
	}
	return errors.Join(<-booted, <-booted)
}

// Hosts returns both hosts.
func (l *Lab) Hosts() []*Host { return []*Host{l.A, l.B} }

// Peer returns the other host.
func (l *Lab) Peer(h *Host) *Host {
	if h == l.A {
		return l.B
	}
	return l.A
}

func (l *Lab) newHost(s side) *Host {
	h := &Host{Name: s.name, Dir: filepath.Join(l.Dir, s.name), Repl: s.repl, lab: l, side: s}
	h.Libvirtd = h.newLibvirtd()
	return h
}

// checkMachine names the first thing that this machine lacks.
func checkMachine() error {
	if os.Geteuid() != 0 {
		return &MissingError{What: "root", Remedy: "namespaces, bridges and libvirtd need it"}
	}
	for _, path := range []string{qemuPath, libvirtdPath} {
		if _, err := os.Stat(path); err != nil {
			return &MissingError{What: path, Remedy: "run make deps"}
		}
	}
	if _, err := exec.LookPath("virsh"); err != nil {
		return &MissingError{What: "virsh", Remedy: "run make deps"}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return &MissingError{What: "/dev/net/tun", Remedy: "modprobe tun"}
	}
	return nil
}

func (l *Lab) openDir(dir string) (err error) {
	if dir == "" {
		sweep(os.TempDir())
		dir, err = os.MkdirTemp("", dirPattern)
		l.ownDir = true
	} else {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, hidden := range []string{"/run", "/etc", "/var/lib", "/var/log", "/var/cache"} {
		if strings.HasPrefix(dir+"/", hidden+"/") {
			return fmt.Errorf("lab: %s lies in %s, which each host has for itself", dir, hidden)
		}
	}
	l.Dir = dir
	if l.lock, err = os.Open(dir); err == nil {
		err = unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = os.MkdirAll(l.sharedDir(), 0o755)
	}
	if err != nil {
		return fmt.Errorf("lab: directory %s: %w", dir, err)
	}
	return nil
}

// sweep removes directories of labs that were killed before they could.
func sweep(tmp string) {
	left, _ := filepath.Glob(filepath.Join(tmp, dirPattern+"*"))
	for _, dir := range left {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err != nil || time.Since(info.ModTime()) < sweepAgeMin {
			f.Close() // perhaps just made, and not locked yet
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // best effort; the next lab tries again
		}
		f.Close()
	}
}

func (l *Lab) sharedDir() string { return filepath.Join(l.Dir, "shared") }

// Close ends both hosts as by power loss and removes what the lab made. It may
// be called more than once.
func (l *Lab) Close() {
	l.closing.Do(func() {
		for _, h := range l.Hosts() {
			if h != nil {
				h.PowerOff()
				h.keepCapabilities()
			}
		}
		l.endEtcd()
		if l.net != nil {
			l.net.close()
		}
		l.spawn.close()
		if l.ownDir {
			if err := os.RemoveAll(l.Dir); err != nil {
				l.log.Warn("lab directory stays", "dir", l.Dir, "error", err)
			}
		}
		l.lock.Close()
	})
}

// CutReplication makes frames between the hosts vanish, both ways; the links
// stay up.
func (l *Lab) CutReplication() error { return l.cutReplication(true) }

// HealReplication undoes CutReplication, DeafenReplication and SlowReplication.
func (l *Lab) HealReplication() error {
	return errors.Join(l.cutReplication(false), l.net.setShape("r-"+l.A.Name, nil), l.net.setShape("r-"+l.B.Name, nil))
}

// SlowReplication lets no more than that many bytes per second through to h.
func (l *Lab) SlowReplication(h *Host, rate uint64) error {
	return l.net.setShape("r-"+h.Name, slow(rate))
}

// DeafenReplication makes frames of the other host to h vanish, as a broken
// fibre of a pair does; what h sends still arrives.
func (l *Lab) DeafenReplication(h *Host) error { return l.net.setShape("r-"+h.Name, deaf()) }

func (l *Lab) cutReplication(cut bool) error {
	return errors.Join(l.net.setCut("r-"+l.A.Name, replBridge, cut), l.net.setCut("r-"+l.B.Name, replBridge, cut))
}

// CutClient takes the host off the client network.
func (h *Host) CutClient() error { return h.lab.net.setCut("c-"+h.Name, clientBridge, true) }

// HealClient undoes CutClient.
func (h *Host) HealClient() error { return h.lab.net.setCut("c-"+h.Name, clientBridge, false) }

// InSwitch runs f on a thread that is in the switch's network namespace, where
// clients are. Sockets that f opens stay there; goroutines it starts do not.
func (l *Lab) InSwitch(f func() error) error { return onThread(enterNet(l.net.ns), f) }

// Dial connects, as a client outside the hosts, to a numeric address.
func (l *Lab) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = l.InSwitch(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
