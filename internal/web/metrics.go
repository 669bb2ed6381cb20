package web

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/watch"
)

// certificatesMax bounds the certificates that are shown.
const certificatesMax = 16

// scrapesMax is how many scrapes are answered at once; further ones are told to
// come again.
const scrapesMax = 4

// Facts are what metrics and the page say of the host, beside what is watched.
type Facts struct {
	Version control.Version // with the host's name
	Memory  MemoryFacts
	// Certificates are what the transport uses; none when it is not TLS.
	Certificates []Certificate
}

// MemoryFacts is the state of the books of the host's memory, in bytes.
type MemoryFacts struct {
	Known          bool
	PromisedBytes  uint64 // to standbys, and not resident yet
	RoomBytes      uint64 // that can still be promised
	AvailableBytes uint64
	Standbys       int
}

// Certificate is one that daemons show or trust.
type Certificate struct {
	Use      string // ca, server or client
	NotAfter time.Time
}

// Metrics serves what Prometheus reads, from a registry of its own. facts is asked
// at each scrape and may be called concurrently.
func Metrics(w *watch.Host, facts func() Facts) http.Handler {
	return promhttp.HandlerFor(registry(w, facts), promhttp.HandlerOpts{MaxRequestsInFlight: scrapesMax})
}

func registry(w *watch.Host, facts func() Facts) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{watch: w, facts: facts, d: newDescriptions()}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// collector makes all metrics at each scrape from what is remembered.
type collector struct {
	watch *watch.Host
	facts func() Facts
	d     *descriptions
}

// descriptions are what there is. Histograms and counters of a domain are there as
// long as it is remembered, the others as long as its protection lives.
type descriptions struct {
	all []*prometheus.Desc

	pause, phase, interval, ack, ship, dirty, sent *prometheus.Desc

	safe, role, state, generation, peer, commitAge, paused99 *prometheus.Desc
	memory, rate, throttle, epochAcked, failoverS            *prometheus.Desc
	heldFrames, heldBytes, oldest, stalled, lease            *prometheus.Desc
	released, dropped, inputs, sentTotal                     *prometheus.Desc
	drift, clockErr, clockMissed, hostClock                  *prometheus.Desc
	syncDone, syncSize                                       *prometheus.Desc

	build, promised, room, standbys, expiry, failovers, refused *prometheus.Desc
}

func newDescriptions() *descriptions {
	d := &descriptions{}
	of := func(name, help string, labels ...string) *prometheus.Desc {
		desc := prometheus.NewDesc("virt_ft_"+name, help, labels, nil)
		d.all = append(d.all, desc)
		return desc
	}
	const domain = "domain"
	d.pause = of("pause_seconds", "How long a checkpoint stopped the guest.", domain)
	d.phase = of("pause_phase_seconds", "Where the time of a checkpoint went.", domain, "phase")
	d.interval = of("epoch_interval_seconds", "Time between two checkpoints.", domain)
	d.ack = of("ack_latency_seconds", "From a pause until the backup had all of the epoch.", domain)
	d.ship = of("ship_latency_seconds", "From a pause until the last byte of the epoch was handed to the kernel.", domain)
	d.dirty = of("epoch_dirty_pages", "Pages of 4 KiB that were written in an epoch.", domain)
	d.sent = of("epoch_sent_bytes", "Bytes sent for an epoch: memory, device state, output and disks.", domain)

	d.safe = of("protected", "1 while the domain survives the loss of one host, as this one sees it, else 0.", domain)
	d.role = of("role", "1 for the role that this host has for the domain, 0 for the other.", domain, "role")
	d.state = of("state", "1 for the state that the domain is in here, 0 for the others of its role.", domain, "role", "state")
	d.generation = of("generation", "How often the right to run the guest was decided.", domain)
	d.peer = of("peer_info", "Always 1; the label names the other host.", domain, "peer")
	d.commitAge = of("last_commit_age_seconds", "Age of the last checkpoint that the backup has.", domain)
	d.epochAcked = of("acknowledged_epoch", "Number of the last epoch that the backup has, within the generation.", domain)
	d.paused99 = of("pause_recent_p99_seconds", "99th percentile of the last pauses.", domain)
	d.memory = of("guest_memory_bytes", "Memory of the guest.", domain)
	d.rate = of("send_rate_bytes_per_second", "Bytes sent to the backup in a second, recently.", domain)
	d.throttle = of("throttle_ratio", "Share of its time that the guest is held so that the link keeps up.", domain)
	d.failoverS = of("last_failover_seconds", "From the detection to the running guest, of the last failover here; 0 if there was none.", domain)

	d.heldFrames = of("held_frames", "Frames of the guest that wait for the backup.", domain)
	d.heldBytes = of("held_bytes", "Bytes of the frames that wait for the backup.", domain)
	d.oldest = of("held_oldest_age_seconds", "For how long the oldest of the held frames has waited.", domain)
	d.stalled = of("output_stalled", "1 while held frames do not leave, else 0.", domain)
	d.lease = of("output_lease_seconds", "What is left of the right to release frames.", domain)
	d.released = of("released_frames_total", "Frames that were released.", domain)
	d.dropped = of("dropped_frames_total", "Frames dropped because the queue was full (full), and times that one was kept back because the lease was over (lease).", domain, "reason")
	d.inputs = of("logged_inputs_total", "Frames for the guest that were logged for the backup.", domain)
	d.sentTotal = of("sent_bytes_total", "Bytes sent to the backup.", domain)

	d.drift = of("clock_drift_seconds", "What the guest's clock has gained since the daemon looks after it.", domain)
	d.clockErr = of("clock_epoch_error_seconds", "What the guest's clock gained in the last epoch.", domain)
	d.clockMissed = of("clock_missed_resumes_total", "Resumes at which the guest's clock was not kept.", domain)
	d.hostClock = of("host_clock_ahead_seconds", "The peer's clock less this host's, 0 while nothing contradicts.", domain)

	d.syncDone = of("sync_copied_bytes", "Copied by the initial sync that is under way.", domain)
	d.syncSize = of("sync_size_bytes", "To be copied by the initial sync that is under way.", domain)

	d.build = of("build_info", "Always 1; the labels say what the daemon was built from.", "version", "revision", "goversion", "host")
	d.promised = of("memory_promised_bytes", "Memory of this host that is promised to standbys and not resident yet.")
	d.room = of("memory_room_bytes", "Memory of this host that can still be promised to standbys.")
	d.standbys = of("standbys", "Standbys that this host has promised memory to.")
	d.expiry = of("certificate_expiry_timestamp_seconds", "When a certificate of the transport ends, in seconds since 1970.", "use")
	d.failovers = of("failovers_total", "Guests that went on here, by what made this host claim them.", "cause")
	d.refused = of("refused_connections_total", "Connections of other daemons that were not let in.")
	return d
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.d.all {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := sink{out}
	c.host(s)
	named := map[string]watch.View{} // of two of one name, the live one, or the later
	for _, r := range c.watch.Domains() {
		v := r.View()
		if old, there := named[v.Domain]; there && (old.Live && !v.Live || old.Live == v.Live && old.Seen.After(v.Seen)) {
			continue
		}
		named[v.Domain] = v
	}
	for _, v := range named {
		c.epochs(s, v)
		if v.Live {
			c.status(s, &v.Status)
		}
	}
}

func (c *collector) host(s sink) {
	f, t := c.facts(), c.watch.Totals()
	s.gauge(c.d.build, 1, f.Version.Version, f.Version.Revision, f.Version.Go, f.Version.Host)
	if m := f.Memory; m.Known {
		s.gauge(c.d.promised, float64(m.PromisedBytes))
		s.gauge(c.d.room, float64(m.RoomBytes))
		s.gauge(c.d.standbys, float64(m.Standbys))
	}
	ends := map[string]time.Time{} // of two for one use, the one that ends first
	for _, cert := range f.Certificates[:min(len(f.Certificates), certificatesMax)] {
		if old, there := ends[cert.Use]; !cert.NotAfter.IsZero() && (!there || cert.NotAfter.Before(old)) {
			ends[cert.Use] = cert.NotAfter
		}
	}
	for use, end := range ends {
		s.gauge(c.d.expiry, float64(end.Unix()), use)
	}
	if len(t.Failovers) == 0 {
		s.counter(c.d.failovers, 0, "peer silent") // so that the first one is an increase
	}
	for cause, n := range t.Failovers {
		s.counter(c.d.failovers, float64(n), cause)
	}
	s.counter(c.d.refused, float64(t.Refused))
}

func (c *collector) epochs(s sink, v watch.View) {
	n, seconds := &v.Counts, watch.DurationBoundsS()
	if n.Paused.Count == 0 {
		return // it is a standby, or had no epoch yet
	}
	s.histogram(c.d.pause, &n.Paused, seconds, v.Domain)
	for i, name := range watch.PhaseNames() {
		s.histogram(c.d.phase, &n.Phases[i], seconds, v.Domain, name)
	}
	s.histogram(c.d.interval, &n.Interval, seconds, v.Domain)
	s.histogram(c.d.ack, &n.Ack, seconds, v.Domain)
	s.histogram(c.d.ship, &n.Ship, seconds, v.Domain)
	s.histogram(c.d.dirty, &n.DirtyPages, watch.PageBounds(), v.Domain)
	s.histogram(c.d.sent, &n.SentBytes, watch.ByteBounds(), v.Domain)
}

func (c *collector) status(s sink, st *control.Status) {
	d, name := c.d, st.Domain
	s.gauge(d.safe, number(st.Safe()), name)
	for _, role := range []string{control.RolePrimary, control.RoleBackup} {
		s.gauge(d.role, number(st.Role == role), name, role)
	}
	for _, state := range control.States(st.Role) {
		s.gauge(d.state, number(st.State == state), name, st.Role, state)
	}
	if !slices.Contains(control.States(st.Role), st.State) {
		s.gauge(d.state, 1, name, st.Role, st.State)
	}
	s.gauge(d.generation, float64(st.Generation), name)
	s.gauge(d.peer, 1, name, st.Peer)
	s.gauge(d.commitAge, st.LastCommitAgeMs/1000, name)
	s.gauge(d.memory, float64(st.MemoryBytes), name)
	s.gauge(d.failoverS, st.FailoverMs/1000, name)
	if st.Role == control.RolePrimary {
		s.gauge(d.epochAcked, float64(st.Epoch.Acked), name)
		s.gauge(d.paused99, st.Pause.P99Ms/1000, name)
		s.gauge(d.rate, st.RateBps, name)
		s.gauge(d.throttle, st.Throttle.Share, name)
		s.counter(d.sentTotal, float64(st.BytesSent), name)
		s.gauge(d.drift, st.Clock.DriftUs/1e6, name)
		s.gauge(d.clockErr, st.Clock.ErrUs/1e6, name)
		s.counter(d.clockMissed, float64(st.Clock.Missed), name)
	}
	if p := st.Clock.Peer; p != nil {
		s.gauge(d.hostClock, p.AheadUs/1e6, name)
	}
	if o := st.Output; o != nil {
		c.output(s, name, o)
	}
	if y := st.Sync; y != nil {
		s.gauge(d.syncDone, float64(y.DoneBytes), name)
		s.gauge(d.syncSize, float64(y.TotalBytes), name)
	}
}

func (c *collector) output(s sink, name string, o *control.OutputStatus) {
	s.gauge(c.d.heldFrames, float64(o.HeldFrames), name)
	s.gauge(c.d.heldBytes, float64(o.HeldBytes), name)
	s.gauge(c.d.oldest, o.OldestMs/1000, name)
	s.gauge(c.d.stalled, number(o.Stalled != ""), name)
	s.gauge(c.d.lease, o.LeaseMs/1000, name)
	s.counter(c.d.released, float64(o.ReleasedFrames), name)
	s.counter(c.d.dropped, float64(o.DroppedFull), name, "full")
	s.counter(c.d.dropped, float64(o.DroppedLease), name, "lease")
	s.counter(c.d.inputs, float64(o.InputsLogged), name)
}

// sink makes metrics of numbers.
type sink struct{ out chan<- prometheus.Metric }

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.one(d, prometheus.GaugeValue, v, labels)
}

func (s sink) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.one(d, prometheus.CounterValue, v, labels)
}

func (s sink) one(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	m, err := prometheus.NewConstMetric(d, kind, v, valid(labels)...)
	if err != nil {
		m = prometheus.NewInvalidMetric(d, err)
	}
	s.out <- m
}

func (s sink) histogram(d *prometheus.Desc, h *watch.Histogram, b watch.Bounds, labels ...string) {
	buckets, sum := make(map[float64]uint64, len(b)), uint64(0)
	for i, bound := range b {
		sum += h.Buckets[i]
		buckets[bound] = sum
	}
	m, err := prometheus.NewConstHistogram(d, h.Count, h.Sum, buckets, valid(labels)...)
	if err != nil {
		m = prometheus.NewInvalidMetric(d, err)
	}
	s.out <- m
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// valid makes labels that one odd name of a peer cannot spoil a whole scrape with.
func valid(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	return labels
}
