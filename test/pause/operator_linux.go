package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virt-ft/virt-ft/internal/capture"
	"github.com/virt-ft/virt-ft/internal/virt"
)

const (
	saveCommand = "xen-save-devices-state"
	// nothingFor is how long "nothing" lasts: about as long as the others.
	nothingFor = 8 * time.Millisecond
	// drainBytes is the capacity of the pipe of the second floor: more than
	// all device state, so that QEMU does not wait for us.
	drainBytes = 1 << 20
	drainSet   = 0x70_61_75 // fdset; "pau"
)

// operator carries operations out. It belongs to one goroutine.
type operator struct {
	dom     *virt.Domain
	pid     int
	clock   clock
	session *capture.Session
	monitor *timedMonitor
	pipe    *drainedPipe
	passes  int // live, before a checkpoint, at most
}

func newOperator(ctx context.Context, dom *virt.Domain, passes int) (_ *operator, err error) {
	o := &operator{dom: dom, clock: newClock(), passes: passes}
	if o.pid, err = dom.PID(); err != nil {
		return nil, err
	}
	if o.pipe, err = newDrainedPipe(ctx, dom, o.pid); err != nil {
		return nil, err
	}
	o.monitor = &timedMonitor{Domain: dom, clock: o.clock}
	if o.session, err = capture.Open(ctx, o.pid, o.monitor, capture.Options{}); err != nil {
		return nil, errors.Join(err, o.pipe.close(ctx))
	}
	return o, nil
}

func (o *operator) close(ctx context.Context) error {
	return errors.Join(o.session.Close(ctx), o.pipe.close(ctx))
}

func (o *operator) do(ctx context.Context, r request) (answer, error) {
	switch r.Op {
	case "collect":
		_, err := o.session.Live(ctx, drop)
		return answer{}, err
	case nothing.String():
		begin := o.clock.now()
		time.Sleep(nothingFor)
		return answer{BeginNs: begin, EndNs: o.clock.now()}, nil
	case stopCont.String():
		return o.timed(func() error {
			_, err := o.dom.QMP(ctx, "stop", nil)
			_, cerr := o.dom.QMP(ctx, "cont", nil)
			return errors.Join(err, cerr)
		})
	case saveDrained.String():
		if err := o.pipe.verify(); err != nil {
			return answer{}, err
		}
		return o.timed(func() error {
			_, err := o.dom.QMP(ctx, saveCommand, o.pipe.args)
			return err
		})
	case checkpoint.String():
		return o.checkpoint(ctx)
	}
	return answer{}, fmt.Errorf("unknown operation %q", r.Op)
}

func (o *operator) timed(f func() error) (a answer, err error) {
	a.BeginNs = o.clock.now()
	err = f()
	a.EndNs = o.clock.now()
	return a, err
}

// checkpoint does what the daemon does for an epoch, but for sending it.
func (o *operator) checkpoint(ctx context.Context) (a answer, err error) {
	if a.LivePages, err = o.session.Converge(ctx, o.passes, drop); err != nil {
		return a, err
	}
	c, err := o.session.Checkpoint(ctx, capture.CheckpointOptions{})
	if err != nil {
		return a, err
	}
	c.Batch.Free()
	a.BeginNs, a.EndNs, a.Phases = o.monitor.beginNs, o.monitor.endNs, c.Phases
	return a, nil
}

func drop(b *capture.Batch) error { b.Free(); return nil }

// timedMonitor remembers when the guest's last pause was asked for and over.
type timedMonitor struct {
	*virt.Domain
	clock          clock
	beginNs, endNs int64 // written before the session has the reply
}

// QMP implements capture.Monitor.
func (m *timedMonitor) QMP(ctx context.Context, execute string, args any) (json.RawMessage, error) {
	if execute != saveCommand {
		return m.Domain.QMP(ctx, execute, args)
	}
	m.beginNs = m.clock.now()
	raw, err := m.Domain.QMP(ctx, execute, args)
	m.endNs = m.clock.now()
	return raw, err
}

// drainedPipe is the pipe of the second floor. Its write end in QEMU is the one
// that add-fd made, which is good for as long as libvirtd runs.
type drainedPipe struct {
	dom  *virt.Domain
	pid  int
	fd   int    // in QEMU
	link string // "pipe:[INODE]"
	args map[string]any
	read *os.File
	done chan struct{}
}

func newDrainedPipe(ctx context.Context, dom *virt.Domain, pid int) (*drainedPipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p := &drainedPipe{dom: dom, pid: pid, fd: -1, read: r, done: make(chan struct{})}
	if err := p.pass(ctx, w); err != nil {
		return nil, errors.Join(fmt.Errorf("pipe of the second floor: %w", err), r.Close())
	}
	go func() {
		defer close(p.done)
		_, _ = io.Copy(io.Discard, r) // ends with the last write end, or with r
	}()
	return p, nil
}

func (p *drainedPipe) pass(ctx context.Context, w *os.File) error {
	raw, err := p.read.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Control(func(fd uintptr) { // not Fd, which would make it blocking
		_, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, drainBytes)
		var st unix.Stat_t
		err = errors.Join(err, unix.Fchmod(int(fd), 0o666), unix.Fstat(int(fd), &st))
		p.link = fmt.Sprintf("pipe:[%d]", st.Ino)
	})
	if err != nil {
		return err
	}
	reply, err := p.dom.QMPWithFiles(ctx, "add-fd", map[string]any{"fdset-id": drainSet}, w)
	if err != nil {
		return err
	}
	var added struct {
		Fd int `json:"fd"`
	}
	if err := json.Unmarshal(reply, &added); err != nil {
		return err
	}
	p.fd = added.Fd
	p.args = map[string]any{"filename": "/proc/self/fd/" + strconv.Itoa(p.fd), "live": false}
	return p.verify()
}

// verify makes sure that QEMU does not write to anything but our pipe.
func (p *drainedPipe) verify() error {
	is, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, p.fd))
	if err == nil && is != p.link {
		err = fmt.Errorf("descriptor %d of QEMU is %s, not %s", p.fd, is, p.link)
	}
	return err
}

func (p *drainedPipe) close(ctx context.Context) error {
	_, err := p.dom.QMP(ctx, "remove-fd", map[string]any{"fdset-id": drainSet})
	_ = p.read.Close()
	<-p.done
	return err
}
