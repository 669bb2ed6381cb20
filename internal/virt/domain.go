package virt

import (
	"context"
	"strings"

	"libvirt.org/go/libvirt"
)

// Domain is a domain of this host. It stays valid when libvirtd or the domain is restarted, and is safe for
// concurrent use.
type Domain struct {
	conn       *Conn
	name, uuid string
}

// Info is a domain in a list.
type Info struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	State State  `json:"state"`
}

// Lookup finds a domain, running or not, by its UUID or else by its name. The error is ErrNoDomain when there
// is none.
func (c *Conn) Lookup(ctx context.Context, nameOrUUID string) (*Domain, error) {
	return call(ctx, c, "look up", nameOrUUID, func(l *link) (*Domain, error) {
		var h *libvirt.Domain
		var err error
		if looksLikeUUID(nameOrUUID) {
			h, err = l.conn.LookupDomainByUUIDString(nameOrUUID)
		}
		if h == nil {
			h, err = l.conn.LookupDomainByName(nameOrUUID)
		}
		if err != nil {
			return nil, err
		}
		defer func() { _ = h.Free() }()
		return c.domainOf(h)
	}, nil)
}

func looksLikeUUID(s string) bool {
	return len(s) == 36 && strings.Count(s, "-") == 4
}

func (c *Conn) domainOf(h *libvirt.Domain) (*Domain, error) {
	name, err := h.GetName()
	if err != nil {
		return nil, err
	}
	uuid, err := h.GetUUIDString()
	if err != nil {
		return nil, err
	}
	return &Domain{conn: c, name: name, uuid: uuid}, nil
}

// forEach calls fn for every domain that flags select (0: all).
func forEach(l *link, flags libvirt.ConnectListAllDomainsFlags, fn func(*libvirt.Domain) error) error {
	all, err := l.conn.ListAllDomains(flags)
	if err != nil {
		return err
	}
	for i := range all {
		if err == nil {
			err = fn(&all[i])
		}
		_ = all[i].Free()
	}
	return err
}

// gone reports that a domain disappeared between being listed and being asked.
func gone(err error) bool {
	e, ok := err.(libvirt.Error)
	return ok && e.Code == libvirt.ERR_NO_DOMAIN
}

// Domains lists all domains of this host, running or not.
func (c *Conn) Domains(ctx context.Context) ([]Info, error) {
	return call(ctx, c, "list domains", "", func(l *link) ([]Info, error) {
		var list []Info
		err := forEach(l, 0, func(h *libvirt.Domain) error {
			state, reason, err := h.GetState()
			if gone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			d, err := c.domainOf(h)
			if err != nil {
				return err
			}
			list = append(list, Info{Name: d.name, UUID: d.uuid, State: stateOf(state, reason)})
			return nil
		})
		return list, err
	}, nil)
}

// Name returns the name the domain had when it was looked up.
func (d *Domain) Name() string { return d.name }

// UUID returns the domain's UUID in lower case with dashes.
func (d *Domain) UUID() string { return d.uuid }

// State asks libvirt for the domain's state.
func (d *Domain) State(ctx context.Context) (State, error) {
	return onDomain(ctx, d, "get state", func(h *libvirt.Domain) (State, error) {
		state, reason, err := h.GetState()
		return stateOf(state, reason), err
	})
}

// Persistent reports whether the domain has a definition that survives its end.
func (d *Domain) Persistent(ctx context.Context) (bool, error) {
	return onDomain(ctx, d, "is persistent", (*libvirt.Domain).IsPersistent)
}

// XML returns the domain's migratable XML: what another host needs to run the same guest, without what only
// concerns this one. It contains secrets (a VNC password).
func (d *Domain) XML(ctx context.Context) (string, error) {
	return onDomain(ctx, d, "get migratable XML", func(h *libvirt.Domain) (string, error) {
		return h.GetXMLDesc(libvirt.DOMAIN_XML_MIGRATABLE | libvirt.DOMAIN_XML_SECURE)
	})
}

// LiveXML returns the XML of the domain as it runs now, without secrets.
func (d *Domain) LiveXML(ctx context.Context) (string, error) {
	return onDomain(ctx, d, "get XML", func(h *libvirt.Domain) (string, error) { return h.GetXMLDesc(0) })
}

// Suspend pauses the guest.
func (d *Domain) Suspend(ctx context.Context) error {
	return do(ctx, d, "suspend", (*libvirt.Domain).Suspend)
}

// Resume lets a paused guest run.
func (d *Domain) Resume(ctx context.Context) error {
	return do(ctx, d, "resume", (*libvirt.Domain).Resume)
}

// Destroy kills the domain's QEMU. A domain that is not running, or not known any more, is no error.
func (d *Domain) Destroy(ctx context.Context) error {
	return do(ctx, d, "destroy", func(h *libvirt.Domain) error { return destroy(h) })
}

func destroy(h *libvirt.Domain) error {
	err := h.Destroy()
	if err == nil || gone(err) {
		return nil
	}
	if active, e := h.IsActive(); (e == nil && !active) || gone(e) {
		return nil
	}
	return err
}
