package vmstate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	saveMagic   = "LibvirtQemudSave"
	saveVersion = 2
	// saveHeaderBytes: magic, version, XML length, running, compression, cookie offset, 14 unused.
	saveHeaderBytes = len(saveMagic) + 5*4 + 14*4
)

// WriteSaveHeader writes the beginning of a libvirt save image, which
// virDomainRestore reads; an uncompressed QEMU stream has to follow. running
// tells libvirt to resume the guest once it is loaded. Source: libvirt,
// src/qemu/qemu_saveimage.h.
func WriteSaveHeader(w io.Writer, xml string, running bool) error {
	if len(xml) == 0 || len(xml) >= MaxXMLBytes {
		return fmt.Errorf("save image: domain XML of %d bytes: %w", len(xml), ErrBounds)
	}
	if strings.IndexByte(xml, 0) >= 0 {
		return errors.New("save image: domain XML contains a zero byte")
	}
	le := binary.LittleEndian
	b := make([]byte, 0, saveHeaderBytes+len(xml)+1)
	b = append(b, saveMagic...)
	b = le.AppendUint32(b, saveVersion)
	b = le.AppendUint32(b, uint32(len(xml)+1))
	b = le.AppendUint32(b, boolNumber(running))
	b = append(b, make([]byte, saveHeaderBytes-len(b))...)
	b = append(b, xml...)
	b = append(b, 0)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("save image: write header: %w", err)
	}
	return nil
}

func boolNumber(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
