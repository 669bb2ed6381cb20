package ptracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkStatus refuses targets that cannot be attached to, before touching them.
func (in *injection) checkStatus() error {
	st, err := readStatus(in.pid)
	if err != nil {
		return in.explain("look at it", err)
	}
	return st.refusal(in.pid)
}

// status is what /proc/PID/status says about a main thread.
type status struct {
	state       string // one letter
	tracerPid   string
	shadowStack bool
}

func readStatus(pid int) (status, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return status{}, err
	}
	return parseStatus(string(data)), nil
}

func parseStatus(text string) (s status) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "State":
			s.state = fields[0]
		case "TracerPid":
			s.tracerPid = fields[0]
		case "x86_Thread_features":
			for _, f := range fields {
				s.shadowStack = s.shadowStack || f == "shstk"
			}
		}
	}
	return s
}

// refusal is the error for a process in this status, nil if it may be traced.
func (s status) refusal(pid int) error {
	e := &Error{Op: "attach", PID: pid}
	switch {
	case s.state == "Z" || s.state == "X":
		e.Err, e.Detail = ErrGone, "its main thread has ended"
	case s.tracerPid != "0":
		e.Err, e.Detail = ErrTraced, fmt.Sprintf("process %s is attached (a debugger, strace, or another remote call): end it and try again", s.tracerPid)
	case s.shadowStack:
		// The chain returns to addresses that are not on the shadow stack.
		e.Err, e.Detail = ErrShadowStack, "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
	default:
		return nil
	}
	return e
}

func (in *injection) explain(op string, err error) error { return explain(in.pid, op, err) }

// explain turns the error of a failed step into one that says what to do.
func explain(pid int, op string, err error) error {
	fail := func(kind error, detail string) error {
		return &Error{Op: op, PID: pid, Err: kind, Detail: detail}
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ECHILD):
		return fail(ErrGone, "")
	case errors.Is(err, fs.ErrPermission):
		if st, statusErr := readStatus(pid); statusErr == nil {
			if refusal := st.refusal(pid); refusal != nil {
				return refusal
			}
		}
		return fail(ErrPermission, "needs CAP_SYS_PTRACE: run as root or grant it in the unit file; "+
			"an AppArmor or SELinux denial would be in the audit log"+yamaHint())
	case errors.As(err, &errno):
		return fail(errno, "")
	}
	return fail(ErrUnsupported, err.Error())
}

// yamaHint mentions Yama if it restricts ptrace here.
func yamaHint() string {
	data, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	scope := strings.TrimSpace(string(data))
	switch {
	case err != nil || scope == "0":
		return ""
	case scope == "3":
		return "; kernel.yama.ptrace_scope is 3, which forbids it until the next boot: set it to 2 or less in /etc/sysctl.d"
	}
	return "; kernel.yama.ptrace_scope is " + scope + ", so the same user is not enough"
}
