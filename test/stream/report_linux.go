package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/virt-ft/virt-ft/test/tool"
)

// hostTable has a cost for each mover and round, and for iperf3 with each
// number of connections.
type hostTable struct {
	costs [][]cost
	iperf map[int][]cost
}

// hostRounds takes everything in turn, so that all share the machine's weather.
// The first round warms up and does not count.
func hostRounds(ctx context.Context, o options, movers []*mover, iperf *iperf3) (*hostTable, error) {
	t := &hostTable{costs: make([][]cost, len(movers)), iperf: map[int][]cost{}}
	bytes := int64(o.hostMiB) << 20
	for round := range o.host + 1 {
		for i, m := range movers {
			c, err := measure(ctx, m, bytes)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				t.costs[i] = append(t.costs[i], c)
			}
		}
		for _, n := range counts() {
			if iperf == nil || round == 0 {
				continue
			}
			c, err := iperf.move(ctx, n, bytes)
			if err != nil {
				return nil, err
			}
			t.iperf[n] = append(t.iperf[n], c)
		}
		if round > 0 {
			say("loopback, round %d of %d: memcpy %.2f GB/s, one stream %.2f", round, o.host, t.costs[0][round-1].gbps(), t.costs[1][round-1].gbps())
		}
	}
	return t, nil
}

// medianOf is the median of a figure of all rounds.
func medianOf(costs []cost, f func(round int, c cost) float64) float64 {
	var all []float64
	for i, c := range costs {
		all = append(all, f(i, c))
	}
	return tool.Median(all)
}

// lines sums up, and notes the metrics. The first mover is the memcpy.
func (t *hostTable) lines(movers []*mover, r *tool.Result) (all []hostLine) {
	floor := t.costs[0]
	speed := func(_ int, c cost) float64 { return c.gbps() }
	toFloor := func(i int, c cost) float64 { return c.gbps() / floor[i].gbps() }
	for i, m := range movers {
		l := hostLine{Name: m.name, Streams: m.streams, GBps: tool.Round3(medianOf(t.costs[i], speed)), VsMemcpy: tool.Round3(medianOf(t.costs[i], toFloor))}
		l.CPUNsMiB = tool.Round3(medianOf(t.costs[i], func(_ int, c cost) float64 { return float64(c.cpuNs) / float64(c.bytes>>20) }))
		if peer := t.iperf[m.streams]; len(peer) > 0 && i > 0 {
			l.VsIperf3 = tool.Round3(medianOf(t.costs[i], func(i int, c cost) float64 { return c.gbps() / peer[i].gbps() }))
		}
		all = append(all, l)
		switch m.name {
		case "stream":
			r.Metric(metricName("stream_vs_memcpy", m.streams), l.VsMemcpy)
			if l.VsIperf3 > 0 {
				r.Metric(metricName("stream_vs_iperf3", m.streams), l.VsIperf3)
			}
		case "replica":
			r.Metric(metricName("replica_vs_memcpy", m.streams), l.VsMemcpy)
		}
	}
	for _, n := range counts() {
		if costs := t.iperf[n]; len(costs) > 0 {
			all = append(all, hostLine{Name: "iperf3", Streams: n, GBps: tool.Round3(medianOf(costs, speed)), VsMemcpy: tool.Round3(medianOf(costs, toFloor))})
		}
	}
	return all
}

// guestResult is the guest's part.
type guestResult struct {
	Rounds   int       `json:"rounds"`
	MiB      int       `json:"mib"`
	Chunk    int       `json:"chunk_bytes"`
	NIC      nic       `json:"nic"`
	Plain    guestLine `json:"plain"`
	ZeroCopy guestLine `json:"zero_copy"`
	// Ratios of zero-copy to plain of the same round, as medians; CPURatio is
	// of the guest's busy time, and the others are to judge it by.
	CPURatio        float64 `json:"cpu_ratio"`
	VCPURatio       float64 `json:"vcpu_ratio"`    // of what its virtual CPUs ran, from outside
	ProcessRatio    float64 `json:"process_ratio"` // of what its process used, user and system
	ThroughputRatio float64 `json:"throughput_ratio"`
	NotCopiedShare  float64 `json:"not_copied_share"`
}

// guestLine is one way to send: medians over all rounds, for each GiB.
type guestLine struct {
	GBps          float64 `json:"gb_per_s"`
	BusyMs        float64 `json:"busy_ms_per_gib"`
	VCPUMs        float64 `json:"vcpu_ms_per_gib"`
	QEMUMs        float64 `json:"qemu_ms_per_gib"` // QEMU's other threads: what carries frames to the tap
	UserMs        float64 `json:"process_user_ms_per_gib"`
	SystemMs      float64 `json:"process_system_ms_per_gib"`
	SoftirqMs     float64 `json:"softirq_ms_per_gib"`
	ZeroCopyShare float64 `json:"zero_copy_share"` // of the bytes
	Completions   uint64  `json:"completions"`     // of all rounds
	Copied        uint64  `json:"copied_completions"`
	NoBuffers     uint64  `json:"no_buffers"`
	LateMs        float64 `json:"late_ms"`
	Mode          string  `json:"mode"`
}

// pair is a round: the guest sent as much in both ways.
type pair struct{ plain, zerocopy sent }

func lineOf(pairs []pair, which func(pair) sent) (l guestLine) {
	mid := func(f func(sent) float64) float64 {
		var all []float64
		for _, p := range pairs {
			all = append(all, f(which(p)))
		}
		return tool.Round3(tool.Median(all))
	}
	perGiB := func(f func(sent) int64) float64 {
		return mid(func(s sent) float64 { return float64(f(s)) / 1e6 / (float64(s.Bytes) / (1 << 30)) })
	}
	l.GBps = mid(func(s sent) float64 { return float64(s.Bytes) / float64(s.WallNs) })
	l.BusyMs = perGiB(func(s sent) int64 { return s.BusyNs })
	l.VCPUMs = perGiB(func(s sent) int64 { return s.vcpuNs })
	l.QEMUMs = perGiB(func(s sent) int64 { return s.qemuNs })
	l.UserMs = perGiB(func(s sent) int64 { return s.SelfUserNs })
	l.SystemMs = perGiB(func(s sent) int64 { return s.SelfSystemNs })
	l.SoftirqMs = perGiB(func(s sent) int64 { return s.SoftirqNs })
	l.ZeroCopyShare = mid(func(s sent) float64 { return float64(s.ZeroCopyBytes) / float64(s.Bytes) })
	l.LateMs = mid(func(s sent) float64 { return float64(s.LateNs) / 1e6 })
	for _, p := range pairs {
		s := which(p)
		l.Completions += s.Completions
		l.Copied += s.Copied
		l.NoBuffers += s.NoBuffers
		l.Mode = s.Mode
	}
	return l
}

func summarize(pairs []pair) guestResult {
	g := guestResult{Rounds: len(pairs)}
	g.Plain = lineOf(pairs, func(p pair) sent { return p.plain })
	g.ZeroCopy = lineOf(pairs, func(p pair) sent { return p.zerocopy })
	ratio := func(f func(sent) int64) float64 {
		var all []float64
		for _, p := range pairs {
			if floor := f(p.plain); floor > 0 {
				all = append(all, float64(f(p.zerocopy))/float64(floor))
			}
		}
		return tool.Round3(tool.Median(all))
	}
	g.CPURatio = ratio(func(s sent) int64 { return s.BusyNs })
	g.VCPURatio = ratio(func(s sent) int64 { return s.vcpuNs })
	g.ProcessRatio = ratio(func(s sent) int64 { return s.SelfUserNs + s.SelfSystemNs })
	g.ThroughputRatio = tool.Ratio(1, ratio(func(s sent) int64 { return s.WallNs }))
	if all := g.ZeroCopy.Completions; all > 0 {
		g.NotCopiedShare = tool.Round3(float64(all-g.ZeroCopy.Copied) / float64(all))
	}
	return g
}

// sweepLine compares both ways with one size of chunk.
type sweepLine struct {
	Chunk int `json:"chunk_bytes"`
	guestResult
}

// print shows what was measured. Errors of w show in what is missing.
func (d *details) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(d.Host) > 0 {
		fmt.Fprintln(t, "\nloopback\tstreams\tGB/s\tx memcpy\tx iperf3\tCPU ns/MiB\t")
		for _, l := range d.Host {
			fmt.Fprintf(t, "%s\t%d\t%.2f\t%.3f\t%.3f\t%.0f\t\n", l.Name, l.Streams, l.GBps, l.VsMemcpy, l.VsIperf3, l.CPUNsMiB)
		}
	}
	guests := d.Sweep
	if d.Guest != nil {
		guests = append([]sweepLine{{d.Guest.Chunk, *d.Guest}}, guests...)
	}
	if len(guests) > 0 {
		fmt.Fprintln(t, "\nguest, per GiB\tchunk, KiB\tGB/s\tbusy, ms\tvCPU, ms\tQEMU, ms\tprocess, ms\tsoftirq, ms\tnot copied\tratio busy\tvCPU\tprocess\tspeed\t")
		for _, g := range guests {
			for i, l := range []guestLine{g.Plain, g.ZeroCopy} {
				fmt.Fprintf(t, "%s\t%d\t%.2f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t", [...]string{"plain", "zero-copy"}[i], g.Chunk>>10, l.GBps,
					l.BusyMs, l.VCPUMs, l.QEMUMs, l.UserMs+l.SystemMs, l.SoftirqMs)
				if i == 1 {
					fmt.Fprintf(t, "%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t", g.NotCopiedShare, g.CPURatio, g.VCPURatio, g.ProcessRatio, g.ThroughputRatio)
				}
				fmt.Fprintln(t)
			}
		}
	}
	_ = t.Flush()
}
