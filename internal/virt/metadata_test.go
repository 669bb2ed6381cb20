package virt

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// metadataSchema is published for others who read our metadata.
const metadataSchema = "../../docs/metadata.rng"

// checkMetadata holds our elements of a domain's XML against the schema, and wants
// as many.
func checkMetadata(t *testing.T, domainXML string, want int) {
	t.Helper()
	found := ourElements(t, domainXML)
	if len(found) != want {
		t.Errorf("%d elements of ours, want %d, in\n%s", len(found), want, domainXML)
	}
	for _, element := range found {
		if complaint := againstSchema(t, element); complaint != "" {
			t.Errorf("%s\n%s", element, complaint)
		}
	}
}

// ourElements are the outermost ones of our namespace, each as a document of its
// own.
func ourElements(t *testing.T, doc string) (found []string) {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(doc))
	for {
		start := dec.InputOffset()
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Space == Namespace {
			if err := dec.Skip(); err != nil {
				t.Fatal(err)
			}
			found = append(found, doc[start:dec.InputOffset()])
		}
	}
}

// againstSchema returns what xmllint complains of; nothing without it.
func againstSchema(t *testing.T, doc string) string {
	t.Helper()
	if _, err := exec.LookPath("xmllint"); err != nil {
		return ""
	}
	file := filepath.Join(t.TempDir(), "metadata.xml")
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("xmllint", "--nonet", "--noout", "--relaxng", metadataSchema, file).CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out) + err.Error()
}

// TestMetadataSchema holds all that we write, and the examples of the page that
// explains it, against the schema, which must not let everything pass.
func TestMetadataSchema(t *testing.T) {
	if _, err := exec.LookPath("xmllint"); err != nil {
		t.Skip("xmllint is missing (package libxml2-utils)")
	}
	full := Note{Protection: "p<1>", Generation: 1<<64 - 1, Role: RoleActive, PrimaryHost: `a"b`, Title: "one & two", Description: "d\nd"}
	// As libvirt does with what it is given.
	stale := strings.Replace(Stale{Generation: 4, ActiveHost: `a"b<c>`, Since: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC)}.marshal(),
		"<stale", `<stale xmlns="`+Namespace+`"`, 1)
	for _, doc := range []string{full.full(), Note{Protection: "1", Generation: 1, Role: RoleStandby}.full(), stale} {
		checkMetadata(t, doc, 1)
	}
	for _, bad := range []string{
		strings.Replace(full.full(), string(RoleActive), "idle", 1), strings.Replace(full.full(), ` id="`, ` name="`, 1),
		strings.Replace(stale, "2026", "soon", 1), strings.Replace(stale, Namespace, "urn:other", 1),
		strings.Replace(full.full(), "18446744073709551615", "-1", 1),
	} {
		if againstSchema(t, bad) == "" {
			t.Errorf("the schema lets pass: %s", bad)
		}
	}
	const examples = 2
	for _, example := range regexp.MustCompile("(?s)```xml\n(.*?)```").FindAllStringSubmatch(readFile(t, "../../docs/METADATA.md"), -1) {
		checkMetadata(t, example[1], 1)
	}
	if n := strings.Count(readFile(t, "../../docs/METADATA.md"), "```xml"); n != examples {
		t.Errorf("the page shows %d examples, want %d", n, examples)
	}
}
