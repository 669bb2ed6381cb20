package daemon

import (
	"context"
	"sync"

	"github.com/virt-ft/virt-ft/internal/replica"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

const (
	// stagedBytesMax bounds what a backup holds of epochs that are not in the
	// standby's memory yet, and of outputs that the primary did not perform yet.
	// Beyond it the backup reads on only when some of it is gone. One epoch may
	// be larger.
	stagedBytesMax = 256 << 20
	// stagedEpochsMax bounds how many epochs are not in its memory yet.
	stagedEpochsMax = 2048
	// inputBytesMax bounds the log of inputs; the oldest go first.
	inputBytesMax = 16 << 20
)

// kept is what a backup keeps of the guest's network, and how much it holds in
// all. Safe for concurrent use.
type kept struct {
	mu      sync.Mutex
	outputs map[ftengine.Epoch][]replica.Packet // staged, and not known to be performed
	inputs  []loggedInput                       // oldest first
	logged  int                                 // bytes of inputs
	staged  int                                 // bytes of pages and outputs
	epochs  int                                 // whose pages are not applied
	freed   chan struct{}                       // closed and replaced when staged shrinks
}

type loggedInput struct {
	epoch   ftengine.Epoch
	packets []replica.Packet
	bytes   int
}

func newKept() *kept {
	return &kept{outputs: map[ftengine.Epoch][]replica.Packet{}, freed: make(chan struct{})}
}

func bytesOf(ps []replica.Packet) (n int) {
	for i := range ps {
		n += len(ps[i].Data)
	}
	return n
}

// waitRoom returns when another epoch may be staged.
func (k *kept) waitRoom(ctx context.Context) error {
	for {
		k.mu.Lock()
		full, freed := k.staged >= stagedBytesMax || k.epochs >= stagedEpochsMax, k.freed
		k.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stage takes note of an epoch: the bytes of its pages, and its outputs.
func (k *kept) stage(epoch ftengine.Epoch, pageBytes uint64, outputs []replica.Packet) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.staged += int(pageBytes) + bytesOf(outputs)
	k.epochs++
	if len(outputs) > 0 {
		k.outputs[epoch] = outputs
	}
}

// applied takes note of an epoch whose pages are not staged any more.
func (k *kept) applied(pageBytes uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epochs--
	k.shrink(int(pageBytes))
}

func (k *kept) shrink(bytes int) {
	k.staged -= bytes
	close(k.freed)
	k.freed = make(chan struct{})
}

// released forgets the outputs of the epochs up to the given one: the primary
// performed them.
func (k *kept) released(to ftengine.Epoch) {
	k.forget(func(e ftengine.Epoch) bool { return e <= to })
}

// drop forgets the outputs of the epochs after the given one, and with 0 the
// inputs too: nothing of that session counts any more.
func (k *kept) drop(after ftengine.Epoch) {
	k.forget(func(e ftengine.Epoch) bool { return e > after })
	if after == 0 {
		k.mu.Lock()
		k.inputs, k.logged = nil, 0
		k.mu.Unlock()
	}
}

func (k *kept) forget(which func(ftengine.Epoch) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	bytes := 0
	for e, ps := range k.outputs {
		if which(e) {
			bytes += bytesOf(ps)
			delete(k.outputs, e)
		}
	}
	k.shrink(bytes)
}

// unreleased returns the outputs of epochs from..to, in order.
func (k *kept) unreleased(from, to ftengine.Epoch) []replica.Packet {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []replica.Packet
	for e := from; e <= to; e++ {
		all = append(all, k.outputs[e]...)
	}
	return all
}

// log takes note of what arrived for the guest in an epoch.
func (k *kept) log(epoch ftengine.Epoch, packets []replica.Packet) {
	k.mu.Lock()
	defer k.mu.Unlock()
	x := loggedInput{epoch, packets, bytesOf(packets)}
	k.inputs, k.logged = append(k.inputs, x), k.logged+x.bytes
	for k.logged > inputBytesMax {
		k.logged -= k.inputs[0].bytes
		k.inputs = k.inputs[1:]
	}
}

// committed forgets inputs that the guest knows of by the given epoch.
func (k *kept) committed(epoch ftengine.Epoch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.inputs) > 0 && k.inputs[0].epoch <= epoch {
		k.logged -= k.inputs[0].bytes
		k.inputs = k.inputs[1:]
	}
}

// after returns the logged inputs of the epochs after the given one, in order.
func (k *kept) after(epoch ftengine.Epoch) []replica.Packet {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []replica.Packet
	for _, x := range k.inputs {
		if x.epoch > epoch {
			all = append(all, x.packets...)
		}
	}
	return all
}
