package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// CapQuestions says in a Hello of RoleAsking that the sender has questions, and in
// the Welcome that the listener answers them on the same connection, which
// then stays open. A daemon that does not know it leaves the bit out.
const CapQuestions Capabilities = 1 << 0

// Bounds of asking. A listener holds to them whatever an asker sends.
const (
	MaxQuestionBytes = 1 << 20 // body of one Question
	MaxAnswerBytes   = 256 << 10

	maxAskers          = 4                // at a time, of all peers
	maxQuestions       = 4096             // on one connection
	maxFillBytes       = 512 << 20        // on one connection
	askingMax          = 30 * time.Second // of one connection
	fillChunkBytes     = 256 << 10
	fillFirstBytes     = 64 << 10
	questionHeadBytes  = 8 + 1 + 4
	answerHeadBytes    = 8 + 8 + 8 + 1 + 4 + 4
	remedyToAskLater   = "try again in a moment"
	reasonTooManyAsker = "other hosts are being answered"
)

// QuestionKind is what a Question is for. Zero is invalid.
type QuestionKind uint8

// The kinds of questions.
const (
	QuestionEcho  QuestionKind = 1 // to be answered at once: for round trips, and to compare clocks
	QuestionFill  QuestionKind = 2 // its body fills the link, and is not answered
	QuestionFacts QuestionKind = 3 // its body is the daemons' own, see ListenerOptions.Answer
)

// Question is what a daemon that only asks sends after the Welcome.
type Question struct {
	Seq  uint64 // from 1
	Kind QuestionKind
	Body []byte
}

// Answer answers a Question, but for those that only fill the link.
type Answer struct {
	Seq                uint64 // of the Question
	CameUnixNs, UnixNs int64  // the answerer's clock on the wall when the question came, and when this left
	Refused            bool
	Reason             string // why, if it is refused
	Body               []byte
}

// Type implements Message.
func (*Question) Type() Type { return TypeQuestion }

// Type implements Message.
func (*Answer) Type() Type { return TypeAnswer }

func (m *Question) fields(c *codec) {
	c.u64("seq", &m.Seq)
	c.check(m.Seq > 0, "seq", "zero is invalid")
	c.u8("kind", (*uint8)(&m.Kind))
	c.check(m.Kind >= QuestionEcho && m.Kind <= QuestionFacts, "kind", "is unknown")
	c.bytes("body", &m.Body, MaxQuestionBytes)
}

func (m *Answer) fields(c *codec) {
	c.u64("seq", &m.Seq)
	c.check(m.Seq > 0, "seq", "zero is invalid")
	c.i64("cameUnixNs", &m.CameUnixNs)
	c.i64("unixNs", &m.UnixNs)
	c.boolean("refused", &m.Refused)
	c.text("reason", &m.Reason)
	c.bytes("body", &m.Body, MaxAnswerBytes)
}

func (m *Question) payloadBytes() int { return questionHeadBytes + len(m.Body) }

// serveQuestions welcomes an asker and answers it until it closes the connection or
// a bound is reached.
func (l *Listener) serveQuestions(ctx context.Context, c *Conn, peer Peer, hello *Hello, st Stamp, welcome Welcome, release func()) error {
	select {
	case l.askers <- struct{}{}:
		defer func() { <-l.askers }()
	default:
		return l.refuse(ctx, c, st, Refuse{CodeBusy, reasonTooManyAsker, remedyToAskLater})
	}
	welcome.Capabilities |= CapQuestions
	if err := c.Send(ctx, st, &welcome); err != nil {
		return err
	}
	release() // what there is from here on is bounded by askers
	c.version, c.asking = welcome.Version, true
	ctx, cancel := context.WithTimeout(l.ctx, askingMax)
	defer cancel()
	filled := 0
	for range maxQuestions {
		f, err := c.Recv(ctx)
		if errors.Is(err, ErrPeerClosed) {
			return c.Close()
		}
		if err != nil {
			return fmt.Errorf("answering questions: %w", err)
		}
		q, known := f.Msg.(*Question)
		if !known {
			return &FormatError{Type: f.Type, Field: "type", Offset: 5, Reason: "is no question"}
		}
		a := &Answer{Seq: q.Seq, CameUnixNs: time.Now().UnixNano()}
		switch q.Kind {
		case QuestionFill:
			if filled += len(q.Body); filled > maxFillBytes {
				return fmt.Errorf("an asker filled the link with more than %d bytes", maxFillBytes)
			}
			continue
		case QuestionFacts:
			if a.Body, err = l.o.Answer(ctx, peer, hello, q.Body); err != nil {
				a.Refused, a.Reason, a.Body = true, err.Error(), nil
			}
		}
		a.UnixNs = time.Now().UnixNano()
		if err := c.Send(ctx, st, a); err != nil {
			return fmt.Errorf("answering questions: %w", err)
		}
	}
	return fmt.Errorf("an asker had more than %d questions", maxQuestions)
}

// ErrNoAnswers says that the peer's daemon is of a release that answers no questions.
var ErrNoAnswers = errors.New("the peer's daemon answers no questions: it is of an older release")

// Asker is a connection on which a peer's daemon answers questions. It is for one
// goroutine. Close it.
type Asker struct {
	Welcome Welcome // what the peer has of the domain
	c       *Conn
	seq     uint64
}

// Question opens a connection for questions about hello.Domain to the daemon at
// addr. Errors are those of Ask. A peer that answers no questions yields an
// Asker, for its Welcome, and ErrNoAnswers.
func (d *Dialer) Question(ctx context.Context, addr string, protection UUID, hello Hello) (*Asker, error) {
	ctx, cancel := context.WithTimeout(ctx, d.handshakeTimeout())
	defer cancel()
	cfg, err := d.configFor(addr)
	if err != nil {
		return nil, err
	}
	hello.VersionMin, hello.VersionMax = VersionMin, VersionMax
	hello.Channel, hello.Role, hello.Streams = ControlChannel, RoleAsking, 1
	hello.Capabilities |= CapQuestions
	c, f, err := d.greet(ctx, addr, cfg, protection, Stamp{}, &hello)
	if err != nil {
		return nil, err
	}
	a := &Asker{Welcome: *f.Msg.(*Welcome), c: c}
	a.Welcome.Generation = max(a.Welcome.Generation, f.Generation)
	if a.Welcome.Capabilities&CapQuestions == 0 {
		return a, errors.Join(ErrNoAnswers, c.Close())
	}
	c.version, c.asking = a.Welcome.Version, true
	return a, nil
}

// Close ends the connection. It is idempotent.
func (a *Asker) Close() error { return a.c.Close() }

// Ask sends a question for ListenerOptions.Answer and returns what that returned.
func (a *Asker) Ask(ctx context.Context, question []byte) ([]byte, error) {
	answer, err := a.exchange(ctx, QuestionFacts, question)
	if err != nil {
		return nil, err
	}
	if answer.Refused {
		return nil, fmt.Errorf("the peer does not answer: %s", answer.Reason)
	}
	return answer.Body, nil
}

// Echo is one round trip: how long it took, and four readings of clocks on the
// wall in Unix nanoseconds, as pkg/kvmclock compares them.
type Echo struct {
	RoundTrip                  time.Duration
	Sent, Came, Answered, Back int64
}

// Echo makes one round trip with the smallest message.
func (a *Asker) Echo(ctx context.Context) (Echo, error) {
	start := time.Now()
	answer, err := a.exchange(ctx, QuestionEcho, nil)
	if err != nil {
		return Echo{}, err
	}
	took := time.Since(start)
	// Not start plus took: both clocks are not read at the same instant, and a
	// preemption between them would make Back earlier than it was.
	back := time.Now().UnixNano()
	return Echo{RoundTrip: took, Sent: start.UnixNano(), Came: answer.CameUnixNs, Answered: answer.UnixNs, Back: back}, nil
}

// Fill measures what the link carries, in bytes per second: it sends batches, each
// twice as large as the one before, until one took long enough to tell, or
// the next would exceed the bounds in all. The link is busy meanwhile.
func (a *Asker) Fill(ctx context.Context, during time.Duration, bytesMax int) (bytesPerSecond float64, err error) {
	chunk := make([]byte, fillChunkBytes)
	_, _ = rand.Read(chunk) // never fails; nothing on the way can pack it
	began, sent := time.Now(), 0
	for batch := fillFirstBytes; ; batch *= 2 {
		start := time.Now()
		for rest := batch; rest > 0; rest -= min(rest, len(chunk)) {
			a.seq++
			if err := a.c.Send(ctx, Stamp{}, &Question{Seq: a.seq, Kind: QuestionFill, Body: chunk[:min(rest, len(chunk))]}); err != nil {
				return 0, err
			}
		}
		if _, err := a.exchange(ctx, QuestionEcho, nil); err != nil {
			return 0, err
		}
		took := time.Since(start)
		bytesPerSecond = max(bytesPerSecond, float64(batch)/took.Seconds()) // the first batches pay for the slow start
		sent += batch
		if took > during/4 || time.Since(began)+2*took > during || sent+2*batch > min(bytesMax, maxFillBytes) {
			return bytesPerSecond, nil
		}
	}
}

func (a *Asker) exchange(ctx context.Context, kind QuestionKind, body []byte) (*Answer, error) {
	a.seq++
	if err := a.c.Send(ctx, Stamp{}, &Question{Seq: a.seq, Kind: kind, Body: body}); err != nil {
		return nil, err
	}
	f, err := a.c.Recv(ctx)
	if err != nil {
		return nil, err
	}
	answer, known := f.Msg.(*Answer)
	if !known || answer.Seq != a.seq {
		return nil, &FormatError{Type: f.Type, Field: "seq", Reason: "is not that of the question"}
	}
	return answer, nil
}
