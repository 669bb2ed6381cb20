package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EtcdURL is where both hosts find the etcd of StartEtcd.
const EtcdURL = "http://" + ArbiterAddr + ":2379"

// etcdPeerURL is nobody's but its own: it has no other members.
const etcdPeerURL = "http://127.0.0.1:2380"

type etcd struct {
	mu   sync.Mutex
	proc *Process
}

// StartEtcd starts an etcd of one member on arbnet, a third place beside the
// hosts, and waits until it answers. One that ended, by Process.Kill or otherwise,
// is started again with its data. A MissingError says that it is not installed.
func (l *Lab) StartEtcd(ctx context.Context) (*Process, error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return nil, &MissingError{What: "etcd", Remedy: "install the package etcd-server"}
	}
	l.etcd.mu.Lock()
	defer l.etcd.mu.Unlock()
	if l.etcd.proc != nil && !l.etcd.proc.ended() {
		return nil, errors.New("lab: etcd runs already")
	}
	log, err := os.OpenFile(filepath.Join(l.Dir, "etcd.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: etcd: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--name", "arbiter", "--data-dir", filepath.Join(l.Dir, "etcd"),
		"--listen-client-urls", EtcdURL, "--advertise-client-urls", EtcdURL,
		"--listen-peer-urls", etcdPeerURL, "--initial-advertise-peer-urls", etcdPeerURL,
		"--initial-cluster", "arbiter="+etcdPeerURL, "--heartbeat-interval", "50", "--election-timeout", "500")
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	// The thread whose end is the process's too, in the switch for a moment.
	err = l.spawn.do(func() error {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer home.Close()
		if err := enterNet(l.net.ns)(); err != nil {
			return err
		}
		return errors.Join(cmd.Start(), unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
	})
	if err != nil {
		return nil, fmt.Errorf("lab: starting etcd: %w", err)
	}
	l.etcd.proc = watch(cmd)
	for {
		if err = l.askEtcd(ctx); err == nil {
			return l.etcd.proc, nil
		}
		select {
		case <-l.etcd.proc.done:
			return nil, fmt.Errorf("lab: etcd ended at start: %w; see %s", l.etcd.proc.err, log.Name())
		case <-ctx.Done():
			return nil, fmt.Errorf("lab: etcd does not answer: %w: %w", ctx.Err(), err)
		case <-time.After(readyPoll):
		}
	}
}

// askEtcd asks, from the switch, whether etcd is in health.
func (l *Lab) askEtcd(ctx context.Context) error {
	t := &http.Transport{DialContext: l.Dial, DisableKeepAlives: true}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, EtcdURL+"/health", nil)
	if err != nil {
		return err
	}
	answer, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerMaxBytes))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("lab: etcd says %s: %s", answer.Status, text)
	}
	return err
}

func (l *Lab) endEtcd() {
	l.etcd.mu.Lock()
	defer l.etcd.mu.Unlock()
	if l.etcd.proc != nil {
		_ = l.etcd.proc.Kill() // it may have ended
	}
}
