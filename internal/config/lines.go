package config

import (
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
)

// lineIndex finds the line of a key. The TOML package forgets it once a file
// is decoded; this second look is good enough for messages: it understands
// table headers, dotted keys and quotes, not keys inside inline tables, which
// are reported at the line of their table.
type lineIndex map[string]int

func findLines(text string) lineIndex {
	index := lineIndex{}
	var table []string
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		var key []string
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[':
			end := strings.IndexByte(line, ']')
			if end < 0 {
				continue
			}
			table = splitKey(strings.Trim(line[:end], "[]"))
			key = table
		default:
			name, _, found := strings.Cut(line, "=")
			if !found {
				continue
			}
			key = append(append([]string(nil), table...), splitKey(name)...)
		}
		if joined := strings.Join(key, "\x00"); index[joined] == 0 {
			index[joined] = i + 1
		}
	}
	return index
}

// splitKey splits a dotted key, taking quotes off its parts.
func splitKey(key string) []string {
	var parts []string
	var part strings.Builder
	var quote rune
	for _, r := range strings.TrimSpace(key) {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			part.WriteRune(r)
		case r == '"' || r == '\'':
			quote = r
		case r == '.':
			parts = append(parts, part.String())
			part.Reset()
		case r == ' ' || r == '\t':
		default:
			part.WriteRune(r)
		}
	}
	return append(parts, part.String())
}

// of returns the line of key, or of the nearest table around it, or 0.
func (x lineIndex) of(key toml.Key) int {
	for n := len(key); n > 0; n-- {
		if line := x[strings.Join(key[:n], "\x00")]; line > 0 {
			return line
		}
	}
	return 0
}

func parentUndecoded(meta toml.MetaData, key toml.Key) bool {
	for _, other := range meta.Undecoded() {
		if len(other) < len(key) && strings.HasPrefix(key.String(), other.String()+".") {
			return true
		}
	}
	return false
}

// suggestion names the table in which a misplaced key would be known, or the
// known key that differs only in spelling details.
func suggestion(key toml.Key) string {
	last := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(key[len(key)-1]))
	for _, known := range knownKeys(reflect.TypeFor[Config](), "") {
		name := known[strings.LastIndexByte(known, '.')+1:]
		if strings.ReplaceAll(name, "_", "") == last && known != key.String() {
			return ": did you mean " + known + "?"
		}
	}
	return ""
}

// knownKeys lists the dotted keys of a configuration in the order of the struct.
func knownKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		name := prefix + t.Field(i).Tag.Get("toml")
		if ft := t.Field(i).Type; ft.Kind() == reflect.Struct {
			keys = append(keys, knownKeys(ft, name+".")...)
			continue
		}
		keys = append(keys, name)
	}
	return keys
}
