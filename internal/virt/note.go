package virt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"libvirt.org/go/libvirt"
)

// Namespace is the XML namespace of our element in a domain's <metadata>.
const Namespace = "https://virt-ft.org/xmlns/domain/1.0"

const (
	namespacePrefix = "virtft"
	noteElement     = "protection"
	maxNoteBytes    = 64 << 10
)

// Role says what a domain with a Note is.
type Role string

// RoleStandby waits for checkpoints; RoleActive was a standby and runs the guest since a failover.
const (
	RoleStandby Role = "standby"
	RoleActive  Role = "active"
)

// Note is our element in the <metadata> of a standby domain. Protected domains never carry one.
type Note struct {
	Protection  string // protection id
	Generation  uint64
	Role        Role
	PrimaryHost string
	// Title and Description are the guest's own, which ClearNote puts back.
	Title, Description string
}

// noteXML leaves the namespace of its elements open: libvirt strips it on reading.
type noteXML struct {
	XMLName     xml.Name
	ID          string `xml:"id,attr"`
	Generation  uint64 `xml:"generation,attr"`
	Role        Role   `xml:"role,attr"`
	Primary     string `xml:"primary,attr"`
	Title       string `xml:"title,omitempty"`
	Description string `xml:"description,omitempty"`
}

func (n Note) marshal(elementName string, attrs string) string {
	var b strings.Builder
	attr := func(name, value string) {
		b.WriteString(" " + name + `="`)
		_ = xml.EscapeText(&b, []byte(value)) // a Builder does not fail
		b.WriteString(`"`)
	}
	prefix, _, _ := strings.Cut(elementName, ":")
	if prefix == elementName {
		prefix = ""
	} else {
		prefix += ":"
	}
	child := func(name, value string) {
		if value == "" {
			return
		}
		b.WriteString("<" + prefix + name + ">")
		_ = xml.EscapeText(&b, []byte(value))
		b.WriteString("</" + prefix + name + ">")
	}
	b.WriteString("<" + elementName + attrs)
	attr("id", n.Protection)
	attr("generation", fmt.Sprint(n.Generation))
	attr("role", string(n.Role))
	attr("primary", n.PrimaryHost)
	b.WriteString(">")
	child("title", n.Title)
	child("description", n.Description)
	b.WriteString("</" + elementName + ">")
	return b.String()
}

// full is the element as it stands in a domain's XML.
func (n Note) full() string {
	return n.marshal(namespacePrefix+":"+noteElement, fmt.Sprintf(` xmlns:%s="%s"`, namespacePrefix, Namespace))
}

func parseNote(doc string) (Note, error) {
	if len(doc) > maxNoteBytes {
		return Note{}, fmt.Errorf("virt-ft metadata of %d bytes, at most %d", len(doc), maxNoteBytes)
	}
	var x noteXML
	if err := xml.Unmarshal([]byte(doc), &x); err != nil {
		return Note{}, fmt.Errorf("virt-ft metadata: %w", err)
	}
	if x.XMLName.Local == staleElement {
		return Note{}, fmt.Errorf("%w of a standby: it was started from a definition that is marked stale", ErrNoNote)
	}
	if x.XMLName.Local != noteElement {
		return Note{}, fmt.Errorf("virt-ft metadata: element %q instead of %q", x.XMLName.Local, noteElement)
	}
	return Note{
		Protection: x.ID, Generation: x.Generation, Role: x.Role, PrimaryHost: x.Primary,
		Title: x.Title, Description: x.Description,
	}, nil
}

// cutNotes removes our elements from the inside of a <metadata> element, leaves every other byte as it is, and
// returns the last of ours that can be read.
func cutNotes(inner string) (rest string, note Note, found bool, err error) {
	const open = "<metadata>"
	doc := open + inner + "</metadata>"
	dec := xml.NewDecoder(strings.NewReader(doc))
	var kept strings.Builder
	depth, copied, start, ours := 0, len(open), 0, false
	for {
		before := int(dec.InputOffset())
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", Note{}, false, fmt.Errorf("metadata: %w", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if depth == 1 && t.Name.Space == Namespace {
				ours, start = true, before
			}
			depth++
		case xml.EndElement:
			depth--
			if depth == 1 && ours {
				end := int(dec.InputOffset())
				if n, err := parseNote(doc[start:end]); err == nil {
					note, found = n, true
				}
				kept.WriteString(doc[copied:start])
				copied, ours = end, false
			}
		}
	}
	kept.WriteString(doc[copied : len(doc)-len("</metadata>")])
	return kept.String(), note, found, nil
}

// Note reads our metadata of a running domain; ErrNoNote when it has none.
func (d *Domain) Note(ctx context.Context) (Note, error) {
	return onDomain(ctx, d, "read virt-ft metadata", liveNote)
}

func liveNote(h *libvirt.Domain) (Note, error) {
	doc, err := h.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, Namespace, libvirt.DOMAIN_AFFECT_LIVE)
	if err != nil {
		return Note{}, err
	}
	return parseNote(doc)
}

// SetNote writes our metadata into a running domain, in place of an earlier one. It is meant for standbys, and
// for what was one.
func (d *Domain) SetNote(ctx context.Context, n Note) error {
	return do(ctx, d, "write virt-ft metadata", func(h *libvirt.Domain) error {
		// libvirt puts the element and its children into the namespace by itself
		return h.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, n.marshal(noteElement, ""),
			namespacePrefix, Namespace, libvirt.DOMAIN_AFFECT_LIVE)
	})
}

// ClearNote removes our metadata from a running domain, and gives it back its own title and description. A
// domain without our metadata is left alone.
func (d *Domain) ClearNote(ctx context.Context) error {
	return do(ctx, d, "remove virt-ft metadata", func(h *libvirt.Domain) error {
		n, err := liveNote(h)
		var e libvirt.Error
		if errors.Is(err, ErrNoNote) || errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN_METADATA {
			return nil
		}
		if err != nil {
			return err
		}
		for _, m := range []struct {
			kind  libvirt.DomainMetadataType
			value string
			uri   string
		}{
			{libvirt.DOMAIN_METADATA_TITLE, n.Title, ""},
			{libvirt.DOMAIN_METADATA_DESCRIPTION, n.Description, ""},
			{libvirt.DOMAIN_METADATA_ELEMENT, "", Namespace}, // last: while it is there, all can be repeated
		} {
			if err := h.SetMetadata(m.kind, m.value, "", m.uri, libvirt.DOMAIN_AFFECT_LIVE); err != nil {
				return err
			}
		}
		return nil
	})
}
