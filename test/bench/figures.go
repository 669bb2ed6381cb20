package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/virt-ft/virt-ft/test/tool"
)

// figure is one that bench.json must have.
type figure struct {
	name string
	part string // that owes it
	aim  aim
	says string // what it is over what
}

// aim is a bound that is hoped for; the zero value is none.
type aim struct {
	sign  string // "<=" or ">="
	value float64
}

func (a aim) String() string {
	if a.sign == "" {
		return ""
	}
	return fmt.Sprintf("%s %g", a.sign, a.value)
}

// met tells whether a figure meets it.
func (a aim) met(v float64) bool {
	return a.sign == "<=" && v <= a.value || a.sign == ">=" && v >= a.value
}

func atMost(v float64) aim  { return aim{"<=", v} }
func atLeast(v float64) aim { return aim{">=", v} }

// figures are those that must be there, in the order of the table.
func figures() []figure {
	none := aim{}
	return []figure{
		{"pause_ratio_10", "pause", atMost(1.5), "pause with 10 dirty pages an epoch, guest-seen p50 over bare stop/cont"},
		{"pause_ratio_500", "pause", atMost(1.5), "with 500"},
		{"pause_ratio_2000", "pause", none, "with 2,000"},
		{"pause_ratio_8000", "pause", atMost(2), "with 8,000"},
		{"pause_ratio_10_p99", "pause", none, "10 pages, p99 over p99"},
		{"pause_ratio_500_p99", "pause", none, "500 pages, p99 over p99"},
		{"pause_ratio_2000_p99", "pause", none, "2,000 pages, p99 over p99"},
		{"pause_ratio_8000_p99", "pause", none, "8,000 pages, p99 over p99"},
		{"pause_ratio_drained_10", "pause", none, "10 pages, p50 over device state drained at once, without work on memory"},
		{"pause_ratio_drained_500", "pause", none, "500 pages"},
		{"pause_ratio_drained_2000", "pause", none, "2,000 pages"},
		{"pause_ratio_drained_8000", "pause", none, "8,000 pages"},
		{"pause_ratio_ram_1g", "pause", none, "pause with 1 GiB of populated RAM over 256 MiB, 500 pages an epoch"},
		{"pause_ratio_ram_4g", "pause", none, "4 GiB"},
		{"pause_ratio_ram_8g", "pause", atMost(1.5), "8 GiB"},
		{"cpu_ratio_10hz", "load", none, "guest CPU protected over unprotected, 10 checkpoints a second"},
		{"cpu_ratio_40hz", "load", atLeast(.9), "40"},
		{"cpu_ratio_100hz", "load", none, "100"},
		{"cpu_ratio_chatty", "load", none, "guest CPU while it sends all the time"},
		{"hz_idle_max", "load", atLeast(100), "checkpoints a second of an idle guest that is asked for 100"},
		{"latency_added_p50_ms", "load", none, "of a request, protected minus unprotected"},
		{"latency_added_p99_ms", "load", none, "the same at p99"},
		{"tcp_throughput_ratio", "load", none, "bulk TCP protected over unprotected, the lower of both directions"},
		{"daemon_cpu_ms_per_epoch", "load", none, "CPU of the primary's daemon"},
		{"backup_cpu_ms_per_epoch", "load", none, "CPU of the backup's daemon"},
		{"daemon_rss_mib_per_gib", "load", none, "memory of the primary's daemon for each GiB of the guest's"},
		{"disk_latency_ratio", "disk", none, "write of 4 KiB, p50 protected over unprotected"},
		{"disk_throughput_ratio", "disk", none, "writes of 1 MiB, bytes a second protected over unprotected"},
		{"stream_vs_memcpy", "stream", none, "page stream over loopback, over memcpy of the same bytes"},
		{"stream_vs_iperf3", "stream", none, "over iperf3 with as many streams"},
		{"zc_cpu_ratio", "stream", none, "CPU for each GiB in a guest, zero-copy over plain"},
		{"zc_not_copied_share", "stream", none, "completions that were not copied"},
		{"save_stall_ms", "today", none, "guest stands still: virsh save and restore"},
		{"snapshot_stall_ms", "today", none, "live snapshot with memory"},
		{"migrate_stall_ms", "today", none, "live migration"},
		{"checkpoint_stall_ms", "today", none, "one of our checkpoints"},
	}
}

// owed maps the names to the parts.
func owed() map[string]string {
	m := map[string]string{}
	for _, f := range figures() {
		m[f.name] = f.part
	}
	return m
}

// noiseMax is pause_noise_ratio of a machine that is quiet enough. A quarter of a
// floor is the most that may be noise, or an aim of 1.5 times it says nothing.
const noiseMax = .25

// reachedMin is the share of the pages asked for that a guest must have dirtied.
const reachedMin = .9

// printSkipped writes the reasons, each with the figures that are missing for it.
func printSkipped(w io.Writer, skipped map[string]string) {
	byReason := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(skipped)) {
		byReason[skipped[name]] = append(byReason[skipped[name]], name)
	}
	for i, why := range slices.Sorted(maps.Keys(byReason)) {
		if i == 0 {
			fmt.Fprintln(w, "\nnot measured:")
		}
		fmt.Fprintf(w, "  %s:\n    %s\n", why, strings.Join(byReason[why], ", "))
	}
}

// printTable writes the figures that must be there, then all others, then why
// some are missing. Errors of w show in what is missing.
func printTable(w io.Writer, r *tool.Report) {
	m := r.Machine
	changed := ""
	if r.Changes != "" {
		changed = ", changed since (" + r.Changes + ")"
	}
	fmt.Fprintf(w, "\n%s  commit %.12s%s\n", r.Date.Format("2006-01-02 15:04 MST"), r.Commit, changed)
	fmt.Fprintf(w, "%d cores of %s, %d MiB; Linux %s; %s; %s; %s; guests under TCG\n\n", m.Cores, m.CPU, m.RAMMiB, m.Kernel, m.QEMU, m.Libvirt, m.Go)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tvalue\taim\tmet\twhat it is")
	missed := 0
	for _, f := range figures() {
		value, met := "-", ""
		if v := r.Metrics[f.name]; v != nil {
			value = fmt.Sprintf("%.3f", *v)
			if f.aim.sign != "" {
				if met = "yes"; !f.aim.met(*v) {
					met = "NO"
					missed++
				}
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", f.name, value, f.aim, met, f.says)
	}
	_ = t.Flush()
	must := owed()
	var others []string
	for _, name := range slices.Sorted(maps.Keys(r.Metrics)) {
		if _, listed := must[name]; !listed && r.Metrics[name] != nil {
			others = append(others, fmt.Sprintf("%s %.3f", name, *r.Metrics[name]))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(w, "\nalso:\n  %s\n", strings.Join(others, "\n  "))
	}
	printSkipped(w, r.Skipped)
	if noise := r.Metrics["pause_noise_ratio"]; noise != nil && *noise > noiseMax {
		fmt.Fprintf(w, "\nThe machine was busy: with no operation at all a guest stood still %.2f times as long as for stop and cont.\n"+
			"Ratios of pauses mean little above %.2f; measure again when it is quiet.\n", *noise, noiseMax)
	}
	for _, asked := range []float64{10, 500, 2000, 8000} {
		if v := r.Metrics[fmt.Sprintf("pause_pages_%g", asked)]; v != nil && *v < reachedMin*asked {
			fmt.Fprintf(w, "\nThe guest did not get to dirty %g pages in an epoch, but %.0f at most: pause_ratio_%g is of those.\n", asked, *v, asked)
		}
	}
	if missed > 0 {
		fmt.Fprintf(w, "\n%d aims were missed; docs/PERFORMANCE.md says where the time goes\n", missed)
	}
	fmt.Fprintln(w)
}
