package ftengine

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what the machines answer")

// vocabulary names every event that a transcript may use.
func vocabulary() map[string]reflect.Type {
	words := map[string]reflect.Type{}
	for _, e := range []Event{SessionUp{}, SessionDown{}, ClaimDone{}, Retry{}, PeerDropped{}, StandbyReady{}, Captured{}, CaptureFailed{},
		Acked{}, Rehearsed{}, PaceDue{}, GuestGone{}, WinnerRunning{}, WinnerWithdrew{}, PeerStoodDown{}, PeerActivated{}, Unprotect{}, HandOver{},
		StandbyMade{}, Staged{}, CommitDone{}, RehearseDone{}, ReleasedTo{}, GuestDead{}, StandDown{}, OperatorActivate{}, StandbyDied{},
		LoadDone{}, ConfirmDone{}, ResumeDone{}} {
		t := reflect.TypeOf(e)
		words[t.Name()] = t
	}
	return words
}

// parseEvent reads "Name Field=value Field". A field without a value is true,
// "_" in a value is a space.
func parseEvent(words map[string]reflect.Type, line string) (Event, error) {
	parts := strings.Fields(line)
	t, ok := words[parts[0]]
	if !ok {
		return nil, fmt.Errorf("no event %q", parts[0])
	}
	v := reflect.New(t).Elem()
	for _, part := range parts[1:] {
		name, val, given := strings.Cut(part, "=")
		f := v.FieldByName(name)
		switch {
		case !f.IsValid():
			return nil, fmt.Errorf("%s has no field %q", parts[0], name)
		case f.Kind() == reflect.Bool:
			f.SetBool(!given || val == "true")
		case f.Kind() == reflect.String:
			f.SetString(strings.ReplaceAll(val, "_", " "))
		default:
			n, err := number(val)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", part, err)
			}
			f.SetUint(n)
		}
	}
	return v.Interface().(Event), nil
}

func number(s string) (uint64, error) {
	names := map[string]uint64{"closed": uint64(Closed), "silent": uint64(Silent), "won": uint64(Won), "lost": uint64(Lost),
		"unknown": uint64(Unknown), "operator": uint64(NeedOperator)}
	if n, ok := names[s]; ok {
		return n, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// show prints an action as "Name Field=value …", without fields that are zero.
func show(a Action) string {
	v := reflect.ValueOf(a)
	out := v.Type().Name()
	for i := range v.NumField() {
		if v.Field(i).IsZero() || v.Type().Field(i).Name == "Token" {
			continue
		}
		val := strings.ReplaceAll(fmt.Sprint(v.Field(i).Interface()), " ", "_")
		if v.Field(i).Kind() == reflect.Bool {
			out += " " + v.Type().Field(i).Name
			continue
		}
		out += " " + v.Type().Field(i).Name + "=" + val
	}
	return out
}

// teller runs one transcript: lines that start with "#" or are empty stay,
// "A …" and "B …" are events of a machine, indented lines are its answers.
// Retry is the answer to that machine's last RetryAfter.
// "A start GEN PHASE" and "B start" or "B restart GEN PHASE FOUND" make one.
type teller struct {
	words map[string]reflect.Type
	a     *Primary
	b     *Backup
	last  map[string]uint64 // token of each side's last RetryAfter
}

func (t *teller) tell(line string) ([]string, error) {
	side, rest, _ := strings.Cut(line, " ")
	parts := strings.Fields(rest)
	if len(parts) == 0 || side != "A" && side != "B" {
		return nil, fmt.Errorf("not a line of a story: %q", line)
	}
	var acts []Action
	switch {
	case side == "A" && parts[0] == "start":
		gen, err := strconv.ParseUint(parts[1], 10, 64)
		if err != nil {
			return nil, err
		}
		t.a = RestorePrimary(Generation(gen), parts[2], DefaultLimits())
		acts = t.a.Start()
	case parts[0] == "start":
		t.b = NewBackup(DefaultLimits())
	case parts[0] == "restart":
		gen, err := strconv.ParseUint(parts[1], 10, 64)
		if err != nil {
			return nil, err
		}
		found := map[string]StandbyFound{"gone": StandbyGone, "loaded": StandbyLoaded, "runs": StandbyRuns}[parts[3]]
		t.b, acts = RestoreBackup(Generation(gen), parts[2], found, DefaultLimits())
	default:
		e, err := parseEvent(t.words, rest)
		if err != nil {
			return nil, err
		}
		if _, ok := e.(Retry); ok {
			e = Retry{t.last[side]}
		}
		if side == "A" {
			acts = t.a.Step(e)
		} else {
			acts = t.b.Step(e)
		}
	}
	var out []string
	for _, a := range acts {
		if r, ok := a.(RetryAfter); ok {
			t.last[side] = r.Token
		}
		out = append(out, "    "+show(a))
	}
	if side == "A" {
		return append(out, fmt.Sprintf("    = %v, generation %d", t.a.State(), t.a.Generation())), nil
	}
	return append(out, fmt.Sprintf("    = %v, generation %d", t.b.State(), t.b.Generation())), nil
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			story, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tell := teller{words: vocabulary(), last: map[string]uint64{}}
			var out []string
			for n, line := range strings.Split(strings.TrimRight(string(story), "\n"), "\n") {
				switch {
				case strings.HasPrefix(line, "    "):
					continue // an answer: told anew
				case line == "", strings.HasPrefix(line, "#"):
					out = append(out, line)
					continue
				}
				answers, err := tell.tell(line)
				if err != nil {
					t.Fatalf("%s:%d: %v", file, n+1, err)
				}
				out = append(append(out, line), answers...)
			}
			got := strings.Join(out, "\n") + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(story) {
				t.Errorf("the story goes otherwise; -update rewrites it. It is now:\n%s", got)
			}
		})
	}
}
