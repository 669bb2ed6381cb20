package vmstate

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestWriteSaveHeader(t *testing.T) {
	var b bytes.Buffer
	if err := WriteSaveHeader(&b, "<domain/>", true); err != nil {
		t.Fatal(err)
	}
	same(t, b.Bytes(), golden(t, "save.hex"))
}

func TestWriteSaveHeaderRefuses(t *testing.T) {
	var b bytes.Buffer
	for _, xml := range []string{"", strings.Repeat("x", MaxXMLBytes)} {
		if err := WriteSaveHeader(&b, xml, false); !errors.Is(err, ErrBounds) {
			t.Errorf("%d bytes of XML: %v", len(xml), err)
		}
	}
	if err := WriteSaveHeader(&b, "<domain\x00/>", false); err == nil {
		t.Error("a zero byte in the XML was taken")
	}
	if b.Len() > 0 {
		t.Errorf("%d bytes written", b.Len())
	}
}
