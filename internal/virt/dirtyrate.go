package virt

import (
	"context"
	"encoding/json"
	"time"
)

const (
	// dirtySampleSeconds is the shortest that QEMU takes.
	dirtySampleSeconds = 1
	dirtyPoll          = 100 * time.Millisecond
)

// DirtyBytesPerSecond asks QEMU how fast a running guest writes to its memory: QEMU compares samples of its pages,
// a second apart, and the guest is not stopped for it (calc-dirty-rate, since QEMU 5.2). known is false where QEMU
// cannot tell before ctx ends. A guest that writes to few pages may count as one that writes to none.
func (d *Domain) DirtyBytesPerSecond(ctx context.Context) (rate float64, known bool) {
	if _, err := d.QMP(ctx, "calc-dirty-rate", map[string]any{"calc-time": dirtySampleSeconds}); err != nil {
		return 0, false
	}
	tick := time.NewTicker(dirtyPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, false
		case <-tick.C:
		}
		raw, err := d.QMP(ctx, "query-dirty-rate", nil)
		if err != nil {
			return 0, false
		}
		if mib, measured := dirtyRate(raw); measured {
			return mib * (1 << 20), true
		}
	}
}

// dirtyRate reads MiB per second out of QEMU's DirtyRateInfo; until it is measured there is none.
func dirtyRate(raw json.RawMessage) (mib float64, measured bool) {
	var info struct {
		Status string   `json:"status"`
		Rate   *float64 `json:"dirty-rate"`
	}
	if json.Unmarshal(raw, &info) != nil || info.Status != "measured" || info.Rate == nil || *info.Rate < 0 {
		return 0, false
	}
	return *info.Rate, true
}
