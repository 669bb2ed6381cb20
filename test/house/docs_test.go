package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/pkg/ftengine"
)

// documents returns the pages for people, relative to root.
func documents(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(files(t), func(n string) bool { return filepath.Ext(n) != ".md" })
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// forbidden returns words that say where somebody built this, or name a server
// that a package manager is to choose. They are put together here, because this
// file is searched too.
func forbidden() []string {
	dot := "."
	return []string{
		"/wo" + "rk/",
		"deb" + dot + "debian.org", "snapshot" + dot + "debian.org", "archive" + dot + "ubuntu.com",
		"proxy" + dot + "golang.org", "sum" + dot + "golang.org", "goproxy" + dot,
		"pypi" + dot + "org", "files" + dot + "pythonhosted.org", "registry" + dot + "npmjs", "crates" + dot + "io",
		"docker" + dot + "io", "ghcr" + dot + "io", "quay" + dot + "io",
	}
}

func TestForbiddenWords(t *testing.T) {
	for _, name := range files(t) {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, word := range forbidden() {
			if i := bytes.Index(b, []byte(word)); i >= 0 {
				t.Errorf("%s:%d: %q", name, 1+bytes.Count(b[:i], []byte("\n")), word)
			}
		}
	}
}

// TestMakeTargets: a target that a page names is in the Makefile.
func TestMakeTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	named := regexp.MustCompile("(?m)(?:`|^    (?:\\$ )?)make ([a-z-]+)")
	for _, name := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(read(t, name), -1) {
			if !targets[m[1]] {
				t.Errorf("%s: make %s is not a target", name, m[1])
			}
		}
	}
	readme := read(t, "README.md")
	for _, must := range []string{"make demo", "make test"} {
		if !strings.Contains(readme, must) {
			t.Errorf("README.md does not name `%s`", must)
		}
	}
}

// TestConfigKeys: docs/OPERATIONS.md explains every key, with its default, and
// no other.
func TestConfigKeys(t *testing.T) {
	const page = "docs/OPERATIONS.md"
	want := map[string]string{}
	configKeys(reflect.ValueOf(config.Default()), "", want)
	row := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| ([^|]*) \\|")
	for _, m := range row.FindAllStringSubmatch(section(t, page, "## Configuration"), -1) {
		value, known := want[m[1]]
		switch {
		case !known:
			t.Errorf("%s explains %s, which is not a key", page, m[1])
		case value != "" && m[2] != "`"+value+"`":
			t.Errorf("%s says that the default of %s is %s; it is `%s`", page, m[1], m[2], value)
		}
		delete(want, m[1])
	}
	for key := range want {
		t.Errorf("%s does not explain %s", page, key)
	}
}

// section returns what follows a heading, up to the next of its rank.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(read(t, page), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no %q", page, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// TestStates: docs/OPERATIONS.md explains every state that status may show.
func TestStates(t *testing.T) {
	const page = "docs/OPERATIONS.md"
	text := section(t, page, "## Reading `virt-ft status`")
	want := []string{}
	for s := ftengine.PrimaryConnecting; s <= ftengine.PrimaryStopped; s++ {
		want = append(want, s.String())
	}
	for s := ftengine.BackupWaiting; s <= ftengine.BackupStopped; s++ {
		want = append(want, s.String())
	}
	for _, state := range want {
		if !strings.Contains(text, "`"+state+"`") {
			t.Errorf("%s does not explain the state %s", page, state)
		}
	}
}

// configKeys adds the dotted key of every setting and its default as TOML has
// it; an empty default is one that is derived, or none.
func configKeys(v reflect.Value, prefix string, keys map[string]string) {
	for i := range v.NumField() {
		tag, f := v.Type().Field(i).Tag.Get("toml"), v.Field(i)
		name := prefix + tag
		d, isDuration := f.Interface().(interface{ String() string })
		switch {
		case tag == "" || tag == "-":
		case isDuration:
			keys[name] = strconv.Quote(d.String())
		case f.Kind() == reflect.Struct:
			configKeys(f, name+".", keys)
		case f.Kind() == reflect.String && f.String() != "":
			keys[name] = strconv.Quote(f.String())
		case f.Kind() == reflect.String || f.Kind() == reflect.Map:
			keys[name] = ""
		default:
			keys[name] = fmt.Sprint(f.Interface())
		}
	}
}

// TestCommands: a virt-ft command that a page shows exists.
func TestCommands(t *testing.T) {
	known := map[string]bool{"help": true, "completion": true}
	for _, name := range goFiles(t) {
		if !strings.HasPrefix(name, "cmd/virt-ft/") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(parse(t, token.NewFileSet(), name, parser.SkipObjectResolution), func(n ast.Node) bool {
			kv, ok := n.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			key, _ := kv.Key.(*ast.Ident)
			value, _ := kv.Value.(*ast.BasicLit)
			if key != nil && value != nil && key.Name == "Use" {
				use, _ := strconv.Unquote(value.Value)
				word, _, _ := strings.Cut(use, " ")
				known[word] = true
			}
			return true
		})
	}
	shown := regexp.MustCompile("(?m)(?:`|# |\\$ |try: )virt-ft ([a-z]+)")
	for _, name := range documents(t) {
		for _, m := range shown.FindAllStringSubmatch(read(t, name), -1) {
			if !known[m[1]] {
				t.Errorf("%s: virt-ft %s is not a command", name, m[1])
			}
		}
	}
}

// TestLinks: what a page points to within the project is there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	path := regexp.MustCompile("`((?:cmd|docs|internal|pkg|test)/[A-Za-z0-9_./-]+)`")
	for _, name := range documents(t) {
		text := read(t, name)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", name, m[1], err)
			}
		}
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s, which is not there", name, m[1])
			}
		}
	}
}

// TestPackageMap: docs/ARCHITECTURE.md shows every package.
func TestPackageMap(t *testing.T) {
	text := read(t, "docs/ARCHITECTURE.md")
	for _, p := range packages(t) {
		if !strings.Contains(text, p.name()) {
			t.Errorf("docs/ARCHITECTURE.md does not show %s", p.name())
		}
	}
}
