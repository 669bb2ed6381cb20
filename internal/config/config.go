// Package config reads the daemon's configuration: one TOML file in which every
// key is optional. A key that is not known, or a value that makes no sense, is
// an error which names its line, so that a typing mistake is never a silently
// used default.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// DefaultPath is where the daemon looks for its configuration.
const DefaultPath = "/etc/virt-ft/virt-ft.toml"

// DefaultPort is the TCP port of a daemon: not assigned to anybody by IANA.
const DefaultPort = "7879"

const maxFileBytes = 1 << 20

// Transport modes.
const (
	TransportTLS   = "tls"
	TransportPlain = "plain"
)

// Arbiter kinds. The empty kind asks for a choice with each `protect`.
const (
	ArbiterFile   = "file"
	ArbiterEtcd   = "etcd"
	ArbiterFence  = "fence"
	ArbiterManual = "manual"
	// ArbiterThen joins kinds that are asked in order.
	ArbiterThen = "+"
)

// Config is the configuration of one host's daemon. Durations are written as
// strings such as "25ms".
type Config struct {
	Host       string            `toml:"host"`        // this host's name among its peers
	Listen     string            `toml:"listen"`      // address:port for other daemons
	LibvirtURI string            `toml:"libvirt_uri"` // the local libvirt
	StateDir   string            `toml:"state_dir"`   // what must survive a reboot
	RunDir     string            `toml:"run_dir"`     // what must not
	Nice       int               `toml:"nice"`        // of the daemon's threads: output waits for them; 0 leaves it
	Reprotect  bool              `toml:"reprotect"`   // after a failover, protect the guest to its old host as soon as that is back
	Control    Control           `toml:"control"`
	Transport  Transport         `toml:"transport"`
	Epoch      Epoch             `toml:"epoch"`
	Output     Output            `toml:"output"`
	Disks      Disks             `toml:"disks"`
	Heartbeat  Heartbeat         `toml:"heartbeat"`
	Arbiter    Arbiter           `toml:"arbiter"`
	Web        Web               `toml:"web"`
	Log        Log               `toml:"log"`
	Peers      map[string]string `toml:"peers"` // name -> address, port optional
}

// Control is the socket that `virt-ft` commands talk to.
type Control struct {
	Socket string `toml:"socket"` // empty: control.sock in RunDir
	Group  string `toml:"group"`  // members may command the daemon; empty: root only
}

// Transport is how daemons talk to each other, and with whom.
type Transport struct {
	Mode       string `toml:"mode"` // TransportTLS or TransportPlain
	CA         string `toml:"ca"`
	ServerCert string `toml:"server_cert"`
	ServerKey  string `toml:"server_key"`
	ClientCert string `toml:"client_cert"`
	ClientKey  string `toml:"client_key"`
	// AllowedNames are whom the certificate of a host that connects must be made out
	// to, one of them. Empty: the peers, by their names and addresses.
	AllowedNames []string `toml:"allowed_names"`
	Pages        string   `toml:"pages"`    // TransportTLS, or TransportPlain: pages are not encrypted if both hosts say so
	Streams      int      `toml:"streams"`  // connections that carry pages, for each guest; of two hosts the fewer count
	Compress     string   `toml:"compress"` // CompressAuto, CompressOn or CompressOff: pages, as long as the link is the bottleneck
}

// When pages are packed before they are sent.
const (
	CompressAuto = "auto" // while it is measured to be faster than to send them as they are
	CompressOn   = "on"
	CompressOff  = "off"
)

// Epoch bounds how often and for how long a guest is paused.
type Epoch struct {
	Min           time.Duration `toml:"min"`             // never two checkpoints closer than this, however much the guest sends
	Idle          time.Duration `toml:"idle"`            // between two checkpoints of a guest that sends nothing
	PauseMax      time.Duration `toml:"pause_max"`       // a checkpoint that takes longer is given up and the guest resumed
	PauseShareMax float64       `toml:"pause_share_max"` // of the guest's time, 0 to 1
	InFlight      int           `toml:"in_flight"`       // epochs on their way to the backup at once
	AckMax        time.Duration `toml:"ack_max"`         // a guest whose epochs take longer to be acknowledged is slowed down
	ThrottleMax   float64       `toml:"throttle_max"`    // of the guest's time that slowing down may take, 0 to below 1; 0: never
}

// Output is about the frames that a guest sends, which are held until the backup
// has what they depend on, and about those that it is sent.
type Output struct {
	QueueBytesMax  int           `toml:"queue_bytes_max"`  // held for one guest; what comes on top is lost
	QueueFramesMax int           `toml:"queue_frames_max"` // the same, counted
	HeldMax        time.Duration `toml:"held_max"`         // a backup that lets frames wait longer counts as lost; 0: never
	LogInputs      bool          `toml:"log_inputs"`       // send the backup what arrives for the guest
	InputBytesMax  int           `toml:"input_bytes_max"`  // logged for one epoch
	OpenWithin     time.Duration `toml:"open_within"`      // for performing what is held when a protection ends
}

// Disks is about the writable disks of guests, which are copied to the backup
// and kept there as of the last committed checkpoint.
type Disks struct {
	Place           string        `toml:"place"`             // backup: where an image goes; placeholders in diskrep.Place
	Durability      string        `toml:"durability"`        // DurabilityMemory or DurabilityFsync; of two hosts the stricter counts
	StallMax        time.Duration `toml:"stall_max"`         // for a guest's write that waits for the connection
	QueueBytesMax   int           `toml:"queue_bytes_max"`   // primary: writes that wait for the connection
	JournalBytesMax int64         `toml:"journal_bytes_max"` // backup: about, for each guest
}

// When the writes of an epoch are safe enough for its acknowledgement.
const (
	DurabilityMemory = "memory" // the backup's kernel has them
	DurabilityFsync  = "fsync"  // the backup's disk has them
)

// Heartbeat decides when a peer counts as lost.
type Heartbeat struct {
	Period time.Duration `toml:"period"`
	Limit  time.Duration `toml:"limit"` // without an answer for this long
	// DaemonGrace is how long a backup waits for the return of a primary's daemon
	// that closed the connection while its host answers, before it takes over.
	// 0: it never does so for that.
	DaemonGrace time.Duration `toml:"daemon_grace"`
}

// Arbiter says who decides which host may run a domain alone.
type Arbiter struct {
	Kind  string `toml:"kind"` // empty, one of the kinds, or some of them joined by ArbiterThen
	Dir   string `toml:"dir"`  // ArbiterFile: a directory on storage that both hosts share
	Etcd  Etcd   `toml:"etcd"`
	Fence Fence  `toml:"fence"`
}

// Etcd is the cluster of ArbiterEtcd, which is to be the same on both hosts.
type Etcd struct {
	Endpoints    []string      `toml:"endpoints"` // URLs of its members
	CAFile       string        `toml:"ca_file"`   // empty: the system's authorities
	CertFile     string        `toml:"cert_file"` // this host's own, with KeyFile; both or none
	KeyFile      string        `toml:"key_file"`
	Username     string        `toml:"username"` // with PasswordFile; both or none
	PasswordFile string        `toml:"password_file"`
	Prefix       string        `toml:"prefix"`  // of the keys
	Timeout      time.Duration `toml:"timeout"` // of one operation
}

// Fence is how ArbiterFence turns the peer off.
type Fence struct {
	Agent    string            `toml:"agent"`     // of ClusterLabs: a name such as fence_ipmilan, or a path
	Plug     string            `toml:"plug"`      // the peer's, as the agent calls it
	Options  map[string]string `toml:"options"`   // given to the agent on its standard input
	NoVerify bool              `toml:"no_verify"` // believe its "off" without asking for the status
	Timeout  time.Duration     `toml:"timeout"`   // of turning off, to the last status
	Delay    time.Duration     `toml:"delay"`     // before it, on one of the two hosts, so that not both go off
}

// Web is the status page and what Prometheus reads, by HTTP.
type Web struct {
	Listen string   `toml:"listen"` // ADDRESS:PORT; ":PORT" is the loopback address; empty: nowhere
	Names  []string `toml:"names"`  // of this host in browsers, besides host, localhost and addresses
}

// Formats of the log.
const (
	LogAuto    = "auto"    // LogJournal where standard error is the journal, else LogText
	LogJournal = "journal" // with fields, to systemd's journal
	LogText    = "text"    // to standard error
	LogJSON    = "json"
)

// Log is what the daemon writes down.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // LogAuto and so on
}

// Default returns the values of a file in which no key is set. Host and
// Control.Socket are empty: Load derives them.
func Default() Config {
	return Config{
		Listen:     "0.0.0.0:" + DefaultPort,
		LibvirtURI: "qemu:///system",
		StateDir:   "/var/lib/virt-ft",
		RunDir:     "/run/virt-ft",
		Nice:       -12,
		Reprotect:  true,
		Transport: Transport{
			Mode:       TransportTLS,
			CA:         "/etc/pki/CA/cacert.pem",
			ServerCert: "/etc/pki/libvirt/servercert.pem",
			ServerKey:  "/etc/pki/libvirt/private/serverkey.pem",
			ClientCert: "/etc/pki/libvirt/clientcert.pem",
			ClientKey:  "/etc/pki/libvirt/private/clientkey.pem",

			AllowedNames: []string{},
			Pages:        TransportTLS,
			Streams:      2,
			Compress:     CompressAuto,
		},
		Epoch: Epoch{
			Min:           2 * time.Millisecond,
			Idle:          100 * time.Millisecond,
			PauseMax:      time.Second,
			PauseShareMax: 0.2,
			InFlight:      16,
			AckMax:        250 * time.Millisecond,
			ThrottleMax:   0.5,
		},
		Output: Output{
			QueueBytesMax:  64 << 20,
			QueueFramesMax: 65536,
			LogInputs:      true,
			InputBytesMax:  1 << 20,
			OpenWithin:     2 * time.Second,
		},
		Disks: Disks{
			Place:           "/var/lib/libvirt/images/{domain}-{disk}.raw",
			Durability:      DurabilityMemory,
			StallMax:        5 * time.Second,
			QueueBytesMax:   32 << 20,
			JournalBytesMax: 256 << 20,
		},
		Heartbeat: Heartbeat{Period: 100 * time.Millisecond, Limit: 500 * time.Millisecond, DaemonGrace: 5 * time.Second},
		Arbiter: Arbiter{
			Etcd:  Etcd{Endpoints: []string{}, Prefix: "/virt-ft", Timeout: 5 * time.Second},
			Fence: Fence{Options: map[string]string{}, Timeout: time.Minute},
		},
		Web: Web{Names: []string{}},
		Log: Log{Level: "info", Format: LogAuto},
	}
}

// Error is a mistake in a configuration file.
type Error struct {
	Path string
	Line int    // 0 when unknown
	Key  string // dotted, empty when the file is not TOML
	Why  string
}

// Error implements error.
func (e *Error) Error() string {
	var parts []string
	switch {
	case e.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", e.Path, e.Line))
	case e.Path != "": // of Validate: no file
		parts = append(parts, e.Path)
	}
	if e.Key != "" {
		parts = append(parts, e.Key)
	}
	return strings.Join(append(parts, e.Why), ": ")
}

// Load reads the file at path. A missing file at DefaultPath means all
// defaults; any other missing file is an error (fs.ErrNotExist).
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && path == DefaultPath {
		return Parse(path, "")
	}
	if err != nil {
		return Config{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return Config{}, err
	}
	if len(b) > maxFileBytes {
		return Config{}, &Error{Path: path, Why: fmt.Sprintf("longer than %d bytes", maxFileBytes)}
	}
	return Parse(path, string(b))
}

// Parse is Load for a text; path only names it in errors. All mistakes are
// reported together (errors.Join of *Error).
func Parse(path, text string) (Config, error) {
	c := Default()
	meta, err := toml.Decode(text, &c)
	if err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) {
			why := perr.Message
			if why == "" {
				why = perr.Error()
			}
			return Config{}, &Error{Path: path, Line: perr.Position.Line, Key: perr.LastKey, Why: why}
		}
		return Config{}, &Error{Path: path, Why: err.Error()}
	}
	lines := findLines(text)
	var mistakes []error
	for _, key := range meta.Undecoded() {
		if parentUndecoded(meta, key) {
			continue // its table is reported
		}
		mistakes = append(mistakes, &Error{Path: path, Line: lines.of(key), Key: key.String(),
			Why: "unknown key" + suggestion(key)})
	}
	if err := c.derive(); err != nil {
		mistakes = append(mistakes, err)
	}
	for _, m := range c.mistakes() {
		m.Path, m.Line = path, lines.of(toml.Key(splitKey(m.Key)))
		mistakes = append(mistakes, m)
	}
	if len(mistakes) > 0 {
		return Config{}, errors.Join(mistakes...)
	}
	return c, nil
}

// derive fills what depends on the machine or on other keys.
func (c *Config) derive() error {
	if c.Control.Socket == "" {
		c.Control.Socket = filepath.Join(c.RunDir, "control.sock")
	}
	if c.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host is not set and the machine has no name: %w", err)
		}
		c.Host = name
	}
	return nil
}

// PeerAddress returns the address:port of a peer: that of the [peers] table, or
// the name itself taken as an address, with DefaultPort where none is given.
func (c Config) PeerAddress(peer string) string {
	address := peer
	if a, ok := c.Peers[peer]; ok {
		address = a
	}
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(trimBrackets(address), DefaultPort)
}

// trimBrackets turns "[::1]" into "::1", which is what JoinHostPort expects.
func trimBrackets(address string) string {
	if n := len(address); n >= 2 && address[0] == '[' && address[n-1] == ']' {
		return address[1 : n-1]
	}
	return address
}
