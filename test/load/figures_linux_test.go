package main

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/test/tool"
)

// rounds are three, the machine half as fast in the second and a quarter in the
// third: the ratios are the same in all of them.
func rounds() *results {
	rs := &results{MemMiB: 512, WindowS: 1}
	for i, slow := range []float64{1, 2, 4} {
		r := round{
			Base:      talk{Latencies: []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}, Chatty: 800 / slow, OutMBps: 100 / slow, In: sending{MBps: 200 / slow}},
			Protected: talk{Latencies: []time.Duration{5 * time.Millisecond, 6 * time.Millisecond, 9 * time.Millisecond}, Chatty: 600 / slow, OutMBps: 50 / slow, In: sending{MBps: 150 / slow}},
			Stopped:   bare{Speed: 800 / slow, Hz: 40},
			Idle:      use{Took: 2 * time.Second, Epochs: uint64(180 + 10*i)},
			Memory:    memory{Primary: resident{AnonMiB: 40, FileMiB: 10}, Backup: resident{AnonMiB: 20, FileMiB: 10, SharedMiB: 512}},
		}
		for k := range kindCount {
			r.Base.Speed[k] = 1500 / slow
			r.Again[k] = 500 / slow // on average 1000
			for rate, ratio := range [rateCount][kindCount]float64{{1, 1, .729}, {.9, .9, .9}, {.5, .5, .5}} {
				r.Paced[rate].Speed[k] = 1000 / slow * ratio[k]
				r.Paced[rate].Use[k] = use{Took: time.Second, Epochs: uint64(rates()[rate]), PauseMs: 2.5, Primary: 80 * time.Millisecond,
					Backup: 40 * time.Millisecond, LibvirtdA: 20 * time.Millisecond}
			}
		}
		rs.rounds = append(rs.rounds, r)
	}
	return rs
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	r := &tool.Result{}
	rounds().report(r)
	for name, want := range map[string]float64{
		"cpu_ratio_10hz": .9, "cpu_ratio_10hz_integer": 1, "cpu_ratio_10hz_write": .729, "cpu_ratio_40hz": .9, "cpu_ratio_100hz": .5,
		"cpu_ratio_40hz_stop_cont": .8, "cpu_reached_40hz": 40, "hz_idle_max": 95, "latency_added_p50_ms": 4, "latency_added_p99_ms": 6, "cpu_ratio_chatty": .75,
		"tcp_throughput_ratio": .5, "tcp_throughput_ratio_in": .75, "daemon_cpu_ms_per_epoch": 2, "backup_cpu_ms_per_epoch": 1,
		"libvirtd_cpu_ms_per_epoch": .5, "daemon_rss_mib_per_gib": 100, "backup_rss_mib_per_gib": 60,
	} {
		if got, there := r.Metrics[name]; !there || math.Abs(got-want) > .0011 {
			t.Errorf("%s is %v (%v), want %v", name, got, there, want)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("the closing line does not marshal: %v", err)
	}
	d := rounds().details()
	if c := d.Cost[rateCount*kindCount]; c.Kind != "idle" || c.AskedHz != 100 || c.ReachedHz != 95 {
		t.Errorf("the last cost is not the idle guest's: %+v", c)
	}
	if c := d.Cost[kindCount]; c.AskedHz != 40 || c.PausedShare != .1 || c.PrimaryMsPerS != 80 || c.CPURatio != .9 {
		t.Errorf("the first at 40 Hz: %+v", c)
	}
	var b strings.Builder
	rounds().print(&b)
	for _, want := range []string{"0.729", "0.900", "idle", "x 0.750"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

func TestARateThatWasNotReachedHasNoRatio(t *testing.T) {
	rs := rounds()
	for i := range rs.rounds { // the guest is nearly left alone, and so has all of its speed
		rs.rounds[i].Paced[1].Use[2].Epochs = 2
		rs.rounds[i].Paced[1].Speed[2] = 2 * rs.rounds[i].floor(2)
		rs.rounds[i].Stopped.Hz = 20
	}
	r := &tool.Result{}
	rs.report(r)
	for _, name := range []string{"cpu_ratio_40hz", "cpu_ratio_40hz_write", "cpu_ratio_40hz_stop_cont"} {
		if v, there := r.Metrics[name]; there || r.Skipped[name] == "" {
			t.Errorf("%s is %v, skipped: %q", name, v, r.Skipped[name])
		}
	}
	if r.Metrics["cpu_ratio_40hz_integer"] != .9 || r.Metrics["cpu_ratio_10hz"] == 0 {
		t.Errorf("others are missing too: %v", r.Metrics)
	}
	var b strings.Builder
	if rs.print(&b); !strings.Contains(b.String(), "2.000 (rate not reached)") {
		t.Errorf("%s", b.String())
	}
}

func TestNothingMeasured(t *testing.T) {
	r := &tool.Result{}
	rs := &results{MemMiB: 512}
	rs.report(r)
	if len(r.Metrics) > 0 || r.Skipped["cpu_ratio_40hz"] == "" || r.Skipped["tcp_throughput_ratio"] == "" {
		t.Errorf("metrics %v, skipped %v", r.Metrics, r.Skipped)
	}
	var b strings.Builder
	if rs.print(&b); b.Len() > 0 {
		t.Errorf("%q", b.String())
	}
}

func TestARoundWithoutEpochs(t *testing.T) {
	rs := &results{MemMiB: 512, rounds: []round{{}}} // nothing but zeros, so that all is divided by them
	r := &tool.Result{}
	rs.report(r)
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("the closing line does not marshal: %v", err)
	}
}

func TestParseResident(t *testing.T) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := parseResident(string(text)); err != nil || r.AnonMiB <= 0 || r.FileMiB <= 0 {
		t.Errorf("this process: %+v, %v", r, err)
	}
	for _, bad := range []string{"", "\nRssAnon: 1 kB\n", "\nRssAnon: x kB\nRssFile: 1 kB\nRssShmem: 1 kB\n"} {
		if r, err := parseResident(bad); err == nil {
			t.Errorf("%q: %+v", bad, r)
		}
	}
}
