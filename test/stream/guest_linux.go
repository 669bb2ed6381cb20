package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// sendMax bounds one order to the guest, bootMax its start.
const (
	sendMax = 2 * time.Minute
	bootMax = 3 * time.Minute
)

// quiet makes a guest in which nothing runs but what is measured, and a sign of
// life now and then.
const quiet = "ft.mem_mb=1 ft.verify_pages_s=0 ft.dirty_pages_s=0 ft.tick_ms=100"

// nic is what the guest says of its network card.
type nic struct {
	Name     string `json:"name"`
	SG       bool   `json:"sg"`
	Checksum bool   `json:"tx_checksum"`
	TSO      bool   `json:"tso"`
	GSO      bool   `json:"gso"`
	Error    string `json:"error,omitempty"`
}

// lacks says why the card cannot send pages where they are; empty: it can.
func (n nic) lacks() string {
	switch {
	case n.Error != "":
		return "the guest cannot ask its network card: " + n.Error
	case !n.SG || !n.Checksum:
		return fmt.Sprintf("the guest's network card %s takes no frames in pieces or makes no checksums (sg %v, tx-checksum %v)", n.Name, n.SG, n.Checksum)
	}
	return ""
}

// sent is the guest's answer to stream-send, and what was seen from outside.
type sent struct {
	Bytes         int64  `json:"bytes"`
	ChunkBytes    int    `json:"chunk_bytes"`
	WallNs        int64  `json:"wall_ns"`
	BusyNs        int64  `json:"busy_ns"` // of all its CPUs
	SelfUserNs    int64  `json:"self_user_ns"`
	SelfSystemNs  int64  `json:"self_system_ns"`
	UserNs        int64  `json:"user_ns"`
	SystemNs      int64  `json:"system_ns"`
	SoftirqNs     int64  `json:"softirq_ns"`
	IdleNs        int64  `json:"idle_ns"`
	LateNs        int64  `json:"late_ns"` // memory came back, after the receiver had it all
	Sends         uint64 `json:"sends"`
	ZeroCopyBytes uint64 `json:"zero_copy_bytes"`
	Completions   uint64 `json:"completions"`
	Copied        uint64 `json:"copied_completions"`
	NoBuffers     uint64 `json:"no_buffers"`
	Mode          string `json:"mode"`
	NIC           nic    `json:"nic"`

	vcpuNs int64 // that the threads of the virtual CPUs ran
	qemuNs int64 // that QEMU's other threads ran
}

// sender is a lab with a guest that sends.
type sender struct {
	lab   *lab.Lab
	guest *lab.Guest
	qemu  int // its process
}

// newSender builds the lab and boots the guest; init is its program, empty for
// what `make guest` built. A *lab.MissingError says what the machine lacks.
func newSender(ctx context.Context, init string) (_ *sender, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootMax)
	defer cancel()
	assets, err := lab.FindAssets()
	if err != nil {
		return nil, err
	}
	if init != "" {
		assets.Init = init
	}
	s := &sender{}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if s.lab, err = lab.New(ctx, lab.Options{Log: log}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	o, err := s.lab.InstallBoot(assets)
	if err != nil {
		return nil, err
	}
	o.NIC, o.MemMiB, o.Cmdline = true, 192, quiet
	if s.guest, err = s.lab.A.StartGuest(ctx, o); err != nil {
		return nil, err
	}
	s.qemu, err = s.lab.A.QEMU(s.guest.Name)
	return s, err
}

// close takes guest and lab away.
func (s *sender) close() { s.lab.Close() }

// send has the guest send to a receiver on the clients' side of the switch,
// which gets the connection and must take exactly so many bytes from it.
func (s *sender) send(ctx context.Context, mib int, how string, chunk int, receive func(c *net.TCPConn, n int64) error, more ...string) (a sent, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendMax)
	defer cancel()
	var ln net.Listener
	err = s.lab.InSwitch(func() (err error) {
		ln, err = net.Listen("tcp4", net.JoinHostPort(lab.ClientAddr, "0"))
		return err
	})
	if err != nil {
		return a, err
	}
	var ran threads
	received := make(chan error, 1)
	go func() {
		var err error
		ran, err = s.takeOne(ctx, ln, func(c *net.TCPConn) error { return receive(c, int64(mib)<<20) })
		received <- err
	}()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		panic(err) // a listener's address has a port
	}
	order := append([]string{"stream-send", lab.ClientAddr, port, strconv.Itoa(mib), how, strconv.Itoa(chunk)}, more...)
	a, err = s.order(ctx, strings.Join(order, " "))
	if err != nil {
		cancel() // the receiver, too
	}
	err = errors.Join(err, <-received)
	a.vcpuNs, a.qemuNs = ran.vcpuNs, ran.otherNs
	return a, err
}

// order sends one line to the guest.
func (s *sender) order(ctx context.Context, line string) (a sent, err error) {
	answer, err := s.lab.Command(ctx, line)
	if err != nil {
		return a, err
	}
	text, err := json.Marshal(answer)
	if err == nil {
		err = json.Unmarshal(text, &a)
	}
	if err == nil && (a.WallNs <= 0 || a.BusyNs <= 0 || a.Bytes <= 0) {
		err = fmt.Errorf("the guest's answer makes no sense: %s", text)
	}
	return a, err
}

// takeOne accepts one connection, has it received, tells the sender that
// everything is there, and waits until it hangs up. It returns what QEMU's
// threads ran in the meantime.
func (s *sender) takeOne(ctx context.Context, ln net.Listener, receive func(*net.TCPConn) error) (ran threads, err error) {
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	conn, err := ln.Accept()
	if err != nil {
		return ran, fmt.Errorf("nobody sends: %w", err)
	}
	defer conn.Close()
	hangUp := context.AfterFunc(ctx, func() { conn.Close() })
	defer hangUp()
	before, err := s.threads()
	if err != nil {
		return ran, err
	}
	if err := receive(conn.(*net.TCPConn)); err != nil {
		return ran, fmt.Errorf("receiving: %w", err)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return ran, fmt.Errorf("receiving: %w", err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err != nil && err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
		return ran, errors.Join(fmt.Errorf("receiving: %d bytes more than were announced", n), err)
	}
	now, err := s.threads()
	return threads{now.vcpuNs - before.vcpuNs, now.otherNs - before.otherNs}, err
}

// threads is how long QEMU's threads ran: those of virtual CPUs, and the others.
type threads struct{ vcpuNs, otherNs int64 }

// threads returns what they ran so far.
func (s *sender) threads() (t threads, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.qemu))
	if err != nil || len(tasks) == 0 {
		return t, errors.Join(fmt.Errorf("QEMU, process %d, has no threads", s.qemu), err)
	}
	for _, task := range tasks {
		name, err := os.ReadFile(filepath.Join(task, "comm"))
		stat, err2 := os.ReadFile(filepath.Join(task, "schedstat"))
		if err := errors.Join(err, err2); errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // a worker that ended just now
		} else if err != nil {
			return t, err
		}
		first, _, _ := strings.Cut(string(stat), " ")
		ran, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return t, fmt.Errorf("%s/schedstat: %w", task, err)
		}
		if strings.HasPrefix(string(name), "CPU ") {
			t.vcpuNs += ran
		} else {
			t.otherNs += ran
		}
	}
	return t, nil
}
