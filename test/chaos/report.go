package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// outcome is what one round came to.
type outcome struct {
	moved    bool          // the guest goes on at the other host
	failover time.Duration // fault to the first answer from the other host, if it moved
	heard    time.Duration // fault to the first frame of the guest from the other host, if it moved
	back     time.Duration // start of the new daemon to the first answer; daemon only
	silence  time.Duration // the longest without an answer to any client, from the fault on
	spent    spent
}

// spent is where a round's time went.
type spent map[phase]time.Duration

// phase of a round.
type phase string

// The phases, in their order.
const (
	phaseReady  phase = "ready"  // protected, clients at work, and the moment of the fault
	phaseStrike phase = "strike" // from the fault until somebody goes on, and all that died is back
	phaseDisks  phase = "disks"  // the guest compares its disks with its memory
	phaseMemory phase = "memory" // the guest verifies its memory
	phaseImages phase = "images" // a look at the images from outside
	phaseRepair phase = "repair" // until it is protected again
)

// report is the closing line.
type report struct {
	Chaos          string               `json:"chaos"`
	Kills          int                  `json:"kills"` // rounds, each with one fault
	Acked          uint64               `json:"acked"`
	AckedLost      uint64               `json:"acked_lost"`
	TCPReset       uint64               `json:"tcp_reset"`
	Contradictions uint64               `json:"contradictions"`
	Unanswered     uint64               `json:"unanswered"`
	MemoryErrors   uint64               `json:"memory_errors"`
	SplitFrames    uint64               `json:"split_brain_frames"` // of a copy that should have been silent
	SplitTicks     uint64               `json:"split_brain_ticks"`  // of the guest's program, among them
	TwoHosts       uint64               `json:"two_hosts"`          // rounds in which both were heard in turn
	Forgotten      uint64               `json:"forgotten"`          // frames that the guest had sent and nobody heard
	DiskRecords    uint64               `json:"disk_records"`       // acknowledged requests whose records were looked for on the guest's image
	DiskLost       uint64               `json:"disk_lost"`
	DiskForeign    uint64               `json:"disk_foreign"` // what a discarded epoch wrote
	DiskTorn       uint64               `json:"disk_torn"`
	DiskErrors     uint64               `json:"disk_errors"` // I/O errors that the guest saw
	FsckErrors     uint64               `json:"fsck_errors"`
	ImagesCompared uint64               `json:"images_compared"` // pairs, one of each host
	ImagesDiffer   uint64               `json:"images_differ"`
	Reprotected    int                  `json:"reprotected"` // rounds after which the guest had moved, and the daemons protected it by themselves
	Asked          int                  `json:"asked"`       // rounds after which they had to be asked
	Faults         map[kind]faultReport `json:"faults"`
	Phases         map[phase]*spread    `json:"phases_ms"`
	NetworkBack    *spread              `json:"network_back_ms,omitempty"` // after the daemon's restart
	Seed           uint64               `json:"seed"`
	Seconds        float64              `json:"seconds"`
	FailedRound    int                  `json:"failed_round,omitempty"`
	Error          string               `json:"error,omitempty"`
}

// faultReport is what the rounds with one fault came to.
type faultReport struct {
	Count    int     `json:"count"`
	Moved    int     `json:"moved"`
	Failover *spread `json:"failover_ms,omitempty"` // of those that moved: to the first answer
	Heard    *spread `json:"first_frame_ms,omitempty"`
	Silence  spread  `json:"silence_ms"`
}

// spread of times in milliseconds.
type spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spreadOf(ds []time.Duration) *spread {
	if len(ds) == 0 {
		return nil
	}
	ds = slices.Sorted(slices.Values(ds))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return &spread{ms(lab.Quantile(ds, .5)), ms(lab.Quantile(ds, .99)), ms(ds[len(ds)-1])}
}

// lost tells whether the world was told something that does not hold.
func (r *report) lost() bool {
	return r.AckedLost+r.TCPReset+r.Contradictions+r.Unanswered+r.MemoryErrors+r.SplitFrames+r.SplitTicks+r.TwoHosts+r.Forgotten+
		r.DiskLost+r.DiskForeign+r.DiskTorn+r.DiskErrors+r.FsckErrors+r.ImagesDiffer != 0
}

// judge fills in what clients say.
func (r *report) judge(v lab.Verdict, stepsBack uint64) {
	r.Acked, r.AckedLost, r.TCPReset, r.Unanswered = v.Acked, v.AckedLost, v.TCPReset, v.Unanswered
	r.Contradictions = v.Contradictions + stepsBack
}

// diskFindings is what a look at the guest's disks found. All but Whole must be
// zero.
type diskFindings struct {
	Whole    uint64   `json:"whole"`
	Missing  uint64   `json:"missing"`
	Foreign  uint64   `json:"foreign"`
	Torn     uint64   `json:"torn"`
	Failures uint64   `json:"failures"` // I/O errors so far
	Texts    []string `json:"findings"`
}

// diskFound counts findings; none is no error.
func (r *report) diskFound(who string, f diskFindings) error {
	r.DiskLost += f.Missing
	r.DiskForeign += f.Foreign
	r.DiskTorn += f.Torn
	r.DiskErrors = max(r.DiskErrors, f.Failures)
	if f.Missing+f.Foreign+f.Torn+f.Failures == 0 {
		return nil
	}
	return fmt.Errorf("%s finds %d lost, %d foreign, %d torn, %d I/O errors: %q", who, f.Missing, f.Foreign, f.Torn, f.Failures, f.Texts)
}

// tally fills in the times.
func (r *report) tally(rounds map[kind][]outcome) {
	r.Faults, r.Phases = map[kind]faultReport{}, map[phase]*spread{}
	var back []time.Duration
	phases := map[phase][]time.Duration{}
	for k, os := range rounds {
		var failover, heard, silence []time.Duration
		fr := faultReport{Count: len(os)}
		for _, o := range os {
			silence = append(silence, o.silence)
			if o.moved {
				fr.Moved++
				failover, heard = append(failover, o.failover), append(heard, o.heard)
			}
			if k == faultDaemon {
				back = append(back, o.back)
			}
			for p, d := range o.spent {
				phases[p] = append(phases[p], d)
			}
		}
		fr.Failover, fr.Heard, fr.Silence = spreadOf(failover), spreadOf(heard), *spreadOf(silence)
		r.Faults[k] = fr
		r.Kills += len(os)
	}
	for p, ds := range phases {
		r.Phases[p] = spreadOf(ds)
	}
	r.NetworkBack = spreadOf(back)
}
