package replica

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
)

// Data connections in plain, when both hosts want them so (Transport.Pages). The
// memory of a guest then travels readable by whoever is on the way, without the
// cost of encrypting and copying it: lent to the kernel as without TLS. That is all
// that is given up. The control connection is TLS, and both sides take from it
// (RFC 5705, RFC 8446 7.5) a secret that nobody else has, for this one session:
//
//	secret  = TLS-Exporter("EXPORTER-virt-ft-pages", token of the Welcome, 32)
//	ticket i = HKDF-Expand(secret, "ticket " i): the token of data connection i; works once
//	key i    = HKDF-Expand(secret, "to listener " i), "to dialer " i: for its records
//
// After the handshake each record, which is a message, is followed by a seal of 16
// bytes in place of the CRC in its header, which is zero. What was made up, changed,
// left out, doubled or is out of its order has a wrong seal, and ends the session.
//
// The seal of record n (from 0, in each direction; not sent) is GMAC, that is
// AES-128-GCM without anything to encrypt (NIST SP 800-38D), in two steps: the
// payload is cut in blocks of 4 KiB, a new one beginning with the data that follows a
// table of runs, so that blocks are pages and need not be copied; and
//
//	t(i) = GMAC(key, nonce = n, i;  block i), i from 1
//	seal = GMAC(key, nonce = n, 0;  header, t(1), t(2) ...)
//
// No nonce comes twice under one key. t never leaves the process. To forge a seal
// is a guess of about 1 in 2^118, and there is one guess. Where it was measured
// GMAC took four times as long as CRC32C, two thirds of what AES-GCM does (BenchmarkSeal).
const (
	sealBytes      = 16
	sealBlockBytes = PageSize
	exporterLabel  = "EXPORTER-virt-ft-pages"
	exporterBytes  = 32
	sealKeyBytes   = 16
)

// errSeal is why a record does not count.
var errSeal = errors.New("the seal is wrong: it was changed, made up, or is out of its order")

// seals is what a session's data connections are sealed with.
type seals struct{ secret []byte }

// newSeals takes the secret of a session from its control connection.
func newSeals(control *tls.Conn, token Token) (*seals, error) {
	cs := control.ConnectionState()
	secret, err := cs.ExportKeyingMaterial(exporterLabel, token[:], exporterBytes)
	if err != nil {
		return nil, fmt.Errorf("keys for plain pages: %w", err)
	}
	return &seals{secret}, nil
}

func (s *seals) derive(what string, stream, n int) []byte {
	b, err := hkdf.Expand(sha256.New, s.secret, fmt.Sprintf("%s %d", what, stream), n)
	if err != nil {
		panic("replica: HKDF-Expand: " + err.Error()) // its one error is a length above 8160 bytes
	}
	return b
}

// ticket is the token of a data connection.
func (s *seals) ticket(stream int) (t Token) {
	copy(t[:], s.derive("ticket", stream, len(t)))
	return t
}

// put seals everything on c from now on.
func (s *seals) put(c *Conn, listener bool) {
	in, out := "to dialer", "to listener"
	if listener {
		in, out = out, in
	}
	c.out, c.in.seal = newSealer(s.derive(out, c.stream, sealKeyBytes)), newSealer(s.derive(in, c.stream, sealKeyBytes))
	c.sending = make(chan struct{}, 1)
}

// sealer makes the seals of one direction of a connection, or what they are to be.
// For one goroutine at a time.
type sealer struct {
	gmac   cipher.AEAD
	record uint64
	nonce  [12]byte

	head  []byte // the header, and the tags of the blocks so far
	begun []byte // the begun block, when it came in pieces
	block uint32 // whole ones so far
}

func newSealer(key []byte) *sealer {
	block, err := aes.NewCipher(key)
	var gmac cipher.AEAD
	if err == nil {
		gmac, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic("replica: AES-GCM: " + err.Error()) // the key's length is ours
	}
	return &sealer{gmac: gmac, begun: make([]byte, 0, sealBlockBytes)}
}

func (s *sealer) tag(dst []byte, block uint32, what []byte) []byte {
	binary.BigEndian.PutUint64(s.nonce[:], s.record)
	binary.BigEndian.PutUint32(s.nonce[8:], block)
	return s.gmac.Seal(dst, s.nonce[:], nil, what)
}

// begin begins a record.
func (s *sealer) begin(header []byte) {
	s.head = append(s.head[:0], header...)
	s.begun, s.block = s.begun[:0], 0
}

// cut ends the block.
func (s *sealer) cut() {
	if len(s.begun) > 0 {
		s.add(s.begun)
		s.begun = s.begun[:0]
	}
}

func (s *sealer) add(block []byte) {
	s.block++
	s.head = s.tag(s.head, s.block, block)
}

// write goes on with p.
func (s *sealer) write(p []byte) {
	if n := len(s.begun); n > 0 {
		n = min(sealBlockBytes-n, len(p))
		s.begun, p = append(s.begun, p[:n]...), p[n:]
		if len(s.begun) == sealBlockBytes {
			s.cut()
		}
	}
	for len(p) >= sealBlockBytes {
		s.add(p[:sealBlockBytes])
		p = p[sealBlockBytes:]
	}
	s.begun = append(s.begun, p...)
}

// sum ends the record, and appends its seal to dst.
func (s *sealer) sum(dst []byte) []byte {
	s.cut()
	dst = s.tag(dst, 0, s.head)
	s.record++
	return dst
}

// checkSum compares what was read of a message with what it came with: the CRC in
// its header, or the seal behind it.
func (c *Conn) checkSum(ctx context.Context, h Header, crc uint32) error {
	if c.in.seal == nil {
		return checkCRC(h, crc)
	}
	var came [sealBytes]byte
	if _, err := c.receiver.ReadFull(ctx, came[:]); err != nil {
		return err
	}
	want := c.in.seal.sum(c.in.sealed[:0])
	if subtle.ConstantTimeCompare(came[:], want) != 1 || h.PayloadCRC != 0 {
		return &FormatError{Type: h.Type, Field: "seal", Offset: HeaderBytes + int(h.PayloadBytes), Reason: errSeal.Error()}
	}
	return nil
}

// sealed sends one message, which is bufs, in its turn: header and table in the
// first of them, whose first tableEnd bytes they are. Without seals it is Send.
func (c *Conn) sealedSend(ctx context.Context, done func(error), tableEnd int, bufs ...[]byte) error {
	if c.out == nil {
		return c.sender.Send(ctx, done, bufs...)
	}
	select { // records are numbered in the order in which they are sent
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		if done != nil {
			done(ctx.Err())
		}
		return ctx.Err()
	}
	first := bufs[0]
	c.out.begin(first[:HeaderBytes])
	c.out.write(first[HeaderBytes:tableEnd])
	c.out.cut()
	c.out.write(first[tableEnd:])
	for _, b := range bufs[1:] {
		c.out.write(b)
	}
	return c.sender.Send(ctx, done, append(bufs, c.out.sum(nil))...)
}
