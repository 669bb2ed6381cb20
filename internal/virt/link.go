package virt

import (
	"context"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

const (
	// A libvirtd that answers none of keepAliveCount pings, sent every keepAliveSeconds, is given up.
	keepAliveSeconds = 5
	keepAliveCount   = 3
	// maxHandles bounds the domain handles kept per connection; beyond it they are looked up for each call.
	maxHandles = 1024
)

// link is one connection to one libvirtd process. It is used until it breaks, and then closed once the last
// call on it has returned; handles of domains belong to it and are freed with it.
type link struct {
	conn      *libvirt.Connect
	eventIDs  []int
	calls     sync.WaitGroup
	handlesMu sync.Mutex
	handles   map[string]*libvirt.Domain // by UUID
}

// dial connects and registers the events. Both callbacks are called by the event loop.
func dial(uri string, onEvent func(Event), onLost func(*link)) (_ *link, err error) {
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, handles: map[string]*libvirt.Domain{}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	// Drivers inside our own process (test:///) have neither keepalive nor close callbacks.
	if err = conn.SetKeepAlive(keepAliveSeconds, keepAliveCount); err != nil && !unsupported(err) {
		return nil, err
	}
	err = conn.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) { onLost(l) })
	if err != nil && !unsupported(err) {
		return nil, err
	}
	if err = l.register(onEvent); err != nil {
		return nil, err
	}
	return l, nil
}

func unsupported(err error) bool {
	e, ok := err.(libvirt.Error)
	return ok && e.Code == libvirt.ERR_NO_SUPPORT
}

func (l *link) register(onEvent func(Event)) error {
	emit := func(d *libvirt.Domain, kind Kind, detail string) {
		ev := Event{Kind: kind, Detail: detail, At: time.Now()}
		ev.Name, _ = d.GetName() // local, cannot fail on a valid handle
		ev.UUID, _ = d.GetUUIDString()
		onEvent(ev)
	}
	add := func(id int, err error) error {
		if err == nil {
			l.eventIDs = append(l.eventIDs, id)
		}
		return err
	}
	err := add(l.conn.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		if kind, detail, ok := lifecycle(e.Event, e.Detail); ok {
			emit(d, kind, detail)
		}
	}))
	if err != nil {
		return err
	}
	err = add(l.conn.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain) {
		emit(d, Rebooted, "")
	}))
	if err != nil {
		return err
	}
	err = add(l.conn.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceAdded) {
		emit(d, DeviceAdded, e.DevAlias)
	}))
	if unsupported(err) { // the test driver; the QEMU driver always has both
		return nil
	}
	if err != nil {
		return err
	}
	err = add(l.conn.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceRemoved) {
		emit(d, DeviceRemoved, e.DevAlias)
	}))
	if err != nil {
		return err
	}
	// Of the two kinds of this event it is the one that names the disk by its target.
	return add(l.conn.DomainEventBlockJob2Register(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventBlockJob) {
		if kind, detail, ok := copyEvent(e.Disk, e.Type, e.Status); ok {
			emit(d, kind, detail)
		}
	}))
}

// alive asks the client library, not libvirtd: it is cheap.
func (l *link) alive() bool {
	ok, err := l.conn.IsAlive()
	return ok && err == nil
}

// handle returns the libvirt object of a domain, and what to call when done with it. A handle names a domain
// by UUID: it stays good when the domain is stopped and started again.
func (l *link) handle(uuid string) (*libvirt.Domain, func(), error) {
	l.handlesMu.Lock()
	h := l.handles[uuid]
	l.handlesMu.Unlock()
	if h != nil {
		return h, func() {}, nil
	}
	h, err := l.conn.LookupDomainByUUIDString(uuid) // a round trip: not under the lock
	if err != nil {
		return nil, nil, err
	}
	l.handlesMu.Lock()
	defer l.handlesMu.Unlock()
	if l.handles[uuid] == nil && len(l.handles) < maxHandles {
		l.handles[uuid] = h
		return h, func() {}, nil
	}
	return h, func() { _ = h.Free() }, nil
}

// close releases everything. Errors are of no use: the link is either broken or not needed any more.
// libvirt frees a connection only when nothing refers to it, and each registration does.
func (l *link) close() {
	l.calls.Wait()
	for _, h := range l.handles {
		_ = h.Free()
	}
	for _, id := range l.eventIDs {
		_ = l.conn.DomainEventDeregister(id)
	}
	_ = l.conn.UnregisterCloseCallback()
	_, _ = l.conn.Close()
}

// dialCtx is dial with a context. A connection made too late is closed again.
func dialCtx(ctx context.Context, uri string, onEvent func(Event), onLost func(*link)) (*link, error) {
	l, err := fly(ctx, func() (*link, error) { return dial(uri, onEvent, onLost) }, (*link).close)
	if err != nil {
		return nil, &CallError{Op: "connect to " + uri, Err: classify(err, func() bool { return true })}
	}
	return l, nil
}
