package virt

import (
	"fmt"
	"sync"
	"time"
)

// Kind says what an Event is about.
type Kind string

// Kinds of events. Details of Stopped are shutdown, destroyed, crashed, migrated, saved, failed, fromSnapshot
// and recreated; QEMU killed by a signal is "failed" or "crashed", depending on libvirt's version.
const (
	Started       Kind = "started"
	Suspended     Kind = "suspended"
	Resumed       Kind = "resumed"
	Stopped       Kind = "stopped"
	Shutdown      Kind = "shutdown" // the guest, QEMU or the host finished the guest; Stopped follows
	Crashed       Kind = "crashed"  // the guest panicked; QEMU may still run
	PMSuspended   Kind = "pmsuspended"
	Rebooted      Kind = "rebooted"
	DeviceAdded   Kind = "deviceAdded"   // Detail is the device's alias
	DeviceRemoved Kind = "deviceRemoved" // Detail is the device's alias

	// CopyReady: every write of the guest reaches the copy of the disk. Detail is the disk's target.
	CopyReady Kind = "copyReady"
	// CopyEnded: the block copy of a disk is over. Detail is the target and why, in two words: "vda failed"
	// (the copy could not be written), "vda canceled" (aborted) or "vda completed" (the guest runs on the copy now).
	CopyEnded Kind = "copyEnded"

	// Disconnected, Reconnected and Lagged concern the stream itself: what happened meanwhile was not seen,
	// so after Reconnected and Lagged the receiver must ask for the state of what it cares about.
	Disconnected Kind = "disconnected"
	Reconnected  Kind = "reconnected"
	Lagged       Kind = "lagged" // Detail says how many events were dropped
)

// Event is something that happened to a domain, or to the connection (then Name and UUID are empty).
type Event struct {
	UUID, Name string
	Kind       Kind
	Detail     string
	At         time.Time // when this process saw it, with monotonic reading
}

// maxQueuedEvents bounds what a subscriber may leave unread before its oldest events are dropped.
const maxQueuedEvents = 256

// subscription is a bounded queue and the goroutine that empties it into the subscriber's channel.
type subscription struct {
	out  chan Event
	stop chan struct{}
	once sync.Once
	done chan struct{}

	mu      sync.Mutex
	wake    chan struct{} // holds a token when queue is not empty
	queue   []Event
	dropped int
}

// Subscribe returns a channel of all events from now on, and a function that ends the subscription (and waits
// until nothing is sent any more). A slow receiver blocks nobody: its oldest events are dropped and an Event
// of kind Lagged tells it so, in their place. The channel is closed by the function and by Close.
func (c *Conn) Subscribe() (<-chan Event, func()) {
	s := &subscription{
		out: make(chan Event), stop: make(chan struct{}), done: make(chan struct{}),
		wake: make(chan struct{}, 1),
	}
	go s.pump()
	c.mu.Lock()
	closed := c.ctx.Err() != nil
	if !closed {
		c.subs[s] = struct{}{}
	}
	c.mu.Unlock()
	if closed {
		s.close()
	}
	return s.out, func() {
		c.mu.Lock()
		delete(c.subs, s)
		c.mu.Unlock()
		s.close()
	}
}

// publish hands ev to all subscribers. It is called by libvirt's event loop and never blocks on a receiver.
func (c *Conn) publish(ev Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		s.push(ev)
	}
}

func (s *subscription) push(ev Event) {
	s.mu.Lock()
	if len(s.queue) == maxQueuedEvents {
		copy(s.queue, s.queue[1:])
		s.queue = s.queue[:maxQueuedEvents-1]
		s.dropped++
	}
	s.queue = append(s.queue, ev)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pop returns the next event. Dropped events were older than all that are queued, so they are told first.
func (s *subscription) pop() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped > 0 {
		ev := Event{Kind: Lagged, Detail: fmt.Sprintf("%d events dropped", s.dropped), At: time.Now()}
		s.dropped = 0
		return ev, true
	}
	if len(s.queue) == 0 {
		return Event{}, false
	}
	ev := s.queue[0]
	s.queue = s.queue[:copy(s.queue, s.queue[1:])]
	return ev, true
}

func (s *subscription) pump() {
	defer close(s.done)
	defer close(s.out)
	for {
		ev, ok := s.pop()
		if !ok {
			select {
			case <-s.wake:
				continue
			case <-s.stop:
				return
			}
		}
		select {
		case s.out <- ev:
		case <-s.stop:
			return
		}
	}
}

func (s *subscription) close() {
	s.once.Do(func() { close(s.stop) })
	<-s.done
}
