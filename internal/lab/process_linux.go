package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Process is one process that the lab started in a host. Its methods may be
// called concurrently.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid after done
}

// Pid is the process id as seen from outside the host.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, as exec.Cmd.Wait does.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends a signal; a process that has ended is not an error.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && err != os.ErrProcessDone {
		return fmt.Errorf("lab: signal to %s: %w", p.cmd.Path, err)
	}
	return nil
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	<-p.done
	return err
}

// Service is a program that a host runs for long and that tests kill and
// restart: libvirtd, the daemon. Its methods may be called concurrently.
type Service struct {
	host  *Host
	name  string
	argv  []string
	env   []string
	ready func(context.Context) error

	mu   sync.Mutex
	proc *Process
}

// readyPoll is the pause between two questions whether a service is up.
const readyPoll = 20 * time.Millisecond

// Start starts the service and waits until it answers, or ctx ends, or it
// dies. Its output goes to LogPath. Starting what runs is an error.
func (s *Service) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil && !s.proc.ended() {
		return fmt.Errorf("lab: %s: %s runs already", s.host.Name, s.name)
	}
	log, err := os.OpenFile(s.LogPath(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", s.name, err)
	}
	defer log.Close()
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.env...)
	p, err := s.host.Start(cmd)
	if err != nil {
		return err
	}
	s.proc = p
	for {
		if s.ready == nil || s.ready(ctx) == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("lab: %s: %s ended at start (%v): %s", s.host.Name, s.name, p.err, s.logTail())
		case <-ctx.Done():
			return fmt.Errorf("lab: %s: %s does not answer: %w: %s", s.host.Name, s.name, ctx.Err(), s.logTail())
		case <-time.After(readyPoll):
		}
	}
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// logTailBytes is how much of a log an error carries: the log goes with the lab.
const logTailBytes = 1000

func (s *Service) logTail() string {
	b, err := os.ReadFile(s.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-logTailBytes):])
}

// LogPath is the file with the service's output, on the lab's side.
func (s *Service) LogPath() string { return filepath.Join(s.host.Dir, s.name+".log") }

// Process returns the running process, or nil.
func (s *Service) Process() *Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || s.proc.ended() {
		return nil
	}
	return s.proc
}

// Pid is the running process's id, as seen from outside the host.
func (s *Service) Pid() (int, error) {
	p := s.Process()
	if p == nil {
		return 0, fmt.Errorf("lab: %s of %s does not run any more; its log is %s", s.name, s.host.Name, s.LogPath())
	}
	return p.Pid(), nil
}

// Kill ends the service with SIGKILL and waits until it is gone. It does
// nothing when the service is not running.
func (s *Service) Kill() error { return s.end(syscall.SIGKILL) }

// Stop asks the service to end and waits until it is gone.
func (s *Service) Stop() error { return s.end(syscall.SIGTERM) }

func (s *Service) end(sig syscall.Signal) error {
	p := s.Process()
	if p == nil {
		return nil
	}
	err := p.Signal(sig)
	<-p.done
	return err
}

// Restart kills the service and starts it again.
func (s *Service) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.Start(ctx)
}
