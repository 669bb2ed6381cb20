package main

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

func TestKinds(t *testing.T) {
	if ks, err := parseKinds(""); err != nil || !slices.Equal(ks, faults()) {
		t.Errorf("default: %v, %v", ks, err)
	}
	if ks, err := parseKinds("link, qemu"); err != nil || !slices.Equal(ks, []kind{faultLink, faultQEMU}) {
		t.Errorf("two: %v, %v", ks, err)
	}
	for _, bad := range []string{"fire", "qemu,", ","} {
		if _, err := parseKinds(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestDrawsByWeight: every fault comes, and a heavy one more often.
func TestDrawsByWeight(t *testing.T) {
	rng, got := rand.New(rand.NewPCG(1, 2)), map[kind]int{}
	const n = 20000
	for range n {
		got[draw(faults(), rng)]++
	}
	if len(got) != len(faults()) || got[faultHost] < 3*got[faultJob] {
		t.Errorf("%v", got)
	}
	if k := draw([]kind{faultLink}, rng); k != faultLink {
		t.Errorf("of one: %v", k)
	}
}

func TestReportOfRounds(t *testing.T) {
	var r report
	r.tally(map[kind][]outcome{
		faultQEMU: {{moved: true, failover: 200 * time.Millisecond, silence: 3 * time.Second, spent: spent{phaseDisks: time.Second}},
			{moved: true, failover: 100 * time.Millisecond, heard: time.Millisecond, silence: time.Second}},
		faultDaemon: {{back: 500 * time.Millisecond}},
	})
	q := r.Faults[faultQEMU]
	if r.Kills != 3 || q.Count != 2 || q.Moved != 2 || q.Failover.Max != 200 || q.Silence.Max != 3000 || r.NetworkBack.Max != 500 || r.Faults[faultDaemon].Failover != nil || r.Phases[phaseDisks].P50 != 1000 {
		t.Errorf("%+v", r)
	}
	if r.lost() {
		t.Error("a loss of nothing")
	}
	if b, err := json.Marshal(report{}); err != nil || strings.Contains(string(b), "network_back_ms") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestDiskFindings(t *testing.T) {
	var r report
	if err := r.diskFound("the guest", diskFindings{Whole: 5}); err != nil || r.lost() {
		t.Errorf("a loss of nothing: %v", err)
	}
	err := r.diskFound("the guest", diskFindings{Missing: 2, Torn: 1, Texts: []string{"slot 3 is gone"}})
	if err == nil || !strings.Contains(err.Error(), "slot 3 is gone") || r.DiskLost != 2 || r.DiskTorn != 1 {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestAnyLossFailsTheRun: each count alone.
func TestAnyLossFailsTheRun(t *testing.T) {
	for name, harm := range map[string]func(r *report){
		"acked_lost":     func(r *report) { r.judge(lab.Verdict{Acked: 9, AckedLost: 1}, 0) },
		"tcp_reset":      func(r *report) { r.judge(lab.Verdict{TCPReset: 1}, 0) },
		"contradictions": func(r *report) { r.judge(lab.Verdict{Contradictions: 1}, 0) },
		"unanswered":     func(r *report) { r.judge(lab.Verdict{Unanswered: 1}, 0) },
		"steps back":     func(r *report) { r.judge(lab.Verdict{}, 1) },
		"memory_errors":  func(r *report) { r.MemoryErrors = 1 },
		"split frames":   func(r *report) { r.SplitFrames = 1 },
		"split ticks":    func(r *report) { r.SplitTicks = 1 },
		"two_hosts":      func(r *report) { r.TwoHosts = 1 },
		"forgotten":      func(r *report) { r.Forgotten = 1 },
		"disk_lost":      func(r *report) { _ = r.diskFound("vda", diskFindings{Missing: 1}) },
		"disk_foreign":   func(r *report) { _ = r.diskFound("vda", diskFindings{Foreign: 1}) },
		"disk_torn":      func(r *report) { _ = r.diskFound("vda", diskFindings{Torn: 1}) },
		"disk_errors":    func(r *report) { _ = r.diskFound("vda", diskFindings{Failures: 1}) },
		"fsck_errors":    func(r *report) { r.FsckErrors = 1 },
		"images_differ":  func(r *report) { r.ImagesDiffer = 1 },
	} {
		var r report
		harm(&r)
		if !r.lost() {
			t.Errorf("%s passes", name)
		}
	}
}
