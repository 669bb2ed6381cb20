package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	daemonConfigPath = "/etc/virt-ft/virt-ft.toml"
	// ctlPath is where hosts see the program under test: the lab's own copy,
	// which a rebuild in the meantime does not change.
	ctlName = "virt-ft"
)

// DaemonOptions are what the daemons' configurations say beside the hosts' names.
type DaemonOptions struct {
	// Extra is TOML at the top level: keys of transport with their table's name
	// before them. Tables of its own, but arbiter and peers, may follow.
	Extra string
	// Arbiter returns, for one host, TOML inside the table arbiter; tables in it as
	// "etcd.endpoints = ..." [the file arbiter on the shared directory].
	Arbiter func(h *Host) string
}

// FileArbiter is the file arbiter on the shared directory.
func FileArbiter(*Host) string { return fmt.Sprintf("kind = \"file\"\ndir = %q\n", SharedDir) }

// EtcdArbiter is the etcd of StartEtcd.
func EtcdArbiter(*Host) string {
	return fmt.Sprintf("kind = \"etcd\"\netcd.endpoints = [%q]\n", EtcdURL)
}

// InstallDaemons is InstallDaemonsWith the file arbiter.
func (l *Lab) InstallDaemons(binary, extra string) error {
	return l.InstallDaemonsWith(binary, DaemonOptions{Extra: extra})
}

// InstallDaemonsWith gives both hosts the virt-ft program binary, each with a
// configuration that names the other as a peer, with certificates of the lab's own
// authority for it, and with what the options say, PlainTransport for instance. Start them with h.Daemon.Start.
func (l *Lab) InstallDaemonsWith(binary string, o DaemonOptions) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return &MissingError{What: binary, Remedy: "run make build"}
	}
	path := filepath.Join(l.Dir, ctlName)
	if err := os.WriteFile(path, program, 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for _, h := range l.Hosts() {
		h.ctl = path
		if err := h.ConfigureWith(o); err != nil {
			return err
		}
		h.SetDaemon([]string{path, "daemon"}, nil, func(ctx context.Context) error {
			return h.get(ctx, "version", nil, &struct{}{})
		})
	}
	return nil
}

// Configure is ConfigureWith the file arbiter.
func (h *Host) Configure(extra string) error { return h.ConfigureWith(DaemonOptions{Extra: extra}) }

// ConfigureWith writes the daemon's configuration on the host; it counts from the
// daemon's next start.
func (h *Host) ConfigureWith(o DaemonOptions) error {
	if o.Arbiter == nil {
		o.Arbiter = FileArbiter
	}
	if !strings.Contains(o.Extra, "reprotect") {
		o.Extra = "reprotect = false\n" + o.Extra // tests say themselves when
	}
	peer := h.lab.Peer(h)
	text := fmt.Sprintf(`host = %q
%s
[arbiter]
%s
[peers]
%s = %q
`, h.Name, o.Extra, o.Arbiter(h), peer.Name, peer.Repl)
	if err := h.certify(); err != nil {
		return err
	}
	path, err := h.Root(daemonConfigPath)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// StartDaemons starts the daemons of both hosts.
func (l *Lab) StartDaemons(ctx context.Context) error {
	for _, h := range l.Hosts() {
		if err := h.Daemon.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Ctl runs a virt-ft command on the host and returns its standard output.
func (h *Host) Ctl(ctx context.Context, args ...string) (string, error) {
	return h.Run(ctx, h.ctl, args...)
}

// CtlPath is the virt-ft program as the host sees it.
func (h *Host) CtlPath() string { return h.ctl }

// Protection is what the lab reads of `virt-ft status -o json`.
type Protection struct {
	Domain     string   `json:"domain"`
	Role       string   `json:"role"`
	State      string   `json:"state"`
	Generation uint64   `json:"generation"`
	Error      string   `json:"error"`
	Warnings   []string `json:"warnings"`
	Epoch      struct {
		Captured  uint64 `json:"captured"`
		Acked     uint64 `json:"acked"`
		Committed uint64 `json:"committed"`
	} `json:"epoch"`
	Pause struct {
		P50Ms float64 `json:"p50_ms"`
		P99Ms float64 `json:"p99_ms"`
	} `json:"pause"`
	Ship struct {
		Streams   int    `json:"streams"`
		Pages     uint64 `json:"pages"`
		ZeroPages uint64 `json:"zero_pages"`
		SamePages uint64 `json:"same_pages"`
		Packed    bool   `json:"packed"`
	} `json:"ship"`
	Throttle struct {
		Share  float64 `json:"share"`
		Reason string  `json:"reason"`
	} `json:"throttle"`
	Clock struct {
		State   string  `json:"state"`
		Why     string  `json:"why"`
		Kept    uint64  `json:"kept"`
		Missed  uint64  `json:"missed"`
		DriftUs float64 `json:"drift_us"`
		StepUs  float64 `json:"step_us"`
	} `json:"clock"`
	DirtyPages int     `json:"dirty_pages"`
	BytesSent  uint64  `json:"bytes_sent"`
	RateBps    float64 `json:"rate_bps"`
	FailoverMs float64 `json:"failover_ms"`
}

// Protections returns what the host's daemon says of a domain, or of all when
// domain is empty. A domain that it knows nothing of is an error.
func (h *Host) Protections(ctx context.Context, domain string) ([]Protection, error) {
	args := []string{"status", "-o", "json"}
	if domain != "" {
		args = append(args, domain)
	}
	out, err := h.Ctl(ctx, args...)
	if strings.TrimSpace(out) == "" && err != nil {
		return nil, err
	}
	var ps []Protection
	if err := json.Unmarshal([]byte(out), &ps); err != nil {
		return nil, fmt.Errorf("lab: %s: status: %w", h.Name, err)
	}
	return ps, nil
}

// WaitState waits until the host's daemon reports one of states for a domain.
func (h *Host) WaitState(ctx context.Context, domain string, states ...string) (Protection, error) {
	var last Protection
	for {
		ps, err := h.Poll(ctx, domain)
		if err == nil && len(ps) > 0 {
			last = ps[0]
			for _, s := range states {
				if last.State == s {
					return last, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("lab: %s: %s did not become %s, it is %q %s: %w (%v)", h.Name, domain, strings.Join(states, " or "), last.State, last.Error, ctx.Err(), err)
		case <-time.After(readyPoll):
		}
	}
}
