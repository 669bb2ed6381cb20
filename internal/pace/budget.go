package pace

import "time"

// burst is how much of a guest's time checkpoints may take at once after a quiet
// time, beyond their share.
const burst = 50 * time.Millisecond

// budget bounds the share of a guest's time that checkpoints take: a bucket that
// fills with the share of the time that passes, and from which each pause is
// taken. So a guest that seldom sends is answered for at once, and one that always
// sends keeps its time in the long run.
type budget struct {
	at     time.Time
	leftNs float64
}

func (b *budget) fill(now time.Time, share float64) {
	if b.at.IsZero() {
		b.at, b.leftNs = now, float64(burst)
	}
	if passed := now.Sub(b.at); passed > 0 {
		b.leftNs = min(b.leftNs+share*float64(passed), float64(burst))
		b.at = now
	}
}

// spend takes a pause that ended now. What ran over before it is lost to it.
func (b *budget) spend(now time.Time, pause time.Duration, share float64) {
	b.fill(now, share)
	b.leftNs -= float64(pause)
}

// wait is how long the guest is to run before its next pause.
func (b *budget) wait(now time.Time, share float64) time.Duration {
	b.fill(now, share)
	if b.leftNs >= 0 {
		return 0
	}
	return time.Duration(-b.leftNs / share)
}
