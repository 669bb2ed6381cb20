package virt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
)

const staleElement = "stale"

// Stale is our element in the persistent definition of a domain whose guest went on elsewhere: its disks here are
// of the past, and it must not be started with them. A domain started from such a definition carries the element in
// its live XML too, where Note does not take it for one of its own.
type Stale struct {
	Generation uint64 // of the protection, since which the guest runs on ActiveHost
	ActiveHost string
	Since      time.Time
}

func (s Stale) marshal() string {
	var host strings.Builder
	_ = xml.EscapeText(&host, []byte(s.ActiveHost)) // a Builder does not fail
	return fmt.Sprintf(`<%s generation="%d" active="%s" since="%s"/>`, staleElement, s.Generation, host.String(),
		s.Since.UTC().Format(time.RFC3339Nano))
}

func parseStale(doc string) (Stale, error) {
	if len(doc) > maxNoteBytes {
		return Stale{}, fmt.Errorf("virt-ft metadata of %d bytes, at most %d", len(doc), maxNoteBytes)
	}
	var x struct {
		XMLName    xml.Name
		Generation uint64    `xml:"generation,attr"`
		Active     string    `xml:"active,attr"`
		Since      time.Time `xml:"since,attr"`
	}
	if err := xml.Unmarshal([]byte(doc), &x); err != nil {
		return Stale{}, fmt.Errorf("virt-ft metadata: %w", err)
	}
	if x.XMLName.Local != staleElement {
		return Stale{}, fmt.Errorf("%w that says stale, but %q", ErrNoNote, x.XMLName.Local)
	}
	return Stale{Generation: x.Generation, ActiveHost: x.Active, Since: x.Since}, nil
}

// NoteStale marks the persistent definition of the domain, whether it runs or not. A domain without one has nothing
// that could be started by accident: that is no error.
func (d *Domain) NoteStale(ctx context.Context, s Stale) error {
	return d.setStale(ctx, "mark as stale", s.marshal())
}

// ClearStale removes the mark; no mark is no error.
func (d *Domain) ClearStale(ctx context.Context) error {
	return d.setStale(ctx, "remove the stale mark", "")
}

func (d *Domain) setStale(ctx context.Context, op, element string) error {
	err := do(ctx, d, op, func(h *libvirt.Domain) error {
		persistent, err := h.IsPersistent()
		if err != nil || !persistent {
			return err
		}
		if element == "" {
			if _, err := persistentStale(h); errors.Is(err, ErrNoNote) {
				return nil
			}
		}
		return h.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, element, namespacePrefix, Namespace, libvirt.DOMAIN_AFFECT_CONFIG)
	})
	if errors.Is(err, ErrNoDomain) {
		return nil
	}
	return err
}

// Stale reads the mark; the error is ErrNoNote when there is none.
func (d *Domain) Stale(ctx context.Context) (Stale, error) {
	return onDomain(ctx, d, "read the stale mark", func(h *libvirt.Domain) (Stale, error) {
		persistent, err := h.IsPersistent()
		if err != nil {
			return Stale{}, err
		}
		if !persistent {
			return Stale{}, ErrNoNote
		}
		return persistentStale(h)
	})
}

func persistentStale(h *libvirt.Domain) (Stale, error) {
	doc, err := h.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, Namespace, libvirt.DOMAIN_AFFECT_CONFIG)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN_METADATA {
		return Stale{}, ErrNoNote
	}
	if err != nil {
		return Stale{}, err
	}
	return parseStale(doc)
}
