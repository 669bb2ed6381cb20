package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
	"github.com/virt-ft/virt-ft/test/tool"
)

const (
	kindCount = 3
	rateCount = 3
	// costRate is the rate at which the daemons' own cost is told: 40 a second.
	costRate = 1
)

// speeds are pieces a second, by kind of work.
type speeds [kindCount]float64

// talk is what was measured over the network, unprotected or paced as by default.
type talk struct {
	Speed     speeds          // unprotected only
	Latencies []time.Duration // sorted
	Chatty    float64         // pieces a second of a guest that sends all the time
	ChattyUse use             // protected only
	OutMBps   float64         // bulk, from the guest
	In        sending         // to it
}

// use is what was used in a time.
type use struct {
	Took                       time.Duration
	Epochs                     uint64
	PauseMs                    float64       // median of the latest at the end
	Primary, Backup, LibvirtdA time.Duration // of the processors
}

// since is the use from one moment to another.
func (u usage) since(before usage) use {
	return use{Took: u.At.Sub(before.At), Epochs: u.Epochs - before.Epochs, PauseMs: u.PauseMs, Primary: u.Primary - before.Primary,
		Backup: u.Backup - before.Backup, LibvirtdA: u.LibvirtdA - before.LibvirtdA}
}

// plus is the use of two times, the later one behind.
func (u use) plus(o use) use {
	return use{u.Took + o.Took, u.Epochs + o.Epochs, o.PauseMs, u.Primary + o.Primary, u.Backup + o.Backup, u.LibvirtdA + o.LibvirtdA}
}

// hz is how many checkpoints a second there were.
func (u use) hz() float64 { return float64(u.Epochs) / u.Took.Seconds() }

// each is what one epoch took of some processor time, in milliseconds.
func (u use) each(of time.Duration) float64 { return of.Seconds() * 1e3 / float64(u.Epochs) }

// paced is what was measured at one forced rate.
type paced struct {
	Speed speeds
	Use   [kindCount]use
}

func (p paced) use() (all use) {
	for _, u := range p.Use {
		all = all.plus(u)
	}
	return all
}

// resident is what a process has in memory, by where it comes from.
type resident struct {
	AnonMiB   float64 `json:"anon_mib"`
	FileMiB   float64 `json:"file_mib"`   // the program, mostly
	SharedMiB float64 `json:"shared_mib"` // on the backup the standby's memory, which counts for the guest
}

func (r resident) ownMiB() float64 { return r.AnonMiB + r.FileMiB }

// memory is what the daemons have resident while they protect the guest.
type memory struct {
	Primary resident `json:"primary"`
	Backup  resident `json:"backup"`
}

// round is everything, once.
type round struct {
	Base, Protected talk
	Again           speeds // unprotected once more, behind the rest
	Stopped         bare   // with the generator, unprotected
	Paced           [rateCount]paced
	Idle            use
	Memory          memory
}

// cpu is the ratio of a kind at a rate.
func (r *round) cpu(rate, kind int) float64 { return r.Paced[rate].Speed[kind] / r.floor(kind) }

// floor is the speed of an unprotected guest, before and behind.
func (r *round) floor(kind int) float64 { return (r.Base.Speed[kind] + r.Again[kind]) / 2 }

// cpuMean is the geometric mean over all kinds, as is proper for ratios.
func (r *round) cpuMean(rate int) float64 {
	sum := 0.0
	for k := range kindCount {
		sum += math.Log(r.cpu(rate, k))
	}
	return math.Exp(sum / kindCount)
}

// added is by how much longer requests took, in milliseconds.
func (r *round) added(q float64) float64 {
	return (lab.Quantile(r.Protected.Latencies, q) - lab.Quantile(r.Base.Latencies, q)).Seconds() * 1e3
}

// line says the round in short.
func (r *round) line() string {
	return fmt.Sprintf("cpu %.2f, %.2f, %.2f of unprotected at %v checkpoints a second; chatty %.2f; tcp %.2f out, %.2f in; +%.1f ms; idle %.0f Hz",
		r.cpuMean(0), r.cpuMean(1), r.cpuMean(2), rates(), r.Protected.Chatty/r.Base.Chatty, r.Protected.OutMBps/r.Base.OutMBps,
		r.Protected.In.MBps/r.Base.In.MBps, r.added(.5), r.Idle.hz())
}

// results are all rounds.
type results struct {
	MemMiB  int
	WindowS float64
	rounds  []round
}

// over is the median of a figure over the rounds; not a number without any.
func (rs *results) over(f func(*round) float64) float64 {
	if len(rs.rounds) == 0 {
		return math.NaN()
	}
	var all []float64
	for i := range rs.rounds {
		all = append(all, f(&rs.rounds[i]))
	}
	return tool.Median(all)
}

// pooled is a quantile, in milliseconds, of the latencies of all rounds.
func (rs *results) pooled(q float64, of func(*round) *talk) float64 {
	var all []time.Duration
	for i := range rs.rounds {
		all = append(all, of(&rs.rounds[i]).Latencies...)
	}
	if len(all) == 0 {
		return math.NaN()
	}
	slices.Sort(all)
	return lab.Quantile(all, q).Seconds() * 1e3
}

func base(r *round) *talk      { return &r.Base }
func protected(r *round) *talk { return &r.Protected }

// reachedMin is the share of an asked rate from which on a guest counts as one
// that had it. One that is checkpointed less often keeps more of its speed, which
// must not pass for a better ratio at that rate.
const reachedMin = .8

// reportCPU notes the ratios at rates that were reached, and why the others are
// missing; details have them all, with the rates.
func (rs *results) reportCPU(r *tool.Result) {
	for i, hz := range rates() {
		missed := ""
		for k, kind := range kinds() {
			name := "cpu_ratio_" + rateName(i) + "_" + kind
			if got := rs.over(func(r *round) float64 { return r.Paced[i].Use[k].hz() }); got < reachedMin*float64(hz) {
				why := fmt.Sprintf("%s had %.1f checkpoints a second of %d", kind, got, hz)
				r.Skip(name, why)
				missed += ", " + why
				continue
			}
			r.Metric(name, rs.over(func(r *round) float64 { return r.cpu(i, k) }))
		}
		if name := "cpu_ratio_" + rateName(i); missed != "" {
			r.Skip(name, strings.TrimPrefix(missed, ", "))
		} else {
			r.Metric(name, rs.over(func(r *round) float64 { return r.cpuMean(i) }))
		}
		r.Metric("cpu_reached_"+rateName(i), rs.over(func(r *round) float64 { return r.Paced[i].use().hz() }))
	}
}

// report fills the closing line.
func (rs *results) report(r *tool.Result) {
	rs.reportCPU(r)
	out := rs.over(func(r *round) float64 { return r.Protected.OutMBps / r.Base.OutMBps })
	in := rs.over(func(r *round) float64 { return r.Protected.In.MBps / r.Base.In.MBps })
	gib := float64(rs.MemMiB) / 1024
	for name, v := range map[string]float64{
		"hz_idle_max":               rs.over(func(r *round) float64 { return r.Idle.hz() }),
		"latency_added_p50_ms":      rs.over(func(r *round) float64 { return r.added(.5) }),
		"latency_added_p99_ms":      rs.pooled(.99, protected) - rs.pooled(.99, base),
		"cpu_ratio_chatty":          rs.over(func(r *round) float64 { return r.Protected.Chatty / r.Base.Chatty }),
		"chatty_hz":                 rs.over(func(r *round) float64 { return r.Protected.ChattyUse.hz() }),
		"tcp_throughput_ratio":      min(out, in),
		"tcp_throughput_ratio_out":  out,
		"tcp_throughput_ratio_in":   in,
		"daemon_cpu_ms_per_epoch":   rs.over(func(r *round) float64 { u := r.Paced[costRate].use(); return u.each(u.Primary) }),
		"backup_cpu_ms_per_epoch":   rs.over(func(r *round) float64 { u := r.Paced[costRate].use(); return u.each(u.Backup) }),
		"libvirtd_cpu_ms_per_epoch": rs.over(func(r *round) float64 { u := r.Paced[costRate].use(); return u.each(u.LibvirtdA) }),
		"daemon_rss_mib_per_gib":    rs.over(func(r *round) float64 { return r.Memory.Primary.ownMiB() / gib }),
		"backup_rss_mib_per_gib":    rs.over(func(r *round) float64 { return r.Memory.Backup.ownMiB() / gib }),
	} {
		r.Metric(name, v)
	}
	const floor = "cpu_ratio_40hz_stop_cont"
	if got := rs.over(func(r *round) float64 { return r.Stopped.Hz }); got < reachedMin*stopsHz {
		r.Skip(floor, fmt.Sprintf("libvirt stopped the guest %.1f times a second, of %d", got, stopsHz))
	} else {
		r.Metric(floor, rs.over(func(r *round) float64 { return r.Stopped.Speed / r.floor(0) }))
	}
	r.Details = rs.details()
}

// cost is what runs of the daemons, at one rate and with one kind of work.
type cost struct {
	AskedHz           int     `json:"asked_hz"`
	Kind              string  `json:"kind"`      // "idle": none
	CPURatio          float64 `json:"cpu_ratio"` // also at a rate that was not reached; 0 for idle
	ReachedHz         float64 `json:"reached_hz"`
	PauseMs           float64 `json:"pause_ms"`     // by the daemon's clock
	PausedShare       float64 `json:"paused_share"` // of the guest's time, by that: what it lost otherwise, it lost to others on the processors
	PrimaryMsPerEpoch float64 `json:"primary_ms_per_epoch"`
	BackupMsPerEpoch  float64 `json:"backup_ms_per_epoch"`
	LibvirtdMsEpoch   float64 `json:"libvirtd_ms_per_epoch"`
	PrimaryMsPerS     float64 `json:"primary_ms_per_s"`
	BackupMsPerS      float64 `json:"backup_ms_per_s"`
}

// details are medians of what the ratios are made of.
type details struct {
	Rounds   int     `json:"rounds"`
	WindowS  float64 `json:"window_s"`
	MemMiB   int     `json:"mem_mib"`
	Requests int     `json:"requests"` // answered, protected and unprotected

	BasePieces     map[string]float64 `json:"base_pieces_per_s"`
	LatencyMs      map[string]float64 `json:"latency_ms"`
	TCPMBps        map[string]float64 `json:"tcp_mb_per_s"`
	InRTTMs        map[string]float64 `json:"tcp_in_rtt_ms"`          // of the sender, smoothed
	InWindow       map[string]float64 `json:"tcp_in_window_segments"` // congestion window
	Cost           []cost             `json:"cost"`
	StopContHz     float64            `json:"stop_cont_hz"` // reached by the floor
	PrimaryMemory  resident           `json:"primary_memory"`
	BackupMemory   resident           `json:"backup_memory"`
	ChattyPieces   map[string]float64 `json:"chatty_pieces_per_s"`
	ChattyMsPerS   float64            `json:"chatty_primary_ms_per_s"`
	ChattyBackupMs float64            `json:"chatty_backup_ms_per_s"`
}

func (rs *results) details() *details {
	if len(rs.rounds) == 0 {
		return nil
	}
	over := func(f func(*round) float64) float64 { return finite(rs.over(f)) }
	d := &details{Rounds: len(rs.rounds), WindowS: rs.WindowS, MemMiB: rs.MemMiB, BasePieces: map[string]float64{}}
	for i := range rs.rounds {
		d.Requests += len(rs.rounds[i].Base.Latencies) + len(rs.rounds[i].Protected.Latencies)
	}
	for k, kind := range kinds() {
		d.BasePieces[kind] = over(func(r *round) float64 { return r.floor(k) })
	}
	for _, m := range []*map[string]float64{&d.LatencyMs, &d.TCPMBps, &d.InRTTMs, &d.InWindow, &d.ChattyPieces} {
		*m = map[string]float64{}
	}
	for name, of := range map[string]func(*round) *talk{"base": base, "protected": protected} {
		d.LatencyMs[name+"_p50"] = finite(rs.pooled(.5, of))
		d.LatencyMs[name+"_p99"] = finite(rs.pooled(.99, of))
		d.TCPMBps[name+"_out"] = over(func(r *round) float64 { return of(r).OutMBps })
		d.TCPMBps[name+"_in"] = over(func(r *round) float64 { return of(r).In.MBps })
		d.InRTTMs[name] = over(func(r *round) float64 { return of(r).In.RTT.Seconds() * 1e3 })
		d.InWindow[name] = over(func(r *round) float64 { return float64(of(r).In.WindowSegment) })
		d.ChattyPieces[name] = over(func(r *round) float64 { return of(r).Chatty })
	}
	for i, hz := range rates() {
		for k, kind := range kinds() {
			c := rs.cost(hz, kind, func(r *round) use { return r.Paced[i].Use[k] })
			c.CPURatio = over(func(r *round) float64 { return r.cpu(i, k) })
			d.Cost = append(d.Cost, c)
		}
	}
	d.Cost = append(d.Cost, rs.cost(rates()[rateCount-1], "idle", func(r *round) use { return r.Idle }))
	d.StopContHz = over(func(r *round) float64 { return r.Stopped.Hz })
	chatty := rs.cost(0, "", func(r *round) use { return r.Protected.ChattyUse })
	d.ChattyMsPerS, d.ChattyBackupMs = chatty.PrimaryMsPerS, chatty.BackupMsPerS
	for _, of := range []struct {
		to *resident
		f  func(*round) resident
	}{{&d.PrimaryMemory, func(r *round) resident { return r.Memory.Primary }}, {&d.BackupMemory, func(r *round) resident { return r.Memory.Backup }}} {
		of.to.AnonMiB = over(func(r *round) float64 { return of.f(r).AnonMiB })
		of.to.FileMiB = over(func(r *round) float64 { return of.f(r).FileMiB })
		of.to.SharedMiB = over(func(r *round) float64 { return of.f(r).SharedMiB })
	}
	return d
}

// finite rounds, and makes 0 of what JSON has no word for: a cost for each of no
// epochs, which their rate says.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return tool.Round3(v)
}

func (rs *results) cost(hz int, kind string, of func(*round) use) cost {
	over := func(f func(use) float64) float64 { return finite(rs.over(func(r *round) float64 { return f(of(r)) })) }
	perS := func(u use, of time.Duration) float64 { return of.Seconds() * 1e3 / u.Took.Seconds() }
	return cost{AskedHz: hz, Kind: kind, ReachedHz: over(use.hz),
		PauseMs:           over(func(u use) float64 { return u.PauseMs }),
		PausedShare:       over(func(u use) float64 { return u.PauseMs / 1e3 * u.hz() }),
		PrimaryMsPerEpoch: over(func(u use) float64 { return u.each(u.Primary) }),
		BackupMsPerEpoch:  over(func(u use) float64 { return u.each(u.Backup) }),
		LibvirtdMsEpoch:   over(func(u use) float64 { return u.each(u.LibvirtdA) }),
		PrimaryMsPerS:     over(func(u use) float64 { return perS(u, u.Primary) }),
		BackupMsPerS:      over(func(u use) float64 { return perS(u, u.Backup) })}
}

// print writes the ratios and the costs as tables. Errors of w show in what is
// missing.
func (rs *results) print(w io.Writer) {
	d := rs.details()
	if d == nil {
		return
	}
	fmt.Fprintf(w, "\nmedians of %d rounds; x: of the same guest's speed unprotected in the same round\n", d.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "asked, Hz\twork\treached, Hz\tx\tpause, ms\tpaused, %\tprimary, ms/epoch\tbackup, ms/epoch\tlibvirtd, ms/epoch\tprimary, ms/s\tbackup, ms/s\t")
	for _, c := range d.Cost {
		x := "-"
		if c.CPURatio > 0 {
			x = fmt.Sprintf("%.3f", c.CPURatio)
		}
		if c.ReachedHz < reachedMin*float64(c.AskedHz) {
			x += " (rate not reached)"
		}
		fmt.Fprintf(t, "%d\t%s\t%.1f\t%s\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t\n", c.AskedHz, c.Kind, c.ReachedHz, x,
			c.PauseMs, 100*c.PausedShare, c.PrimaryMsPerEpoch,
			c.BackupMsPerEpoch, c.LibvirtdMsEpoch, c.PrimaryMsPerS, c.BackupMsPerS)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "\nbare stop and cont, %.1f times a second, leave x %.3f of integer\n\npaced as by default:\n", d.StopContHz,
		rs.over(func(r *round) float64 { return r.Stopped.Speed / r.floor(0) }))
	fmt.Fprintf(w, "  requests     p50 %.2f ms, p99 %.2f ms unprotected; %.2f ms, %.2f ms protected\n",
		d.LatencyMs["base_p50"], d.LatencyMs["base_p99"], d.LatencyMs["protected_p50"], d.LatencyMs["protected_p99"])
	fmt.Fprintf(w, "  chatty guest x %.3f, at %.1f Hz\n", rs.over(func(r *round) float64 { return r.Protected.Chatty / r.Base.Chatty }),
		rs.over(func(r *round) float64 { return r.Protected.ChattyUse.hz() }))
	fmt.Fprintf(w, "  bulk TCP     %.0f MB/s from the guest, %.0f to it unprotected; %.0f, %.0f protected\n",
		d.TCPMBps["base_out"], d.TCPMBps["base_in"], d.TCPMBps["protected_out"], d.TCPMBps["protected_in"])
	fmt.Fprintf(w, "  resident     %.0f MiB on the primary, %.0f on the backup beside the standby's memory, for %d MiB of guest\n",
		d.PrimaryMemory.ownMiB(), d.BackupMemory.ownMiB(), d.MemMiB)
}
