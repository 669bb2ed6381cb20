// Package house tests what no compiler does: who may import whom, how long a
// file and a function may be, and that the documents say what the code does.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module       = "github.com/virt-ft/virt-ft/"
	fileLinesMax = 500
	funcLinesMax = 70
	// longMark begins the comment that says why a function is longer.
	longMark = "long:"
)

// imports returns which packages of this module each package may import, tests
// left aside. Adapters in internal/ do not know each other: internal/daemon
// wires them.
func imports() map[string][]string {
	return map[string][]string{
		"cmd/virt-ft": {"internal/config", "internal/control", "internal/daemon", "internal/journal", "internal/pki", "internal/report"},

		"hooks": {"internal/hookd", "internal/marker"},

		"pkg/ftengine": nil,
		"pkg/kvmclock": {"internal/ptracer"},
		"pkg/zcstream": nil,

		"internal/arbiter":   nil,
		"internal/capture":   {"internal/guestram", "internal/ptracer"},
		"internal/config":    nil,
		"internal/cpulayout": {"internal/vmstate"},
		"internal/control":   nil,
		"internal/guestram":  {"internal/ptracer"},
		"internal/hookd":     nil,
		"internal/hostmem":   nil,
		"internal/journal":   nil,
		"internal/marker":    nil,
		"internal/lean":      {"internal/guestram"},
		"internal/pace":      nil,
		"internal/diskrep":   nil,
		"internal/nbd":       nil,
		"internal/netgate":   nil,
		"internal/ptracer":   nil,
		"internal/pki":       nil,
		"internal/probe":     nil,
		"internal/replica":   {"internal/pki", "pkg/zcstream"},
		"internal/virt":      nil,
		"internal/vmstate":   nil,
		"internal/plot":      nil,
		"internal/report":    {"internal/control", "internal/plot"},
		"internal/watch":     {"internal/control"},
		"internal/web":       {"internal/control", "internal/watch"},
		"internal/daemon": {"internal/arbiter", "internal/capture", "internal/config", "internal/control", "internal/cpulayout", "internal/guestram",
			"internal/diskrep", "internal/hookd", "internal/hostmem", "internal/lean", "internal/marker", "internal/nbd", "internal/netgate", "internal/pace", "internal/pki", "internal/probe", "internal/ptracer", "internal/replica", "internal/virt", "internal/vmstate", "internal/watch", "internal/web", "pkg/ftengine", "pkg/kvmclock"},

		"internal/sim":             {"pkg/ftengine"},
		"internal/explore":         {"pkg/ftengine"},
		"internal/lab":             {"internal/lab/guestapi", "internal/pki"},
		"internal/lab/guestapi":    nil,
		"internal/capture/qmptest": nil,
		"internal/virt/virttest":   nil,
		"internal/web/webtest":     nil,

		"test/bench":         {"test/tool"},
		"test/chaos":         {"internal/lab", "test/tool"},
		"test/chaos/mutants": {},
		"test/clock":         {"internal/capture", "internal/capture/qmptest", "internal/cpulayout", "internal/guestram", "internal/ptracer", "internal/vmstate", "pkg/kvmclock", "test/clock/guest", "test/tool"},
		"test/clock/guest":   {"internal/capture/qmptest"},
		"test/demo":          {"internal/lab", "test/tool"},
		"test/diskbench":     {"internal/lab", "internal/nbd", "test/tool"},
		"test/e2e":           {"internal/guestram", "internal/lab"},
		"test/gotest":        nil,
		"test/guest":         {"internal/lab/guestapi", "pkg/zcstream"},
		"test/house":         nil,
		"test/load":          {"internal/lab", "test/tool"},
		"test/many":          {"internal/lab", "test/tool"},
		"test/packages":      {"internal/lab"},
		"test/pause":         {"internal/capture", "internal/lab", "internal/ptracer", "internal/virt", "test/tool"},
		"test/plots":         {"internal/plot", "test/tool"},
		"test/record":        {"internal/lab", "test/tool"},
		"test/stream":        {"internal/lab", "internal/replica", "pkg/zcstream", "test/tool"},
		"test/today":         {"internal/lab", "test/tool"},
		"test/virtmanager":   {"internal/lab", "test/tool"},
		"test/tool":          nil,
	}
}

// pure is what pkg/ftengine may import: nothing that does I/O or tells the time.
func pure() []string {
	return []string{"cmp", "context", "errors", "fmt", "maps", "math", "slices", "strconv", "strings", "time"}
}

// portable lists files that import golang.org/x/sys/unix and are not named
// *_linux.go, with the reason.
func portable() map[string]string {
	const whole = "tests a package whose working part is Linux only; it is never built elsewhere"
	return map[string]string{
		"internal/replica/errors.go":         "names of errors that every Unix has",
		"internal/virt/monitor.go":           "F_DUPFD_CLOEXEC, which every Unix has",
		"internal/ptracer/frame_amd64.go":    "the frame is the kernel's, for this architecture",
		"internal/capture/qmptest/client.go": whole,
		"internal/capture/qmptest/guest.go":  whole,
		"internal/ptracer/frame_test.go":     whole,
		"internal/ptracer/ptracer_test.go":   whole,
		"internal/ptracer/qemu_test.go":      whole,
		"internal/ptracer/target_test.go":    whole,
		"internal/ptracer/wrong_test.go":     whole,
		"internal/replica/session_test.go":   "socket options that it checks are Linux's",
		"internal/vmstate/incoming_test.go":  "memory maps of a test",
	}
}

// root is the module's directory, seen from here.
const root = "../.."

// pkg is what these tests want of `go list -json`.
type pkg struct {
	ImportPath string
	Doc        string
	Dir        string
	Imports    []string
	CgoFiles   []string

	TestGoFiles, XTestGoFiles []string
}

func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Dir,Imports,CgoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, complaint.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list knows no package")
	}
	return all
}

// files returns the files that belong to the project, relative to root.
func files(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-co", "--exclude-standard", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("git cannot list the files of this checkout: %v", err)
	}
	names := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	return slices.DeleteFunc(names, func(n string) bool {
		_, err := os.Stat(filepath.Join(root, n))
		return err != nil // deleted, and git was not told yet
	})
}

func goFiles(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(files(t), func(n string) bool { return !strings.HasSuffix(n, ".go") })
}

func parse(t *testing.T, fset *token.FileSet, name string, mode parser.Mode) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(fset, filepath.Join(root, name), nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestImports(t *testing.T) {
	allowed, gone := imports(), imports()
	for _, p := range packages(t) {
		may, known := allowed[p.name()]
		delete(gone, p.name())
		if !known {
			t.Errorf("%s is not in the list of this test: say there what it may import", p.name())
			continue
		}
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module); ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s", p.name(), ours)
			}
			if p.name() == "pkg/ftengine" && !slices.Contains(pure(), i) {
				t.Errorf("pkg/ftengine imports %s: it does no I/O", i)
			}
			if i == "C" || i == "libvirt.org/go/libvirt" && p.name() != "internal/virt" {
				t.Errorf("%s imports %s: internal/virt is the only one that is built with cgo", p.name(), i)
			}
			if strings.HasPrefix(i, "github.com/cilium/ebpf") && p.name() != "internal/netgate" {
				t.Errorf("%s imports %s: internal/netgate is the only one that puts programs into the kernel", p.name(), i)
			}
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: %v", p.name(), p.CgoFiles)
		}
	}
	for name := range gone {
		t.Errorf("%s is in the list of this test, and not a package any more", name)
	}
}

func TestPackageNames(t *testing.T) {
	for _, p := range packages(t) {
		switch filepath.Base(p.ImportPath) {
		case "util", "utils", "common", "helper", "helpers", "misc":
			t.Errorf("%s: the name says nothing", p.name())
		}
	}
}

func TestPackageDocs(t *testing.T) {
	for _, p := range packages(t) {
		doc := p.Doc != ""
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) { // of packages that are tests only
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			doc = doc || err == nil && f.Doc != nil
		}
		if !doc {
			t.Errorf("%s has no package comment", p.name())
		}
	}
}

func TestLinuxFilesSaySo(t *testing.T) {
	except := portable()
	for _, name := range goFiles(t) {
		f := parse(t, token.NewFileSet(), name, parser.ImportsOnly)
		linux := false
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			linux = linux || path == "golang.org/x/sys/unix" || strings.HasPrefix(path, "github.com/vishvananda/") ||
				strings.HasPrefix(path, "github.com/cilium/")
		}
		base := strings.TrimSuffix(strings.TrimSuffix(name, ".go"), "_test")
		if !linux || strings.HasSuffix(base, "_linux") {
			delete(except, name)
			if _, listed := portable()[name]; listed {
				t.Errorf("%s need not be an exception any more", name)
			}
			continue
		}
		if _, ok := except[name]; !ok {
			t.Errorf("%s needs Linux: name it *_linux.go", name)
		}
		delete(except, name)
	}
	for name := range except {
		t.Errorf("the exception %s is not a file any more", name)
	}
}

func TestSizes(t *testing.T) {
	for _, name := range goFiles(t) {
		fset := token.NewFileSet()
		f := parse(t, fset, name, parser.ParseComments)
		if lines := fset.File(f.Pos()).LineCount(); lines > fileLinesMax {
			t.Errorf("%s has %d lines, at most %d", name, lines, fileLinesMax)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
			if lines > funcLinesMax && !explained(f, fn) {
				t.Errorf("%s: %s has %d lines, at most %d, unless a comment `// %s` tells why", name, fn.Name, lines, funcLinesMax, longMark)
			}
		}
	}
}

// explained tells whether a comment of fn, above or inside, says why it is long.
func explained(f *ast.File, fn *ast.FuncDecl) bool {
	from := fn.Pos()
	if fn.Doc != nil {
		from = fn.Doc.Pos()
	}
	for _, group := range f.Comments {
		for _, c := range group.List {
			reason, found := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(c.Text, "//")), longMark)
			if found && strings.TrimSpace(reason) != "" && c.Pos() >= from && c.End() <= fn.End() {
				return true
			}
		}
	}
	return false
}
