package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab"
)

const (
	// tickEvery is how often the guest tells a tick: each is an output, and an
	// output begins an epoch, so many of them would change what is measured.
	tickEvery = 250 * time.Millisecond
	// Pace and jitter of the meter: no rhythm that epochs could fall in with.
	meterPace, meterJitter = 30 * time.Millisecond, 20 * time.Millisecond
	// What works with the guest when the failure comes.
	loadTCP, loadUDP     = 4, 2
	loadPace, loadJitter = 10 * time.Millisecond, 30 * time.Millisecond
	// loadAnswers is how many answers the load gets before the failure.
	loadAnswers = 100
	// answerMax is how long a client waits before it gives up on the guest.
	answerMax = 20 * time.Second
)

// baseline measures the latency of requests to the unprotected guest.
func (d *demo) baseline(ctx context.Context) (err error) {
	if _, err := d.lab.Command(ctx, fmt.Sprintf("tick %d", tickEvery.Milliseconds())); err != nil {
		return err
	}
	if d.meter, err = d.lab.StartClient(ctx, lab.ClientOptions{ID: 1, Seed: 1, TCP: 1, Pace: meterPace, Jitter: meterJitter, AnswerMax: answerMax}); err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d.watch):
	}
	d.result.LatencyBaseMs = d.latency("unprotected", began)
	return d.meter.Verdict().Err()
}

// latency shows how long the meter's requests since a moment took, and returns
// the median in milliseconds.
func (d *demo) latency(when string, since time.Time) float64 {
	all := d.meter.Latencies(since, time.Now())
	p50 := ms(lab.Quantile(all, .5))
	say("%s, a request over TCP is answered in %.1f ms (p50), %.1f ms (p99), %d requests", when, p50, ms(lab.Quantile(all, .99)), len(all))
	return p50
}

// The guest's disk. It rests while latency is measured, which is a matter of the
// network then.
const recordsDisk, recordsMiB = "vda", 32

// startLoad puts more clients to work and waits until they are under way. From
// here on every answer is on the guest's disk before it is given.
func (d *demo) startLoad(ctx context.Context) (err error) {
	answer, err := d.lab.Command(ctx, "disk "+recordsDisk+" accept")
	if err != nil {
		return err
	}
	since, ok := answer["since"].(float64)
	if !ok {
		return fmt.Errorf("the guest does not say from when on it writes to %s: %v", recordsDisk, answer)
	}
	d.since = uint64(since)
	if d.load, err = d.lab.StartClient(ctx, lab.ClientOptions{ID: 2, Seed: 2, TCP: loadTCP, UDP: loadUDP, Pace: loadPace, Jitter: loadJitter, AnswerMax: answerMax}); err != nil {
		return err
	}
	for d.load.Verdict().Acked < loadAnswers {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	say("%d TCP connections and %d UDP clients are at work", loadTCP+1, loadUDP)
	return nil
}

// firstAnswer returns when a client first received an answer that came from
// host B.
func (d *demo) firstAnswer(ctx context.Context, fault time.Time) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, answerMax) // by then they have all given up
	defer cancel()
	sent, err := d.out.WaitAnswer(ctx, d.lab.B.Name, fault)
	if err != nil {
		return time.Time{}, err
	}
	a, err := d.load.WaitAnswer(ctx, sent)
	if m, ok := d.meter.FirstAnswerAfter(sent); ok && (err != nil || m.At.Before(a.At)) {
		return m.At, nil
	}
	return a.At, err
}

// acceptance asks the guest whether it knows all that it ever answered.
func (d *demo) acceptance(ctx context.Context) error {
	var all lab.Verdict
	var failed error
	for _, c := range []*lab.Client{d.meter, d.load} {
		if c == nil {
			continue
		}
		v, err := c.Check(ctx)
		all.Add(v)
		failed = errors.Join(failed, err)
	}
	r := &d.result
	r.Acked, r.AckedLost, r.TCPReset, r.Contradictions, r.Unanswered = all.Acked, all.AckedLost, all.TCPReset, all.Contradictions, all.Unanswered
	say("clients got %d answers: the guest forgot %d, %d connections were reset, %d contradictions, %d requests without an answer",
		all.Acked, all.AckedLost, all.TCPReset, all.Contradictions, all.Unanswered)
	return errors.Join(failed, all.Err())
}

// disk looks for the record of every answer on host B's image.
func (d *demo) disk(ctx context.Context) error {
	image, err := d.lab.B.DiskImage(ctx, d.guest.Name, recordsDisk)
	if err != nil {
		return err
	}
	var found lab.Records
	err = d.meter.Quiet(func() error {
		return d.load.Quiet(func() error {
			if _, err := d.lab.Command(ctx, "disk quiet"); err != nil {
				return err
			}
			found, err = lab.CheckRecords(image.Path, d.since, d.meter.Journal, d.load.Journal)
			return err
		})
	})
	if err != nil {
		return err
	}
	d.result.DiskRecords, d.result.DiskLost = found.Acked, found.Missing
	if err := found.Err(); err != nil {
		return err
	}
	say("disk %s: %d records acknowledged, host B's image has them all", recordsDisk, found.Acked)
	return nil
}

func (d *demo) stopClients() {
	for _, c := range []*lab.Client{d.meter, d.load} {
		if c != nil {
			c.Stop()
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
