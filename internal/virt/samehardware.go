package virt

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// SameHardware tells whether two XMLs of a domain, both live or both migratable, describe the same machine, leaving
// out what comes and goes by itself: block copies and the backing files that they leave behind, libvirt's ids,
// aliases and labels, the balloon's current size, an open tray, a guest agent that connects, a clock the guest has
// set; and what people write about it: title, description, metadata. Everything else counts, elements that are
// newer than this program included. It is a pure function.
func SameHardware(a, b string) (bool, error) {
	first, err := canonical(a)
	if err != nil {
		return false, err
	}
	second, err := canonical(b)
	if err != nil {
		return false, err
	}
	return first == second, nil
}

// fleeting tells elements that are no hardware, by their path below <domain>.
func fleeting(path []string) bool {
	if len(path) == 0 {
		return false
	}
	switch strings.Join(path, "/") {
	case "title", "description", "metadata", "currentMemory",
		"devices/disk/mirror", "devices/disk/backingStore", "devices/memory/target/current":
		return true
	}
	last := path[len(path)-1]
	return last == "alias" || last == "seclabel"
}

// fleetingAttr tells attributes that are no hardware, by their element's path below <domain>.
func fleetingAttr(path []string, name string) bool {
	switch strings.Join(path, "/") + "@" + name {
	case "@id", "devices/disk/source@index", "devices/disk/target@tray", "devices/channel/target@state", "clock@adjustment":
		return true
	}
	return name == "xmlns" // it is part of the names already
}

// canonical writes an XML such that two of them are equal when they mean the same hardware: without white space
// between elements, attributes sorted.
func canonical(doc string) (string, error) {
	if len(doc) > maxDomainXMLBytes {
		return "", fmt.Errorf("domain XML of %d bytes, at most %d", len(doc), maxDomainXMLBytes)
	}
	var out strings.Builder
	var path []string
	skipped := 0 // depth below, and with, an element that is left out
	roots := 0
	for dec := xml.NewDecoder(strings.NewReader(doc)); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("domain XML: %w", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if path == nil {
				if roots++; t.Name.Local != "domain" || roots > 1 {
					return "", fmt.Errorf("domain XML: element %q instead of one domain", t.Name.Local)
				}
			}
			path = append(path, t.Name.Local)
			if skipped > 0 || fleeting(path[1:]) {
				skipped++
				continue
			}
			writeStart(&out, path[1:], t)
		case xml.EndElement:
			path = path[:len(path)-1]
			if len(path) == 0 {
				path = nil
			}
			if skipped > 0 {
				skipped--
				continue
			}
			out.WriteString("</>")
		case xml.CharData:
			if text := strings.TrimSpace(string(t)); skipped == 0 && text != "" {
				fmt.Fprintf(&out, "%q", text)
			}
		}
	}
	if roots == 0 {
		return "", errors.New("domain XML: no domain in it")
	}
	return out.String(), nil
}

func writeStart(out *strings.Builder, path []string, t xml.StartElement) {
	fmt.Fprintf(out, "<%s %s", t.Name.Space, t.Name.Local)
	attrs := slices.DeleteFunc(slices.Clone(t.Attr), func(a xml.Attr) bool {
		return a.Name.Space == "xmlns" || fleetingAttr(path, a.Name.Local)
	})
	slices.SortFunc(attrs, func(a, b xml.Attr) int {
		return strings.Compare(a.Name.Space+" "+a.Name.Local, b.Name.Space+" "+b.Name.Local)
	})
	for _, a := range attrs {
		fmt.Fprintf(out, " %s:%s=%q", a.Name.Space, a.Name.Local, a.Value)
	}
	out.WriteString(">")
}
