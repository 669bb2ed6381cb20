package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// negotiate greets the client and answers its options. It returns nil when the
// client has chosen an export.
func (c *conn) negotiate() error {
	be := binary.BigEndian
	hello := be.AppendUint64(nil, magicInit)
	hello = be.AppendUint64(hello, magicOption)
	hello = be.AppendUint16(hello, handshakeFixed|handshakeNoZeroes)
	if err := c.wire.send(hello); err != nil {
		return err
	}
	var head [16]byte
	if err := c.wire.readFull(head[:4]); err != nil {
		return gone(err)
	}
	flags := be.Uint32(head[:])
	if flags&^(handshakeFixed|handshakeNoZeroes) != 0 {
		return fmt.Errorf("the client wants unknown handshake flags: %#x", flags)
	}
	c.fixed, c.noZeroes = flags&handshakeFixed != 0, flags&handshakeNoZeroes != 0
	for range optionsMax {
		if err := c.wire.readFull(head[:]); err != nil {
			return gone(err)
		}
		if magic := be.Uint64(head[:]); magic != magicOption {
			return fmt.Errorf("an option begins with %#x", magic)
		}
		option, length := be.Uint32(head[8:]), be.Uint32(head[12:])
		if length > optionBytesMax {
			return fmt.Errorf("option %d has %d bytes of data, at most %d", option, length, optionBytesMax)
		}
		data := make([]byte, length)
		if err := c.wire.readFull(data); err != nil {
			return gone(err)
		}
		done, err := c.option(option, data)
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("more than %d options", optionsMax)
}

// option answers one option; done if it chose an export.
func (c *conn) option(option uint32, data []byte) (done bool, err error) {
	if !c.fixed && option != optExportName {
		return false, fmt.Errorf("option %d from a client that does not know fixed newstyle", option)
	}
	switch option {
	case optExportName:
		return true, c.optExportName(string(data))
	case optAbort:
		_ = c.reply(option, repAck, nil) // the client may have gone
		return false, errGoodbye
	case optList:
		return false, c.optList(data)
	case optInfo, optGo:
		return c.optInfo(option, data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, c.refuse(option, repErrInvalid, "this option has no data")
		}
		c.structured = true
		return false, c.reply(option, repAck, nil)
	case optListMeta, optSetMeta:
		return false, c.optMeta(option, data)
	default:
		return false, c.refuse(option, repErrUnsup, "this server does not know the option")
	}
}

// reply sends one reply to an option.
func (c *conn) reply(option, kind uint32, data []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(make([]byte, 0, 20+len(data)), magicRep)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	return c.wire.send(append(b, data...))
}

func (c *conn) refuse(option, kind uint32, why string) error {
	return c.reply(option, kind, []byte(why))
}

// transmissionFlags are the same for every export.
func (c *conn) transmissionFlags() uint16 {
	f := flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero
	if c.structured {
		f |= flagDF
	}
	return f
}

// optExportName is how old clients choose: an error can only be told by closing.
func (c *conn) optExportName(name string) error {
	e := c.s.choose(c, name)
	if e == nil {
		return fmt.Errorf("there is no export %.64q", name)
	}
	be := binary.BigEndian
	b := be.AppendUint64(nil, uint64(e.size))
	b = be.AppendUint16(b, c.transmissionFlags())
	if !c.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	return c.wire.send(b)
}

func (c *conn) optList(data []byte) error {
	if len(data) != 0 {
		return c.refuse(optList, repErrInvalid, "this option has no data")
	}
	for _, name := range c.s.names() {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		if err := c.reply(optList, repServer, append(b, name...)); err != nil {
			return err
		}
	}
	return c.reply(optList, repAck, nil)
}

// optInfo answers INFO and GO, which differ in that GO also chooses.
func (c *conn) optInfo(option uint32, data []byte) (done bool, err error) {
	d := optionData{rest: data}
	name := d.text()
	for range d.number16() {
		d.number16() // what the client wants to know: it is told all there is
	}
	if err := d.end(); err != nil {
		return false, c.refuse(option, repErrInvalid, err.Error())
	}
	e := c.s.lookup(name)
	if e != nil && option == optGo {
		e = c.s.choose(c, name)
	}
	if e == nil {
		return false, c.refuse(option, repErrUnknown, "there is no such export")
	}
	be := binary.BigEndian
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(e.size))
	b = be.AppendUint16(b, c.transmissionFlags())
	if err := c.reply(option, repInfo, b); err != nil {
		return false, err
	}
	b = be.AppendUint16(nil, infoBlockSize)
	b = be.AppendUint32(b, blockBytesMin)
	b = be.AppendUint32(b, blockBytesPreferred)
	b = be.AppendUint32(b, RequestBytesMax)
	if err := c.reply(option, repInfo, b); err != nil {
		return false, err
	}
	return option == optGo, c.reply(option, repAck, nil)
}

// optMeta lists or selects what is known about the blocks of an export: if
// anything, base:allocation.
func (c *conn) optMeta(option uint32, data []byte) error {
	if option == optSetMeta {
		c.statusOf = nil // also when this fails
	}
	if !c.structured {
		return c.refuse(option, repErrInvalid, "structured replies come first")
	}
	d := optionData{rest: data}
	name, queries := d.text(), d.number32()
	if queries > queriesMax {
		return c.refuse(option, repErrTooBig, "too many queries")
	}
	found := queries == 0 && option == optListMeta
	for range queries {
		q := d.text()
		if d.err == nil && !strings.Contains(q, ":") {
			d.err = errors.New("a query has no namespace")
		}
		found = found || q == allocationContext || q == "base:" && option == optListMeta
	}
	if err := d.end(); err != nil {
		return c.refuse(option, repErrInvalid, err.Error())
	}
	e := c.s.lookup(name)
	if e == nil {
		return c.refuse(option, repErrUnknown, "there is no such export")
	}
	if found && e.extents != nil {
		id := uint32(0)
		if option == optSetMeta {
			c.statusOf, id = e, allocationContextID
		}
		b := binary.BigEndian.AppendUint32(nil, id)
		if err := c.reply(option, repMeta, append(b, allocationContext...)); err != nil {
			return err
		}
	}
	return c.reply(option, repAck, nil)
}

// optionData takes the data of an option apart and keeps the first error.
type optionData struct {
	rest []byte
	err  error
}

var errShort = errors.New("the option's data is too short for what it announces")

func (d *optionData) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.err = errShort
	}
	if d.err != nil {
		return make([]byte, min(n, 4)) // zeros for a number, nothing to loop over
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *optionData) number16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *optionData) number32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

// text takes a string after its length.
func (d *optionData) text() string {
	n := d.number32()
	if d.err == nil && n > nameBytesMax {
		d.err = fmt.Errorf("a string of %d bytes, at most %d", n, nameBytesMax)
	}
	if d.err != nil {
		return ""
	}
	s := string(d.take(int(n)))
	if d.err == nil && !utf8.ValidString(s) {
		d.err = errors.New("a string that is not UTF-8")
	}
	return s
}

// end returns the first error, or that there is more.
func (d *optionData) end() error {
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.rest))
	}
	return d.err
}
