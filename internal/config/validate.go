package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Bounds of values. Each says in its message why it is there.
const (
	epochMinFloor      = time.Millisecond
	epochIdleCeiling   = 10 * time.Second
	pauseMaxCeiling    = 10 * time.Second
	pauseShareCeiling  = 0.9
	inFlightMax        = 64
	ackMaxFloor        = 10 * time.Millisecond
	throttleCeiling    = 0.95
	streamsMax         = 8
	heartbeatFloor     = 10 * time.Millisecond
	heartbeatCeiling   = time.Minute
	heartbeatsPerLimit = 3
	daemonGraceCeiling = 10 * time.Minute
	queueBytesFloor    = 1 << 20 // a few of the largest frames
	queueBytesCeiling  = 16 << 30
	queueFramesFloor   = 256 // a virtio ring
	queueFramesCeiling = 16 << 20
	heldMaxFloor       = 50 * time.Millisecond
	heldMaxCeiling     = time.Hour
	inputBytesFloor    = 128 << 10
	inputBytesCeiling  = 64 << 20
	stallFloor         = 100 * time.Millisecond
	stallCeiling       = time.Minute
	diskQueueFloor     = 4 << 20
	diskQueueCeiling   = 1 << 30
	journalFloor       = 16 << 20
	journalCeiling     = 64 << 30
	openWithinFloor    = 100 * time.Millisecond
	openWithinCeiling  = time.Minute
	endpointsMax       = 16
	askFloor           = 100 * time.Millisecond
	askCeiling         = time.Minute
	fenceCeiling       = 10 * time.Minute
	socketPathMax      = 107 // sun_path less its NUL
	nameMax            = 64
	peersMax           = 256
	allowedNamesMax    = 256
	webNamesMax        = 16
	allowedNameMax     = 255 // of a DNS name
)

// Validate checks a configuration that was not parsed from a file.
func (c Config) Validate() error {
	if m := c.mistakes(); len(m) > 0 {
		return m[0]
	}
	return nil
}

type checker struct{ found []*Error }

func (k *checker) require(ok bool, key, why string, args ...any) {
	if !ok {
		k.found = append(k.found, &Error{Key: key, Why: fmt.Sprintf(why, args...)})
	}
}

func (c Config) mistakes() []*Error {
	k := &checker{}
	k.require(validName(c.Host), "host",
		"%q is not a host name: 1 to %d letters, digits, '-', '_' and '.', not starting with '.'", c.Host, nameMax)
	k.require(validHostPort(c.Listen), "listen", "%q is not ADDRESS:PORT, such as 0.0.0.0:%s", c.Listen, DefaultPort)
	k.require(strings.HasPrefix(c.LibvirtURI, "qemu") && strings.Contains(c.LibvirtURI, ":///"), "libvirt_uri",
		"%q is not a local QEMU driver such as qemu:///system: the daemon traces QEMU processes of its own host", c.LibvirtURI)
	k.dir("state_dir", c.StateDir)
	k.dir("run_dir", c.RunDir)
	k.require(c.Nice >= -20 && c.Nice <= 19, "nice", "%d is not between -20 and 19", c.Nice)
	k.dir("control.socket", c.Control.Socket)
	k.require(len(c.Control.Socket) <= socketPathMax, "control.socket",
		"path has %d bytes, a Unix socket's may have %d", len(c.Control.Socket), socketPathMax)
	c.Transport.check(k)
	c.Epoch.check(k)
	c.Output.check(k)
	c.Disks.check(k)
	c.Heartbeat.check(k)
	c.Arbiter.check(k)
	c.Web.check(k)
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.oneOf("log.format", c.Log.Format, LogAuto, LogJournal, LogText, LogJSON)
	c.checkPeers(k)
	return k.found
}

func (k *checker) dir(key, path string) {
	k.require(filepath.IsAbs(path) && path == filepath.Clean(path) && path != "/", key,
		"%q is not an absolute, clean path", path)
}

func (k *checker) oneOf(key, value string, allowed ...string) {
	k.require(slices.Contains(allowed, value), key, "%q is not one of %s", value, strings.Join(quoted(allowed), ", "))
}

func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strconv.Quote(w)
	}
	return out
}

func (t Transport) check(k *checker) {
	k.oneOf("transport.mode", t.Mode, TransportTLS, TransportPlain)
	k.oneOf("transport.pages", t.Pages, TransportTLS, TransportPlain)
	k.require(len(t.AllowedNames) <= allowedNamesMax, "transport.allowed_names", "%d names, at most %d", len(t.AllowedNames), allowedNamesMax)
	for _, name := range t.AllowedNames {
		k.require(name != "" && len(name) <= allowedNameMax && !strings.ContainsAny(name, " */"), "transport.allowed_names",
			"%q is not a name or an address as certificates have them; patterns are not taken", name)
	}
	k.require(t.Streams >= 1 && t.Streams <= streamsMax, "transport.streams", "%d is not between 1 and %d", t.Streams, streamsMax)
	k.oneOf("transport.compress", t.Compress, CompressAuto, CompressOn, CompressOff)
	if t.Mode == TransportPlain {
		return
	}
	k.dir("transport.ca", t.CA)
	k.dir("transport.server_cert", t.ServerCert)
	k.dir("transport.server_key", t.ServerKey)
	k.dir("transport.client_cert", t.ClientCert)
	k.dir("transport.client_key", t.ClientKey)
}

func (e Epoch) check(k *checker) {
	k.require(e.Min >= epochMinFloor, "epoch.min",
		"%s is below %s: a checkpoint takes longer than that", e.Min, epochMinFloor)
	k.require(e.Idle >= e.Min, "epoch.idle", "%s is below epoch.min (%s)", e.Idle, e.Min)
	k.require(e.Idle <= epochIdleCeiling, "epoch.idle",
		"%s is above %s: as much of the guest's work is lost at a failover", e.Idle, epochIdleCeiling)
	k.require(e.PauseMax > 0 && e.PauseMax <= pauseMaxCeiling, "epoch.pause_max",
		"%s is not above 0 and at most %s", e.PauseMax, pauseMaxCeiling)
	k.require(e.PauseShareMax > 0 && e.PauseShareMax <= pauseShareCeiling, "epoch.pause_share_max",
		"%v is not above 0 and at most %v", e.PauseShareMax, pauseShareCeiling)
	k.require(e.InFlight >= 1 && e.InFlight <= inFlightMax, "epoch.in_flight",
		"%d is not between 1 and %d", e.InFlight, inFlightMax)
	k.require(e.AckMax >= ackMaxFloor, "epoch.ack_max", "%s is below %s: every guest would be slowed down", e.AckMax, ackMaxFloor)
	k.require(e.ThrottleMax >= 0 && e.ThrottleMax <= throttleCeiling, "epoch.throttle_max",
		"%v is not between 0 (never slow the guest down) and %v", e.ThrottleMax, throttleCeiling)
}

func (h Heartbeat) check(k *checker) {
	k.require(h.Period >= heartbeatFloor, "heartbeat.period", "%s is below %s", h.Period, heartbeatFloor)
	k.require(h.Limit >= heartbeatsPerLimit*h.Period, "heartbeat.limit",
		"%s is less than %d periods of %s: a single late answer would count as a lost host", h.Limit, heartbeatsPerLimit, h.Period)
	k.require(h.Limit <= heartbeatCeiling, "heartbeat.limit", "%s is above %s", h.Limit, heartbeatCeiling)
	k.require(h.DaemonGrace >= 0 && h.DaemonGrace <= daemonGraceCeiling, "heartbeat.daemon_grace",
		"%s is not between 0 (never take over for that) and %s", h.DaemonGrace, daemonGraceCeiling)
}

func (o Output) check(k *checker) {
	k.require(o.QueueBytesMax >= queueBytesFloor && o.QueueBytesMax <= queueBytesCeiling, "output.queue_bytes_max",
		"%d is not between %d and %d", o.QueueBytesMax, queueBytesFloor, queueBytesCeiling)
	k.require(o.QueueFramesMax >= queueFramesFloor && o.QueueFramesMax <= queueFramesCeiling, "output.queue_frames_max",
		"%d is not between %d and %d", o.QueueFramesMax, queueFramesFloor, queueFramesCeiling)
	k.require(o.HeldMax == 0 || o.HeldMax >= heldMaxFloor && o.HeldMax <= heldMaxCeiling, "output.held_max",
		"%s is neither 0 (wait as long as it takes) nor between %s and %s", o.HeldMax, heldMaxFloor, heldMaxCeiling)
	k.require(o.InputBytesMax >= inputBytesFloor && o.InputBytesMax <= inputBytesCeiling, "output.input_bytes_max",
		"%d is not between %d and %d; with log_inputs = false nothing is logged", o.InputBytesMax, inputBytesFloor, inputBytesCeiling)
	k.require(o.OpenWithin >= openWithinFloor && o.OpenWithin <= openWithinCeiling, "output.open_within",
		"%s is not between %s and %s", o.OpenWithin, openWithinFloor, openWithinCeiling)
}

func (d Disks) check(k *checker) {
	k.require(strings.HasPrefix(d.Place, "/") || strings.HasPrefix(d.Place, "{source}") || strings.HasPrefix(d.Place, "{dir}"), "disks.place",
		"%q does not become an absolute path", d.Place)
	k.oneOf("disks.durability", d.Durability, DurabilityMemory, DurabilityFsync)
	k.require(d.StallMax >= stallFloor && d.StallMax <= stallCeiling, "disks.stall_max",
		"%s is not between %s and %s", d.StallMax, stallFloor, stallCeiling)
	k.require(d.QueueBytesMax >= diskQueueFloor && d.QueueBytesMax <= diskQueueCeiling, "disks.queue_bytes_max",
		"%d is not between %d and %d", d.QueueBytesMax, diskQueueFloor, diskQueueCeiling)
	k.require(d.JournalBytesMax >= journalFloor && d.JournalBytesMax <= journalCeiling, "disks.journal_bytes_max",
		"%d is not between %d and %d", d.JournalBytesMax, int64(journalFloor), int64(journalCeiling))
}

func (a Arbiter) check(k *checker) {
	kinds := strings.Split(a.Kind, ArbiterThen)
	for _, kind := range kinds {
		k.require(kind != "" || len(kinds) == 1, "arbiter.kind", "%q: a name is missing beside a %s", a.Kind, ArbiterThen)
		k.oneOf("arbiter.kind", kind, "", ArbiterFile, ArbiterEtcd, ArbiterFence, ArbiterManual)
	}
	has := func(kind string) bool { return slices.Contains(kinds, kind) }
	if a.Dir != "" {
		k.dir("arbiter.dir", a.Dir)
	}
	k.require(!has(ArbiterFile) || a.Dir != "", "arbiter.dir",
		"arbiter.kind \"file\" needs a directory on storage that both hosts share")
	a.Etcd.check(k, has(ArbiterEtcd))
	a.Fence.check(k, has(ArbiterFence))
}

func (e Etcd) check(k *checker, wanted bool) {
	k.require(!wanted || len(e.Endpoints) > 0, "arbiter.etcd.endpoints", "arbiter.kind \"etcd\" needs the URLs of a cluster's members")
	k.require(len(e.Endpoints) <= endpointsMax, "arbiter.etcd.endpoints", "%d, at most %d", len(e.Endpoints), endpointsMax)
	for _, url := range e.Endpoints {
		k.require(strings.HasPrefix(url, "https://") || strings.HasPrefix(url, "http://"), "arbiter.etcd.endpoints", "%q is not a URL like https://HOST:2379", url)
	}
	k.require((e.CertFile == "") == (e.KeyFile == ""), "arbiter.etcd.cert_file", "cert_file and key_file belong together")
	k.require((e.Username == "") == (e.PasswordFile == ""), "arbiter.etcd.username", "username and password_file belong together")
	k.require(strings.HasPrefix(e.Prefix, "/"), "arbiter.etcd.prefix", "%q does not begin with a slash", e.Prefix)
	k.require(e.Timeout >= askFloor && e.Timeout <= askCeiling, "arbiter.etcd.timeout", "%s is not between %s and %s", e.Timeout, askFloor, askCeiling)
}

func (f Fence) check(k *checker, wanted bool) {
	k.require(!wanted || f.Agent != "", "arbiter.fence.agent", "arbiter.kind \"fence\" needs a fence agent, such as fence_ipmilan")
	k.require(!wanted || f.Plug != "", "arbiter.fence.plug", "arbiter.kind \"fence\" needs the peer's plug, as the agent calls it")
	k.require(f.Timeout >= askFloor && f.Timeout <= fenceCeiling, "arbiter.fence.timeout", "%s is not between %s and %s", f.Timeout, askFloor, fenceCeiling)
	k.require(f.Delay >= 0 && f.Delay <= fenceCeiling, "arbiter.fence.delay", "%s is not between 0 and %s", f.Delay, fenceCeiling)
}

func (w Web) check(k *checker) {
	address := w.Listen
	if strings.HasPrefix(address, ":") {
		address = "localhost" + address
	}
	k.require(w.Listen == "" || validHostPort(address), "web.listen", "%q is not ADDRESS:PORT, or :PORT for the loopback address", w.Listen)
	k.require(len(w.Names) <= webNamesMax, "web.names", "%d names, at most %d", len(w.Names), webNamesMax)
	for _, name := range w.Names {
		k.require(validName(name), "web.names", "%q is not a host name", name)
	}
}

func (c Config) checkPeers(k *checker) {
	k.require(len(c.Peers) <= peersMax, "peers", "%d peers, at most %d", len(c.Peers), peersMax)
	names := make([]string, 0, len(c.Peers))
	for name := range c.Peers {
		names = append(names, name)
	}
	sort.Strings(names) // messages in a stable order
	for _, name := range names {
		key := "peers." + name
		k.require(validName(name), key, "%q is not a host name", name)
		k.require(name != c.Host, key, "this host is its own peer: every host needs a name of its own")
		k.require(validHostPort(c.PeerAddress(name)), key, "%q is not an address or ADDRESS:PORT", c.Peers[name])
	}
}

func validName(name string) bool {
	if name == "" || len(name) > nameMax || name[0] == '.' || name[0] == '-' {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) < 0
}

func validHostPort(address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.ContainsAny(host, " /") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
