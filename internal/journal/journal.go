// Package journal writes log records to systemd's journal in its native protocol,
// so that they keep their fields: `journalctl VIRT_FT_DOMAIN=web1` shows one guest's,
// `journalctl MESSAGE_ID=…` one kind of event on all hosts.
//
// The protocol is described at https://systemd.io/JOURNAL_NATIVE_PROTOCOL; the
// datagrams are made by go-systemd, a large one by a file whose descriptor is sent.
package journal

import (
	"context"
	"log/slog"
	"maps"
	"runtime"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

const (
	// prefix begins the names of fields that are ours.
	prefix = "VIRT_FT_"
	// Bounds of one record; what is beyond them is cut, or left out.
	nameBytesMax  = 64 // of a field, as journald has it
	valueBytesMax = 64 << 10
	fieldsMax     = 64
)

// Handler is a slog.Handler. A record becomes a message with its attributes behind
// it, as people read it, and a field for each attribute: VIRT_FT_ and the
// attribute's name in capitals. PRIORITY is that of the level, CODE_FILE, CODE_LINE
// and CODE_FUNC are where it was written, and MESSAGE_ID marks what is listed
// in [IDs]. Safe for concurrent use.
type Handler struct {
	level slog.Leveler
	// fallback gets what the journal does not take.
	fallback slog.Handler
	fields   map[string]string // of WithAttrs; never changed
	text     string            // the same for people
	group    string            // prefix of names, from WithGroup
}

// New returns a handler for records of at least that level. What cannot be
// written, because journald is restarted or full, goes to fallback.
func New(level slog.Leveler, fallback slog.Handler) *Handler {
	return &Handler{level: level, fallback: fallback}
}

// OnStandardError reports whether standard error ends in the journal, as systemd
// says by JOURNAL_STREAM: then records may as well go there natively.
func OnStandardError() bool {
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}

// Available reports whether there is a journal to write to.
func Available() bool { return journal.Enabled() }

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := h.clone()
	c.fallback = h.fallback.WithAttrs(attrs)
	var text strings.Builder
	text.WriteString(h.text)
	for _, a := range attrs {
		add(c.fields, &text, h.group, a)
	}
	c.text = text.String()
	return c
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := h.clone()
	c.fallback = h.fallback.WithGroup(name)
	c.group = h.group + name + "."
	return c
}

func (h *Handler) clone() *Handler {
	c := *h
	c.fields = make(map[string]string, len(h.fields)+8)
	maps.Copy(c.fields, h.fields)
	return &c
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	fields := make(map[string]string, len(h.fields)+r.NumAttrs()+8)
	maps.Copy(fields, h.fields)
	var text strings.Builder
	text.WriteString(h.text)
	r.Attrs(func(a slog.Attr) bool {
		add(fields, &text, h.group, a)
		return true
	})
	if r.Message == stateMessage {
		// "now" is short for people; for the journal it is the state.
		if now, ok := fields[prefix+"NOW"]; ok {
			delete(fields, prefix+"NOW")
			fields[prefix+"STATE"] = now
		}
	}
	if id := MessageID(r.Message, fields[prefix+"STATE"]); id != "" {
		fields["MESSAGE_ID"] = id
	}
	if r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		fields["CODE_FILE"], fields["CODE_LINE"], fields["CODE_FUNC"] = f.File, strconv.Itoa(f.Line), f.Function
	}
	fields["SYSLOG_IDENTIFIER"] = "virt-ft"
	if err := journal.Send(cut(r.Message+text.String()), priority(r.Level), fields); err != nil {
		return h.fallback.Handle(ctx, r)
	}
	return nil
}

// add adds an attribute to fields, and to what people read.
func add(fields map[string]string, text *strings.Builder, group string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range v.Group() {
			add(fields, text, group, inner)
		}
		return
	}
	if a.Equal(slog.Attr{}) || len(fields) >= fieldsMax {
		return
	}
	value := cut(v.String())
	fields[fieldName(group+a.Key)] = value
	text.WriteString(" " + group + a.Key + "=" + quoted(value))
}

// fieldName is the name of an attribute's field: journald drops fields with
// other characters than these.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	name = prefix + name
	return name[:min(len(name), nameBytesMax)]
}

// quoted is a value as slog's text has it.
func quoted(value string) string {
	if value == "" || strings.ContainsAny(value, " \"=\n\t") {
		return strconv.Quote(value)
	}
	return value
}

func cut(s string) string {
	if len(s) > valueBytesMax {
		return s[:valueBytesMax]
	}
	return s
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
