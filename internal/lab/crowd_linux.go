package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// StartGuests starts n guests, numbered from 1 and called NAME-1 and so on, and
// waits until all are ready. At most atOnce boot at a time: on a small machine
// they take each other's time.
func (h *Host) StartGuests(ctx context.Context, o GuestOptions, n, atOnce int) ([]*Guest, error) {
	if n < 1 || n > guestNumberMax || atOnce < 1 {
		return nil, fmt.Errorf("lab: %d guests, %d at once: 1 to %d, and at least one", n, atOnce, guestNumberMax)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	guests, errs := make([]*Guest, n), make([]error, n)
	room := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			one := o
			one.Number, one.Name = i+1, fmt.Sprintf("%s-%d", o.withDefaults().Name, i+1)
			if errs[i] = ctx.Err(); errs[i] == nil {
				guests[i], errs[i] = h.StartGuest(ctx, one)
			}
			if errs[i] != nil {
				cancel() // the others are of no use without it
			}
		})
	}
	wg.Wait()
	return guests, errors.Join(errs...)
}
