package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// Voice is what an Observer heard of one guest among many, which are told apart
// by their boots. What else an Observer says is about a single guest.
type Voice struct {
	First, Last Observation
	Count       uint64
	StepsBack   uint64   // see Observer.StepsBack
	Missing     uint64   // see Observer.Missing
	Speeches    []Speech // of ticks: out of which host's cable, in order
}

// voicesMax bounds the guests that are told apart.
const voicesMax = 1 << 10

// voices are by boot; the zero value is ready.
type voices struct {
	all  map[guestapi.BootID]*voice
	lost bool // there were more than voicesMax
}

type voice struct {
	first, last Observation
	count       uint64
	told        told
	spoken      speeches
}

func (v *voices) add(o Observation) {
	if v.all == nil {
		v.all = map[guestapi.BootID]*voice{}
	}
	one := v.all[o.BootID]
	if one == nil {
		if len(v.all) == voicesMax {
			v.lost = true
			return
		}
		one = &voice{first: o}
		v.all[o.BootID] = one
	}
	one.last = o
	one.count++
	one.told.add(o.Tick)
	one.spoken.add(o.Host, o.At, false, true)
}

func (v *voices) of(boot guestapi.BootID) (Voice, error) {
	one := v.all[boot]
	if one == nil {
		if v.lost {
			return Voice{}, fmt.Errorf("lab: more than %d guests were heard", voicesMax)
		}
		return Voice{}, nil
	}
	all, err := one.spoken.since(time.Time{})
	return Voice{First: one.first, Last: one.last, Count: one.count, StepsBack: one.told.stepsBack, Missing: one.told.gone(), Speeches: all}, err
}

// Voice returns what was heard of the guest of a boot; one that was not heard has
// no Count.
func (o *Observer) Voice(boot guestapi.BootID) (Voice, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.voices.of(boot)
}

// WaitVoice waits until what was heard of a guest satisfies ok, which must be
// quick.
func (o *Observer) WaitVoice(ctx context.Context, boot guestapi.BootID, ok func(Voice) bool) (Voice, error) {
	for {
		v, err := o.Voice(boot)
		if err != nil || ok(v) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, fmt.Errorf("lab: waiting for guest %v, last heard from %q: %w", boot, v.Last.Host, ctx.Err())
		case <-time.After(speechPoll):
		}
	}
}

// From returns the speech from a host that began after t, if there was one.
func (v Voice) From(host string, t time.Time) (Speech, bool) {
	for _, s := range v.Speeches {
		if s.Host == host && s.First.After(t) {
			return s, true
		}
	}
	return Speech{}, false
}
