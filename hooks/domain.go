package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/virt-ft/virt-ft/internal/hookd"
)

// xmlBytesMax bounds how far the UUID is looked for. It is among the first
// elements of a domain, but metadata and descriptions have no bound.
const xmlBytesMax = 512 << 10

// readUUID finds a domain's UUID in its XML: <domain><uuid>. It reads no further.
func readUUID(r io.Reader) (string, error) {
	dec := xml.NewDecoder(io.LimitReader(r, xmlBytesMax))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // a UUID is the same in all
	for depth, inside := 0, false; ; {
		token, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", fmt.Errorf("the domain's XML: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			depth++
			inside = depth == 2 && t.Name.Space == "" && t.Name.Local == "uuid"
		case xml.EndElement:
			depth--
			inside = false
		case xml.CharData:
			if !inside {
				continue
			}
			if uuid := strings.ToLower(strings.TrimSpace(string(t))); hookd.IsUUID(uuid) {
				return uuid, nil
			}
			return "", fmt.Errorf("the domain's XML: %q is no UUID", t)
		}
	}
}
