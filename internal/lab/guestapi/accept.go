package guestapi

import (
	"encoding/binary"
	"fmt"
)

// The acceptance service: clients put numbered requests, the guest changes its
// state and then answers, and whoever got an answer may expect the guest to know
// of it for ever. Requests and answers are fixed-size records, big endian, the
// same over TCP and UDP.
//
//	request   magic op session seq nonce          8 bytes each
//	answer    magic status session seq nonce serial hash, boot id (16)
const (
	// AcceptPort takes requests over TCP and UDP.
	AcceptPort = 8
	// AcceptSessionsMax bounds how many sessions one guest keeps.
	AcceptSessionsMax = 256
	// RequestBytes and AnswerBytes are the exact sizes of the records.
	RequestBytes = 40
	AnswerBytes  = 72
)

// AcceptOp is what a request wants. Zero is invalid.
type AcceptOp uint64

const (
	// OpApply asks for the session's next step: seq is one more than the last.
	OpApply AcceptOp = 1
	// OpQuery asks for the session's state and changes nothing.
	OpQuery AcceptOp = 2
)

// AcceptStatus is what an answer says. Zero is invalid.
type AcceptStatus uint64

const (
	// StatusApplied: the request was applied, now or when it came first; Serial
	// and Hash are those it got then.
	StatusApplied AcceptStatus = 1
	// StatusState answers a query: Seq, Nonce, Serial and Hash are those of the
	// last request that was applied, all zero for an unknown session.
	StatusState AcceptStatus = 2
	// StatusGap: seq is not the next one. Seq is the highest that was applied.
	StatusGap AcceptStatus = 3
	// StatusOld: seq was applied, but it is not the last one; how it was answered
	// is not kept.
	StatusOld AcceptStatus = 4
	// StatusConflict: seq was applied, with another nonce.
	StatusConflict AcceptStatus = 5
	// StatusFull: no room for another session.
	StatusFull AcceptStatus = 6
)

func (s AcceptStatus) String() string {
	names := [...]string{"invalid", "applied", "state", "gap", "old", "conflict", "full"}
	if s < AcceptStatus(len(names)) {
		return names[s]
	}
	return fmt.Sprintf("status %d", uint64(s))
}

// Request is one request. Session and, for OpApply, Seq begin at 1.
type Request struct {
	Op                  AcceptOp
	Session, Seq, Nonce uint64
}

// Answer is the guest's answer to a request.
type Answer struct {
	Status              AcceptStatus
	Session, Seq, Nonce uint64
	Serial              uint64 // place of this request among all that the guest ever applied, from 1
	Hash                uint64 // of the session's requests up to this one, see Chain
	BootID              BootID
}

const (
	requestMagic = 0x7666742d61637131 // "vft-acq1"
	answerMagic  = 0x7666742d61636131 // "vft-aca1"
)

// Append encodes r behind dst, RequestBytes in all.
func (r Request) Append(dst []byte) []byte {
	for _, v := range [...]uint64{requestMagic, uint64(r.Op), r.Session, r.Seq, r.Nonce} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return dst
}

// ParseRequest decodes one record. Another size or magic, an unknown operation,
// session zero and a request to apply seq zero are an ErrFormat.
func ParseRequest(b []byte) (Request, error) {
	if len(b) != RequestBytes || binary.BigEndian.Uint64(b) != requestMagic {
		return Request{}, fmt.Errorf("%w: acceptance request of %d bytes", ErrFormat, len(b))
	}
	at := func(word int) uint64 { return binary.BigEndian.Uint64(b[8*word:]) }
	r := Request{Op: AcceptOp(at(1)), Session: at(2), Seq: at(3), Nonce: at(4)}
	if r.Op != OpApply && r.Op != OpQuery || r.Session == 0 || r.Op == OpApply && r.Seq == 0 {
		return Request{}, fmt.Errorf("%w: acceptance request %+v", ErrFormat, r)
	}
	return r, nil
}

// Append encodes a behind dst, AnswerBytes in all.
func (a Answer) Append(dst []byte) []byte {
	for _, v := range [...]uint64{answerMagic, uint64(a.Status), a.Session, a.Seq, a.Nonce, a.Serial, a.Hash} {
		dst = binary.BigEndian.AppendUint64(dst, v)
	}
	return append(dst, a.BootID[:]...)
}

// ParseAnswer decodes one record. Another size or magic, or an unknown status,
// is an ErrFormat.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) != AnswerBytes || binary.BigEndian.Uint64(b) != answerMagic {
		return Answer{}, fmt.Errorf("%w: acceptance answer of %d bytes", ErrFormat, len(b))
	}
	at := func(word int) uint64 { return binary.BigEndian.Uint64(b[8*word:]) }
	a := Answer{Status: AcceptStatus(at(1)), Session: at(2), Seq: at(3), Nonce: at(4), Serial: at(5), Hash: at(6),
		BootID: BootID(b[56:AnswerBytes])}
	if a.Status < StatusApplied || a.Status > StatusFull {
		return Answer{}, fmt.Errorf("%w: acceptance answer with %v", ErrFormat, a.Status)
	}
	return a, nil
}

// Chain returns the hash of a session's requests up to one, from the hash up to
// the one before (0 before the first) and the request's seq and nonce. Client
// and guest compute it on their own (splitmix64's finalizer).
func Chain(hash, seq, nonce uint64) uint64 {
	z := hash ^ seq*0x9e3779b97f4a7c15 ^ nonce*0xd1b54a32d192ed03
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
