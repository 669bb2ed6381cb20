package virt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
)

const (
	incomingFDName = "virtft-incoming"
	// cleanupMax bounds the removal of what a failed StartStandby made.
	cleanupMax = 20 * time.Second
	// WaitLoaded asks QEMU again after loadedPollMin, later at most every loadedPollMax.
	loadedPollMin = 500 * time.Microsecond
	loadedPollMax = 20 * time.Millisecond
	// loadedErrorMax is how long the monitor may fail before WaitLoaded gives up on a domain said to run.
	loadedErrorMax = 10 * time.Second
	logDir         = "/var/log/libvirt/qemu"
	logTailBytes   = 2048
)

// Standby is a paused domain whose QEMU reads a migration stream from the other end of Incoming.
type Standby struct {
	*Domain
	// Incoming is our end of the socket pair; the caller owns it. It supports deadlines. It dies with this
	// process: after a restart of ours a standby cannot be fed any more and must be replaced.
	Incoming *os.File
}

// StartStandby starts the domain described by xml (see StandbyXML), paused and waiting for a stream. On error
// nothing is left behind. The error is ErrActive when a domain of this name or UUID already runs here, a
// standby of an earlier life of ours included (see Leftovers).
func (c *Conn) StartStandby(ctx context.Context, xml string) (*Standby, error) {
	def, err := parseDomain(xml)
	if err != nil {
		return nil, &CallError{Op: "start standby", Err: err}
	}
	dom, err := call(ctx, c, "start standby", def.Name, func(l *link) (*Domain, error) {
		if err := refuseActive(l, def.Name, def.UUID); err != nil {
			return nil, err
		}
		h, err := l.conn.DomainCreateXML(xml, libvirt.DOMAIN_START_PAUSED)
		if err != nil {
			return nil, err
		}
		defer func() { _ = h.Free() }()
		return c.domainOf(h)
	}, func(l *link, d *Domain) { // nobody waited for it any more
		if h, err := l.conn.LookupDomainByUUIDString(d.uuid); err == nil {
			_ = destroy(h)
			_ = h.Free()
		}
	})
	if err != nil {
		return nil, err
	}
	incoming, err := dom.openIncoming(ctx)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupMax)
		defer cancel()
		return nil, errors.Join(err, dom.Destroy(ctx))
	}
	return &Standby{Domain: dom, Incoming: incoming}, nil
}

// refuseActive looks before DomainCreateXML does, whose own refusals have no code of their own.
func refuseActive(l *link, name, uuid string) error {
	return forEach(l, libvirt.CONNECT_LIST_DOMAINS_ACTIVE, func(h *libvirt.Domain) error {
		n, err := h.GetName()
		if err != nil {
			return err
		}
		u, err := h.GetUUIDString()
		if err != nil {
			return err
		}
		if n == name || u == uuid {
			return fmt.Errorf("%w: %s (%s)", ErrActive, n, u)
		}
		return nil
	})
}

// openIncoming gives QEMU one end of a socket pair to read the stream from, and returns the other.
func (d *Domain) openIncoming(ctx context.Context) (_ *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &CallError{"make socket pair", d.name, err}
	}
	theirs := os.NewFile(uintptr(pair[1]), "incoming stream, QEMU's end")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil { // for deadlines
		unix.Close(pair[0])
		return nil, &CallError{"make socket pair", d.name, err}
	}
	ours := os.NewFile(uintptr(pair[0]), "incoming stream of "+d.name)
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	if _, err := d.QMPWithFiles(ctx, "getfd", map[string]string{"fdname": incomingFDName}, theirs); err != nil {
		return nil, err
	}
	if _, err := d.QMP(ctx, "migrate-incoming", map[string]string{"uri": "fd:" + incomingFDName}); err != nil {
		return nil, err
	}
	return ours, nil
}

// Leftovers lists running domains that still are standbys of ours: after a restart of the daemon those it does
// not know have to be destroyed, as nobody holds the other end of their stream.
func (c *Conn) Leftovers(ctx context.Context) ([]*Domain, error) {
	return call(ctx, c, "list standbys", "", func(l *link) ([]*Domain, error) {
		var list []*Domain
		err := forEach(l, libvirt.CONNECT_LIST_DOMAINS_ACTIVE, func(h *libvirt.Domain) error {
			n, err := liveNote(h)
			var e libvirt.Error
			if errors.Is(err, ErrNoNote) || errors.As(err, &e) && (e.Code == libvirt.ERR_NO_DOMAIN || e.Code == libvirt.ERR_NO_DOMAIN_METADATA ||
				e.Code == libvirt.ERR_OPERATION_INVALID) { // the last: it ended meanwhile
				return nil
			}
			if err != nil {
				return err
			}
			if n.Role != RoleStandby {
				return nil
			}
			d, err := c.domainOf(h)
			if err != nil {
				return err
			}
			list = append(list, d)
			return nil
		})
		return list, err
	}, nil)
}

// Announce makes QEMU send frames that tell switches where the guest's MAC
// addresses are now: of all its interfaces, several times within about a second.
// It returns when QEMU has begun. Guests with virtio interfaces may be asked to
// announce themselves too.
func (d *Domain) Announce(ctx context.Context) error {
	_, err := d.QMP(ctx, "announce-self", announceParameters{InitialMs: 50, MaxMs: 550, Rounds: 5, StepMs: 50})
	return err
}

// announceParameters is QEMU's AnnounceParameters; the values we use are its own for migrations.
type announceParameters struct {
	InitialMs int `json:"initial"`
	MaxMs     int `json:"max"`
	Rounds    int `json:"rounds"`
	StepMs    int `json:"step"`
}

// LoadError says that QEMU did not accept the stream.
type LoadError struct {
	Reason  string
	LogTail string // end of QEMU's log; empty when it cannot be read
}

func (e *LoadError) Error() string {
	if e.LogTail == "" {
		return "standby did not load: " + e.Reason
	}
	return fmt.Sprintf("standby did not load: %s; end of QEMU's log:\n%s", e.Reason, e.LogTail)
}

// WaitLoaded waits until QEMU has loaded the whole stream, which the caller has written to its end. A
// *LoadError says that QEMU refused it; then the standby is dead or useless. While libvirtd restarts, it waits.
func (s *Standby) WaitLoaded(ctx context.Context) error {
	delay := loadedPollMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failingSince time.Time
	for {
		select {
		case <-ctx.Done():
			return &CallError{"wait for load", s.name, context.Cause(ctx)}
		case <-timer.C:
		}
		loaded, err := s.loaded(ctx)
		var load *LoadError
		switch {
		case err == nil && loaded, errors.As(err, &load), ctx.Err() != nil:
			return err
		case err == nil, errors.Is(err, ErrDisconnected):
			failingSince = time.Time{}
		case failingSince.IsZero():
			failingSince = time.Now() // QEMU may have ended, and libvirt not have noticed yet
		case time.Since(failingSince) > loadedErrorMax:
			return err
		}
		timer.Reset(delay)
		delay = min(2*delay, loadedPollMax)
	}
}

// StayPaused makes sure that the standby does not begin to run by itself when its stream ends. It is to be
// called right before the last bytes: "virsh resume" of a standby succeeds without a word of what it does,
// which is to have QEMU run the guest as soon as it is loaded (qmp_cont, RUN_STATE_INMIGRATE); libvirt goes on
// showing it as paused. This takes that back (qmp_stop), costs one monitor command, and may be repeated.
func (s *Standby) StayPaused(ctx context.Context) error {
	_, err := s.QMP(ctx, "stop", nil)
	return err
}

// loaded asks once. The error is a *LoadError only when the load is known to have failed.
func (s *Standby) loaded(ctx context.Context) (bool, error) {
	status, err := s.queryStatus(ctx, "query-status")
	if err != nil {
		state, stateErr := s.State(ctx)
		if errors.Is(stateErr, ErrNoDomain) || (stateErr == nil && !state.Active()) {
			return false, s.loadError("QEMU ended")
		}
		return false, err
	}
	if status == "running" { // resumed by somebody between StayPaused and the stream's end
		return true, s.StayPaused(ctx)
	}
	if status != "inmigrate" {
		return true, nil
	}
	// From QEMU 9.1 on, a failed load need not end QEMU.
	status, err = s.queryStatus(ctx, "query-migrate")
	if err == nil && status == "failed" {
		return false, s.loadError("QEMU reports that it failed")
	}
	return false, nil
}

func (s *Standby) queryStatus(ctx context.Context, command string) (string, error) {
	raw, err := s.QMP(ctx, command, nil)
	if err != nil {
		return "", err
	}
	var r struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return "", &CallError{"QMP " + command, s.name, err}
	}
	return r.Status, nil
}

func (s *Standby) loadError(reason string) error {
	return &CallError{"load", s.name, &LoadError{Reason: reason, LogTail: tail(logDir + "/" + s.name + ".log")}}
}

// tail returns the last lines of a file, or nothing.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(info.Size(), logTailBytes))
	n, _ := f.ReadAt(b, info.Size()-int64(len(b)))
	return string(b[:n])
}
