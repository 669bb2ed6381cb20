package arbiter

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Bounds on what is said to an agent, and on what it says.
const (
	maxAgentOptions     = 64
	maxAgentOptionBytes = 1024
	maxAgentOutputBytes = 256 << 10
	maxAgentWords       = 300 // of its output, in an error
	agentKillGrace      = 2 * time.Second
)

// agent calls a fence agent as ClusterLabs' FenceAgentAPI.md describes it:
// key=value lines on its standard input, and an exit code.
type agent struct {
	path    string
	options map[string]string
	plug    string
}

func newAgent(o FenceOptions) (agent, error) {
	a := agent{options: o.Options, plug: o.Plug}
	if o.Agent == "" || o.Plug == "" {
		return a, errors.New("fence needs an agent, like fence_ipmilan, and the peer's plug")
	}
	if len(o.Options) > maxAgentOptions {
		return a, fmt.Errorf("more than %d options for %s", maxAgentOptions, o.Agent)
	}
	for name, value := range o.Options {
		switch name {
		case "action", "option", "plug", "port", "nodename":
			return a, fmt.Errorf("fence option %q is set by virt-ft itself", name)
		case "missing_as_off":
			return a, errors.New("fence option missing_as_off would take a wrong plug for a host that is off: remove it")
		}
		if err := checkOption(name, value); err != nil {
			return a, err
		}
	}
	if err := checkOption("plug", o.Plug); err != nil {
		return a, err
	}
	if strings.Contains(o.Plug, ",") {
		return a, fmt.Errorf("fence plug %q names more than one", o.Plug)
	}
	var err error
	a.path, err = findAgent(o.Agent)
	return a, err
}

func checkOption(name, value string) error {
	if name == "" || len(name)+len(value) > maxAgentOptionBytes {
		return fmt.Errorf("fence option %.40q must have a name, and at most %d bytes", name, maxAgentOptionBytes)
	}
	if strings.ContainsAny(name, "= \t\r\n#") || strings.ContainsAny(value, "\r\n\x00") {
		return fmt.Errorf("fence option %.40q: no '=' or blanks in its name, no line ends in its value", name)
	}
	return nil
}

func findAgent(name string) (string, error) {
	if filepath.IsAbs(name) {
		info, err := os.Stat(name)
		if err == nil && (info.IsDir() || info.Mode().Perm()&0o111 == 0) {
			err = errors.New("not a program")
		}
		if err != nil {
			return "", fmt.Errorf("fence agent %s: %w", name, err)
		}
		return name, nil
	}
	if strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("fence agent %s: give a name or an absolute path", name)
	}
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil && filepath.IsAbs(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("fence agent %s is not installed: it is in the package fence-agents", name)
}

// off turns the plug off. An error that is ErrUndecided is the agent's own word
// that it failed; after any other nobody knows what will happen to the plug. In
// neither case has this host won anything.
func (a agent) off(ctx context.Context) error {
	code, out, err := a.run(ctx, "off", a.plug)
	switch {
	case err != nil:
		return err
	case code != 0:
		return undecided(fmt.Errorf("%s off: exit code %d: %s", a.path, code, out))
	}
	return nil
}

// status asks whether the plug is on. Only the exit code counts: 0 is on, 2 off.
func (a agent) status(ctx context.Context) (on bool, err error) {
	code, out, err := a.run(ctx, "status", a.plug)
	switch {
	case err != nil:
		return false, err
	case code == 0:
		return true, nil
	case code == 2:
		return false, nil
	}
	return false, undecided(fmt.Errorf("%s status: exit code %d: %s", a.path, code, out))
}

// run starts the agent and waits for it. The error tells that it could not be
// started, which is ErrUndecided, or that it was killed, which is ErrUnknown.
func (a agent) run(ctx context.Context, action, plug string) (code int, output string, err error) {
	// The kernel kills the agent when the thread that started it ends: stay on
	// it, so that this happens when the daemon dies, and not before. An off that
	// outlived us could hit a host that was started again.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var in strings.Builder
	fmt.Fprintf(&in, "action=%s\n", action)
	if plug != "" {
		fmt.Fprintf(&in, "plug=%s\n", plug)
		for _, name := range slices.Sorted(maps.Keys(a.options)) {
			fmt.Fprintf(&in, "%s=%s\n", name, a.options[name])
		}
	}
	out, complaint := &bounded{bytesMax: maxAgentOutputBytes}, &bounded{bytesMax: maxAgentOutputBytes}
	cmd := exec.CommandContext(ctx, a.path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in.String()), out, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = agentKillGrace
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, "", fmt.Errorf("%w: %s %s did not end in time and was killed: %w", ErrUnknown, a.path, action, ctx.Err())
	case err == nil:
		return 0, out.buf.String(), nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), a.words(complaint.buf.String() + " " + out.buf.String()), nil
	case errors.As(err, &exit):
		return 0, "", fmt.Errorf("%w: %s %s was killed: %w", ErrUnknown, a.path, action, err)
	case cmd.Process == nil:
		return 0, "", undecided(fmt.Errorf("%s could not be started: %w", a.path, err))
	}
	return 0, "", fmt.Errorf("%w: %s %s: %w", ErrUnknown, a.path, action, err)
}

// words makes one short line of what an agent said, without its secrets.
func (a agent) words(s string) string {
	for name, value := range a.options {
		if strings.Contains(name, "pass") && value != "" {
			s = strings.ReplaceAll(s, value, "***")
		}
	}
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxAgentWords {
		s = s[:maxAgentWords] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// metadata is what we want of an agent's description of itself.
type metadata struct {
	XMLName    xml.Name `xml:"resource-agent"`
	Parameters []struct {
		Name string `xml:"name,attr"`
	} `xml:"parameters>parameter"`
	Actions []struct {
		Name string `xml:"name,attr"`
	} `xml:"actions>action"`
}

// checkMetadata refuses options that the agent does not know: it would ignore
// them, as the interface demands, and fence with others than were meant.
func (a agent) checkMetadata(ctx context.Context, verify bool) error {
	code, out, err := a.run(ctx, "metadata", "")
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s metadata: exit code %d: %s", a.path, code, out)
	}
	var m metadata
	if err := xml.Unmarshal([]byte(out), &m); err != nil {
		return fmt.Errorf("%s is no fence agent, its metadata cannot be read: %w", a.path, err)
	}
	known := map[string]bool{}
	for _, p := range m.Parameters {
		known[p.Name] = true
	}
	for _, name := range append(slices.Sorted(maps.Keys(a.options)), "action", "plug") {
		if !known[name] {
			return fmt.Errorf("%s knows no option %q: see `%s -o metadata`", a.path, name, a.path)
		}
	}
	does := map[string]bool{}
	for _, action := range m.Actions {
		does[action.Name] = true
	}
	switch {
	case !does["off"]:
		return fmt.Errorf("%s cannot turn a host off", a.path)
	case verify && !does["status"]:
		return fmt.Errorf("%s cannot say whether a host is off: choose another agent, or trust its word (no verification)", a.path)
	}
	return nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	buf      bytes.Buffer
	bytesMax int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.bytesMax - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
