package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

// kind is a fault.
type kind string

// The faults. Zero is invalid.
const (
	faultQEMU   kind = "qemu"          // SIGKILL to the guest's QEMU
	faultDaemon kind = "daemon"        // SIGKILL to the primary's daemon, restarted within 2 s
	faultHost   kind = "host"          // power loss of the primary's host
	faultLink   kind = "link"          // the replication link is cut, and healed after the decision
	faultPower  kind = "power"         // SIGKILL to QEMU, libvirtd and daemon of the primary at once; its kernel lives
	faultBackup kind = "backup-daemon" // SIGKILL to the backup's daemon, restarted within 2 s
	faultJob    kind = "blockjob"      // somebody ends the mirror of a disk with virsh
)

func faults() []kind {
	return []kind{faultQEMU, faultDaemon, faultHost, faultLink, faultPower, faultBackup, faultJob}
}

// parseKinds reads a comma-separated list; empty means all.
func parseKinds(s string) ([]kind, error) {
	if s == "" {
		return faults(), nil
	}
	var ks []kind
	for _, word := range strings.Split(s, ",") {
		k := kind(strings.TrimSpace(word))
		if !slices.Contains(faults(), k) {
			return nil, fmt.Errorf("%q is none of %v", word, faults())
		}
		ks = append(ks, k)
	}
	return ks, nil
}

// outcome is what one round came to.
type outcome struct {
	moved    bool          // the guest goes on at the other host
	failover time.Duration // fault to the first answer from the other host, if it moved
	heard    time.Duration // fault to the first frame of the guest from the other host, if it moved
	back     time.Duration // start of the new daemon to the first answer; daemon only
	silence  time.Duration // the longest without an answer to any client, from the fault on
	repair   time.Duration // until the guest was protected again
}

// report is the closing line.
type report struct {
	Chaos          string              `json:"chaos"`
	Kills          int                 `json:"kills"`
	Acked          uint64              `json:"acked"`
	AckedLost      uint64              `json:"acked_lost"`
	TCPReset       uint64              `json:"tcp_reset"`
	Contradictions uint64              `json:"contradictions"`
	Unanswered     uint64              `json:"unanswered"`
	MemoryErrors   uint64              `json:"memory_errors"`
	TwoHosts       uint64              `json:"two_hosts"`    // rounds in which both were heard in turn
	Forgotten      uint64              `json:"forgotten"`    // frames that the guest had sent and nobody heard
	DiskRecords    uint64              `json:"disk_records"` // acknowledged requests whose records were looked for on the guest's image
	DiskLost       uint64              `json:"disk_lost"`
	DiskForeign    uint64              `json:"disk_foreign"` // what a discarded epoch wrote
	DiskTorn       uint64              `json:"disk_torn"`
	DiskErrors     uint64              `json:"disk_errors"` // I/O errors that the guest saw
	FsckErrors     uint64              `json:"fsck_errors"`
	ImagesCompared uint64              `json:"images_compared"` // pairs, one of each host
	ImagesDiffer   uint64              `json:"images_differ"`
	Kinds          map[kind]kindReport `json:"kinds"`
	NetworkBack    *spread             `json:"network_back_ms,omitempty"` // after the daemon's restart
	Seed           uint64              `json:"seed"`
	Seconds        float64             `json:"seconds"`
	FailedRound    int                 `json:"failed_round,omitempty"`
	Error          string              `json:"error,omitempty"`
}

// kindReport is what the rounds with one fault came to.
type kindReport struct {
	Kills    int     `json:"kills"`
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
	return r.AckedLost+r.TCPReset+r.Contradictions+r.Unanswered+r.MemoryErrors+r.TwoHosts+r.Forgotten+
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
	r.Kinds = map[kind]kindReport{}
	var back []time.Duration
	for k, os := range rounds {
		var failover, heard, silence []time.Duration
		kr := kindReport{Kills: len(os)}
		for _, o := range os {
			silence = append(silence, o.silence)
			if o.moved {
				kr.Moved++
				failover, heard = append(failover, o.failover), append(heard, o.heard)
			}
			if k == faultDaemon {
				back = append(back, o.back)
			}
		}
		kr.Failover, kr.Heard, kr.Silence = spreadOf(failover), spreadOf(heard), *spreadOf(silence)
		r.Kinds[k] = kr
		r.Kills += len(os)
	}
	r.NetworkBack = spreadOf(back)
}
