package diskrep

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Placement is what a rule for the place of an image may speak of.
type Placement struct {
	Domain string
	UUID   string
	Disk   string // its target, such as "vda"
	Source string // path on the primary; empty where it has none
}

// pathBytesMax is what Linux takes.
const pathBytesMax = 4095

// placeholders are the names that a rule may use.
const placeholders = "{domain}, {uuid}, {disk}, {source} (the path on the primary), {dir} and {base} (its two parts)"

// Place makes the path of an image out of a rule such as
// "/var/lib/libvirt/images/{domain}-{disk}.raw". A value cannot lead out of the
// directory that the rule names: {domain}, {uuid}, {disk} and {base} hold no
// slash, and the result is a clean absolute path.
func Place(rule string, p Placement) (string, error) {
	var path strings.Builder
	rest := rule
	for {
		text, after, found := strings.Cut(rest, "{")
		if strings.Contains(text, "}") {
			return "", fmt.Errorf("rule %q for disks: a } without its {", rule)
		}
		path.WriteString(text)
		if !found {
			break
		}
		name, next, closed := strings.Cut(after, "}")
		if !closed {
			return "", fmt.Errorf("rule %q for disks: a { without its }", rule)
		}
		value, err := p.value(name)
		if err != nil {
			return "", fmt.Errorf("rule %q for disks: %w", rule, err)
		}
		path.WriteString(value)
		rest = next
	}
	return checkPlace(rule, path.String())
}

// value returns what a placeholder stands for.
func (p Placement) value(name string) (string, error) {
	v, slashes := "", false
	switch name {
	case "domain":
		v = p.Domain
	case "uuid":
		v = p.UUID
	case "disk":
		v = p.Disk
	case "source", "dir", "base":
		if p.Source == "" {
			return "", fmt.Errorf("{%s}: disk %s has no path on the primary; say where it goes without it", name, p.Disk)
		}
		if !filepath.IsAbs(p.Source) || filepath.Clean(p.Source) != p.Source || p.Source == "/" {
			return "", fmt.Errorf("{%s}: %q, the path of disk %s on the primary, is not a clean absolute one", name, p.Source, p.Disk)
		}
		slashes = name != "base"
		switch name {
		case "source":
			v = p.Source
		case "dir":
			v = strings.TrimSuffix(filepath.Dir(p.Source), "/") // of a file in /: {dir}/{base} is right then too
			return v, nil
		case "base":
			v = filepath.Base(p.Source)
		}
	default:
		return "", fmt.Errorf("{%s} is not known; there are %s", name, placeholders)
	}
	switch {
	case v == "":
		return "", fmt.Errorf("{%s} is empty here", name)
	case !slashes && strings.Contains(v, "/"):
		return "", fmt.Errorf("{%s} is %q here: a slash in it would lead elsewhere", name, v)
	}
	return v, nil
}

// checkPlace refuses what is not a usual path of a file.
func checkPlace(rule, path string) (string, error) {
	var why error
	switch {
	case !filepath.IsAbs(path):
		why = errors.New("it must begin with a slash")
	case path == "/" || strings.HasSuffix(path, "/"):
		why = errors.New("it names no file")
	case filepath.Clean(path) != path:
		why = fmt.Errorf("it is not clean (that would be %q)", filepath.Clean(path))
	case len(path) > pathBytesMax:
		return "", fmt.Errorf("rule %q for disks makes a path of %d bytes, at most %d", rule, len(path), pathBytesMax)
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		why = errors.New("it holds a control character")
	}
	if why != nil {
		return "", fmt.Errorf("rule %q for disks makes the path %q: %w", rule, path, why)
	}
	return path, nil
}
