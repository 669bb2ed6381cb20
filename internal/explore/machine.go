package explore

import (
	"encoding/binary"
	"fmt"
	"reflect"

	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// machine names a state of a Primary or a Backup; 0 is none.
type machine uint16

// machinesMax bounds the different states of one machine.
const machinesMax = 1 << 16

// stepped is what one step of a machine comes to.
type stepped struct {
	next    machine
	acts    []ftengine.Action
	armed   bool // a Retry is to come that will count
	disarms bool // one that was to come does not count any more
	panics  string
}

type question struct {
	from machine
	ask  ftengine.Event
}

// table numbers the states of one kind of machine and remembers their steps:
// the worlds are many, the machines in them few. M is ftengine.Primary or
// ftengine.Backup; both are copied by value, and change nothing that a copy
// shares with its original (a slice of actions is only ever replaced).
type table[M any] struct {
	step  func(*M, ftengine.Event) []ftengine.Action
	all   []M
	ids   map[string]machine
	steps map[question]stepped
	key   []byte
}

func newTable[M any](step func(*M, ftengine.Event) []ftengine.Action) *table[M] {
	return &table[M]{step: step, all: make([]M, 1), ids: map[string]machine{}, steps: map[question]stepped{}}
}

// add returns the number of m's state.
func (t *table[M]) add(m *M) machine {
	t.key = appendState(t.key[:0], reflect.ValueOf(m).Elem())
	if id, known := t.ids[string(t.key)]; known {
		return id
	}
	if len(t.all) == machinesMax {
		panic(fmt.Sprintf("explore: %T has more than %d states: something in it counts without end", *m, machinesMax))
	}
	id := machine(len(t.all))
	t.all = append(t.all, *m)
	t.ids[string(t.key)] = id
	return id
}

func (t *table[M]) get(id machine) *M { return &t.all[id] }

// take has the machine id take e. retry stands for a Retry with the token that
// counts.
func (t *table[M]) take(id machine, e ftengine.Event) (s stepped) {
	q := question{id, e}
	if s, known := t.steps[q]; known {
		return s
	}
	m := t.all[id]
	before := token(&m)
	if _, ok := e.(ftengine.Retry); ok {
		e = ftengine.Retry{Token: before}
	}
	func() {
		defer func() {
			if r := recover(); r != nil {
				s.panics = fmt.Sprint(r)
			}
		}()
		s.acts = t.step(&m, e)
	}()
	if s.panics == "" {
		s.next, s.armed, s.disarms = t.add(&m), arms(s.acts, token(&m)), token(&m) != before
	}
	t.steps[q] = s
	return s
}

func token[M any](m *M) uint64 { return reflect.ValueOf(m).Elem().FieldByName("token").Uint() }

// arms tells whether acts ask for a Retry with the token that counts.
func arms(acts []ftengine.Action, token uint64) bool {
	for _, a := range acts {
		if r, ok := a.(ftengine.RetryAfter); ok && r.Token == token {
			return true
		}
	}
	return false
}

// appendState appends all of a machine that its steps depend on. It takes the
// fields as they are, so that a new one is never forgotten, and panics on one
// that a copy would share.
func appendState(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		return binary.AppendVarint(b, v.Int())
	case reflect.String:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		return append(b, v.String()...)
	case reflect.Struct:
		for i := range v.NumField() {
			switch v.Type().Field(i).Name {
			case "limits", "token", "reason", "Reason", "Token":
			default:
				b = appendState(b, v.Field(i))
			}
		}
		return b
	case reflect.Slice:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = appendState(b, v.Index(i))
		}
		return b
	case reflect.Interface:
		if v.IsNil() {
			return append(b, 0)
		}
		b = append(b, v.Elem().Type().String()...)
		return appendState(append(b, 0), v.Elem())
	}
	panic(fmt.Sprintf("explore: a machine holds a %v, which a copy of it would share", v.Type()))
}
