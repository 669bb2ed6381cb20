package main

import (
	"sync"

	"github.com/virt-ft/virt-ft/internal/lab/guestapi"
)

// scribe puts a record of every applied request on a disk, in the order of
// their serials. It writes all that are waiting and then makes them durable
// together, so many clients cost one flush.
//
// Its methods may be called concurrently.
type scribe struct {
	disk *recordDisk

	mu      sync.Mutex
	changed sync.Cond // of mu: any field below
	// queue is bounded by the requests that are under way at a time: each has a
	// client that waits, or has a place in serveUDP.
	queue   []record
	busy    bool
	durable uint64 // the highest serial whose record, like all before, is durable
	failed  bool   // for good: what comes is not answered any more
}

func newScribe(d *recordDisk) *scribe {
	s := &scribe{disk: d}
	s.changed.L = &s.mu
	return s
}

// begin says which serial was the last one that needs no record.
func (s *scribe) begin(since uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable = since
}

// append queues a record; it does not block.
func (s *scribe) append(r record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.failed {
		s.queue = append(s.queue, r)
		s.changed.Broadcast()
	}
}

// wait returns when the record of a serial is durable; false if it never will be.
func (s *scribe) wait(serial uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.durable < serial && !s.failed {
		s.changed.Wait()
	}
	return s.durable >= serial
}

// idle waits until nothing is queued or being written.
func (s *scribe) idle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for (s.busy || len(s.queue) > 0) && !s.failed {
		s.changed.Wait()
	}
}

// run writes until the disk fails. It stays when the acceptance service is done
// with it: what was queued is still written.
func (s *scribe) run() {
	var batch []record
	for {
		s.mu.Lock()
		for len(s.queue) == 0 {
			s.changed.Wait()
		}
		batch, s.queue = s.queue, batch[:0]
		s.busy = true
		s.mu.Unlock()

		err := s.write(batch)

		s.mu.Lock()
		s.busy = false
		if err == nil {
			s.durable = batch[len(batch)-1].serial
		} else {
			s.failed, s.queue = true, nil
		}
		s.changed.Broadcast()
		s.mu.Unlock()
		if err != nil {
			say("disk %s: %v: acceptance answers no more", s.disk.name, err)
			return
		}
	}
}

func (s *scribe) write(batch []record) error {
	for _, r := range batch {
		err := s.disk.accept(guestapi.Record{Serial: r.serial, Session: r.session, Request: r.seq, Nonce: r.nonce, Hash: r.hash})
		if err != nil {
			return err
		}
	}
	return s.disk.dev.Sync()
}
