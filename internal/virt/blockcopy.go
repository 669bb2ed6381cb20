package virt

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
)

// copyGranularityBytes is what QEMU copies at least, and aligned to, before the copy is whole. It is QEMU's default
// for most images, and the size of the blocks that are compared with the backup's.
const copyGranularityBytes = 64 << 10

// abortPoll is how often AbortCopy looks whether an abort that somebody else began is over.
const abortPoll = 20 * time.Millisecond

// DiskSize is how large a disk is.
type DiskSize struct {
	// SizeBytes is what the guest sees.
	SizeBytes uint64
	// AllocatedBytes is what the top image occupies on this host. Backing files are not counted.
	AllocatedBytes uint64
}

// DiskSize asks for the size of a running domain's disk.
func (d *Domain) DiskSize(ctx context.Context, target string) (DiskSize, error) {
	return onDomain(ctx, d, "get size of disk "+target, func(h *libvirt.Domain) (DiskSize, error) {
		info, err := h.GetBlockInfo(target, 0)
		if err != nil {
			return DiskSize{}, err
		}
		return DiskSize{SizeBytes: info.Capacity, AllocatedBytes: info.Allocation}, nil
	})
}

// StartCopy lets QEMU copy a disk to an NBD server on a Unix socket, and write to it, from now on, what the guest
// writes: after the disk itself, and before the guest's write completes. It returns when the job has begun;
// CopyReady says that the copy is whole, CopyEnded that the job is over. QEMU opens the socket, so its user needs
// write access to it: libvirt does not change its owner.
//
// The guest must be suspended until CopyBegun says so: QEMU's mirrors do not bear writes while they begin. Before 8.0
// QEMU crashes (in_flight_bitmap of block/mirror.c is used before it is made; seen with 7.2 and an iothread), and from
// there to 10.0 the copy lacks what was written then.
//
// The job ends with the domain, and a domain that has it cannot be migrated or saved. QEMU copies the whole disk,
// holes as zeroes. Of a disk with discard='unmap' it begins with zeroing the whole copy if the server offers to write
// zeroes (mirror_dirty_init in QEMU's block/mirror.c); that cannot be chosen in the copy's XML, to which libvirt gives
// the disk's own cache, io and discard modes. Guests' discards go nowhere meanwhile, neither to disk nor to copy.
func (d *Domain) StartCopy(ctx context.Context, target, socket, export string) error {
	dest, err := copyXML(socket, export)
	if err != nil {
		return &CallError{"copy disk " + target, d.name, err}
	}
	return do(ctx, d, "copy disk "+target, func(h *libvirt.Domain) error {
		p := libvirt.DomainBlockCopyParameters{GranularitySet: true, Granularity: copyGranularityBytes}
		return h.BlockCopy(target, dest, &p, libvirt.DOMAIN_BLOCK_COPY_TRANSIENT_JOB|libvirt.DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES)
	})
}

// copyXML is the destination of a block copy.
func copyXML(socket, export string) (string, error) {
	if !strings.HasPrefix(socket, "/") || export == "" {
		return "", fmt.Errorf("socket %q must be an absolute path, and export %q have a name", socket, export)
	}
	escape := func(s string) string {
		var b strings.Builder
		_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
		return b.String()
	}
	return fmt.Sprintf(`<disk type='network'><driver name='qemu' type='raw'/>`+
		`<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/></source></disk>`, escape(export), escape(socket)), nil
}

// CopyBegun reports whether a copy that StartCopy began is so far that the guest may go on; also when it is over, but not
// while it ends.
func (d *Domain) CopyBegun(ctx context.Context, target string) (bool, error) {
	raw, err := d.QMP(ctx, "query-block-jobs", nil)
	if err != nil {
		return false, err
	}
	return copyBegun(raw, target)
}

// endingJobs are the states of a job that is not over and has nothing more to do. A domain that goes on in such a moment
// gives a disk with an iothread back to that thread, and QEMU 7.2 (job_set_aio_context) does not bear that.
var endingJobs = []string{"waiting", "pending", "aborting", "concluded", "null"}

// copyBegun reads the answer to query-block-jobs. The length of a mirror job is known when all of it is set up; one
// with nothing to copy is ready instead.
func copyBegun(raw []byte, target string) (bool, error) {
	var jobs []struct {
		Device string `json:"device"` // the job's name, "copy-vda-libvirt-2-format"
		Len    int64  `json:"len"`
		Ready  bool   `json:"ready"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &jobs); err != nil {
		return false, fmt.Errorf("query-block-jobs: %w", err)
	}
	for _, j := range jobs {
		if strings.HasPrefix(j.Device, "copy-"+target+"-") {
			return (j.Len > 0 || j.Ready) && !slices.Contains(endingJobs, j.Status), nil
		}
	}
	return true, nil
}

// AbortCopy ends the block copy of a disk; the guest goes on with the disk it has. It returns when the job is gone.
// No job, or no running domain, is no error. QEMU waits for what the server has not answered yet, and the domain takes
// no monitor command meanwhile: a server that does not answer any more has to close the connection first.
//
// The guest must be suspended if the copy is not ready: QEMU frees the map of a copy's writes under way
// (in_flight_bitmap of block/mirror.c) before it waits for them (seen with 7.2, and still so in 10.0).
func (d *Domain) AbortCopy(ctx context.Context, target string) error {
	for ; ; afterPoll(ctx) {
		gone, err := onDomain(ctx, d, "abort copy of disk "+target, func(h *libvirt.Domain) (bool, error) {
			return abortCopy(h, target)
		})
		if errors.Is(err, ErrNoDomain) || errors.Is(err, ErrNotRunning) {
			return nil
		}
		if gone || err != nil {
			return err
		}
	}
}

// abortCopy returns false when somebody else's abort is under way, for which libvirt does not wait.
func abortCopy(h *libvirt.Domain, target string) (bool, error) {
	err := h.BlockJobAbort(target, 0)
	if err == nil {
		return true, nil
	}
	info, infoErr := h.GetBlockJobInfo(target, 0)
	var e libvirt.Error
	switch {
	case infoErr != nil:
		return false, err
	case info.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN: // there was none, or it ended by itself
		return true, nil
	case errors.As(err, &e) && e.Code == libvirt.ERR_OPERATION_INVALID:
		return false, nil
	}
	return false, err
}

// CopyJobs returns QEMU's own jobs that copy these disks, with their states. Those of disks that have no mirror in the
// domain's XML are strays: libvirt was killed, or had given up, when they had just begun. libvirt ends none of them, and
// no other copy of that disk can begin.
func (d *Domain) CopyJobs(ctx context.Context, targets []string) (map[string]string, error) {
	raw, err := d.QMP(ctx, "query-jobs", nil)
	if err != nil {
		return nil, err
	}
	return copyJobs(raw, targets)
}

// EndStrayCopies ends the strays among CopyJobs; the disks must have no mirror in the domain's XML. The guest must be
// suspended, as for AbortCopy.
func (d *Domain) EndStrayCopies(ctx context.Context, targets []string) error {
	for ; ; afterPoll(ctx) {
		jobs, err := d.CopyJobs(ctx, targets)
		if err != nil || len(jobs) == 0 {
			return err
		}
		for id, status := range jobs {
			var refused *QMPError
			command, args := "block-job-cancel", map[string]any{"device": id, "force": true}
			if status == "concluded" {
				command, args = "job-dismiss", map[string]any{"id": id}
			}
			// It may have gone a step further by itself.
			if _, err := d.QMP(ctx, command, args); err != nil && !errors.As(err, &refused) {
				return err
			}
		}
	}
}

// EndOrphans ends the copies that StartCopy began, all of them, when the process that has their servers is dead: those
// that libvirt knows of, and the strays. The guest must be suspended.
func (d *Domain) EndOrphans(ctx context.Context) error {
	live, err := d.LiveXML(ctx)
	if err != nil {
		return err
	}
	mine, bare, err := SplitCopies(live, Copy.Ours)
	if err != nil {
		return err
	}
	return d.EndCopies(ctx, mine, bare)
}

// EndCopies ends copies that libvirt knows of, and then strays of the disks in bare, if there are any: see SplitCopies,
// and AbortCopy and EndStrayCopies for what the guest must be.
func (d *Domain) EndCopies(ctx context.Context, copies []Copy, bare []string) error {
	for _, c := range copies {
		if err := d.AbortCopy(ctx, c.Target); err != nil {
			return err
		}
	}
	if len(bare) == 0 {
		return nil
	}
	return d.EndStrayCopies(ctx, bare)
}

// afterPoll waits abortPoll, or until ctx ends, which the next call notices.
func afterPoll(ctx context.Context) {
	select {
	case <-time.After(abortPoll):
	case <-ctx.Done():
	}
}

// copyJobs reads the answer to query-jobs.
func copyJobs(raw []byte, targets []string) (map[string]string, error) {
	var jobs []struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &jobs); err != nil {
		return nil, fmt.Errorf("query-jobs: %w", err)
	}
	found := map[string]string{}
	for _, j := range jobs {
		for _, target := range targets {
			if strings.HasPrefix(j.ID, "copy-"+target+"-") {
				found[j.ID] = j.Status
			}
		}
	}
	return found, nil
}

// CopyProgress is how far a block copy is. TotalBytes grows with what the guest writes meanwhile.
type CopyProgress struct {
	DoneBytes, TotalBytes uint64
	Running               bool // false: there is no block copy of this disk
}

// CopyProgress asks how far the block copy of a disk is.
func (d *Domain) CopyProgress(ctx context.Context, target string) (CopyProgress, error) {
	return onDomain(ctx, d, "get progress of disk "+target, func(h *libvirt.Domain) (CopyProgress, error) {
		info, err := h.GetBlockJobInfo(target, 0)
		if err != nil || info.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY {
			return CopyProgress{}, err
		}
		return CopyProgress{DoneBytes: info.Cur, TotalBytes: info.End, Running: true}, nil
	})
}
