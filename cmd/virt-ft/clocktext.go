package main

import (
	"fmt"
	"math"

	"github.com/virt-ft/virt-ft/internal/control"
)

// clockText says how true a guest's clock is.
func clockText(c control.ClockStatus) string {
	text := dash(c.State)
	switch c.State {
	case control.ClockCorrected:
		text += keptText(c)
	case control.ClockTSC:
		text += ", the guest's own counter: it goes on in pauses"
	case control.ClockTCG:
		text += aheadText(c.EmulatedDriftUs)
	case control.ClockUncorrected:
		if c.Why != "" {
			text += ": " + c.Why
		}
	}
	if c.StepUs != 0 {
		text += fmt.Sprintf("; set forward by %s at activation", microText(c.StepUs))
	}
	if c.Peer != nil {
		text += fmt.Sprintf("; the peer's clock is %s ahead, give or take %s", microText(c.Peer.AheadUs), microText(c.Peer.ErrUs))
	}
	return text
}

func keptText(c control.ClockStatus) string {
	if c.Kept+c.Missed == 0 {
		return ""
	}
	text := fmt.Sprintf(": %s off in the last epoch, %s at most, %s in all", microText(c.ErrUs), microText(c.MaxErrUs), microText(c.DriftUs))
	if c.Missed > 0 {
		text += fmt.Sprintf("; %d of %d pauses missed, put back at %d resumes", c.Missed, c.Kept+c.Restored+c.Missed, c.Restored)
	}
	if c.Accepted > 0 {
		text += fmt.Sprintf("; %s by others", microText(c.AcceptedUs))
	}
	return text
}

// aheadText says how far a clock is from the host's.
func aheadText(us float64) string {
	switch {
	case us == 0:
		return ""
	case us < 0:
		return ", " + microText(-us) + " behind since it is protected"
	}
	return ", " + microText(us) + " ahead since it is protected"
}

// microText is a duration of some microseconds up to days.
func microText(us float64) string {
	switch a := math.Abs(us); {
	case a < 1000:
		return fmt.Sprintf("%.1f µs", us)
	case a < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	default:
		return fmt.Sprintf("%.1f s", us/1e6)
	}
}

// clockColour warns of a clock that could be true and is not.
func clockColour(c control.ClockStatus) string {
	if c.State == control.ClockUncorrected {
		return yellow
	}
	return ""
}
