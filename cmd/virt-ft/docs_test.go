package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/virt-ft/virt-ft/internal/journal"
)

const cliPage = "../../docs/CLI.md"

// The parts of docs/CLI.md that repeat what the code says are what it says.
// UPDATE_DOCS=1 writes them.
func TestCLIPage(t *testing.T) {
	page, err := os.ReadFile(cliPage)
	if err != nil {
		t.Fatal(err)
	}
	want := string(page)
	for name, text := range map[string]string{"commands": commandsText(), "exit": exitText(), "environment": environmentText(), "fields": fieldsText(t), "journal": journalText()} {
		begin, end := "<!-- "+name+": written by go test, from the code -->\n", "<!-- end of "+name+" -->"
		before, rest, ok1 := strings.Cut(want, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			t.Fatalf("%s has no part %q", cliPage, name)
		}
		want = before + begin + "\n" + strings.TrimSpace(text) + "\n\n" + end + after
	}
	switch {
	case want == string(page):
	case os.Getenv("UPDATE_DOCS") != "":
		if err := os.WriteFile(cliPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		got, wanted := strings.Split(string(page), "\n"), strings.Split(want, "\n")
		for i := range min(len(got), len(wanted)) {
			if got[i] != wanted[i] {
				t.Fatalf("docs/CLI.md:%d says\n%s\nand the code\n%s\nUPDATE_DOCS=1 go test -run TestCLIPage ./cmd/virt-ft writes it", i+1, got[i], wanted[i])
			}
		}
		t.Fatal("docs/CLI.md is longer or shorter than what the code says")
	}
}

func tableCell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(s)
}

func commandsText() string {
	root := (&app{in: os.Stdin, out: newTerminal(os.Stdout), err: newTerminal(os.Stderr)}).command()
	var b strings.Builder
	b.WriteString("Of all commands:\n\n")
	flagsText(&b, root.PersistentFlags())
	var each func(*cobra.Command)
	each = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if !sub.IsAvailableCommand() || sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\n%s.\n\n    %s\n", sub.CommandPath(), sub.Short, sub.UseLine())
			if sub.NonInheritedFlags().HasAvailableFlags() {
				b.WriteString("\n")
				flagsText(&b, sub.NonInheritedFlags())
			}
			if sub.Example != "" {
				fmt.Fprintf(&b, "\nExamples:\n\n    %s\n", strings.ReplaceAll(strings.TrimSpace(sub.Example), "\n  ", "\n    "))
			}
			each(sub)
		}
	}
	each(root)
	return b.String()
}

func flagsText(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| option | default | |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name, value := "`--"+f.Name+"`", ""
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && f.DefValue != "0s" {
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, value, tableCell(f.Usage))
	})
}

func exitText() string {
	var b strings.Builder
	b.WriteString("| code | |\n|---|---|\n")
	for _, e := range exitCodes() {
		fmt.Fprintf(&b, "| %d | %s |\n", e.code, e.text)
	}
	return b.String()
}

func environmentText() string {
	var b strings.Builder
	b.WriteString("| variable | |\n|---|---|\n")
	for _, e := range environment() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", e.name, e.text)
	}
	return b.String()
}

func journalText() string {
	var b strings.Builder
	b.WriteString("| `MESSAGE_ID` | `VIRT_FT_STATE` | |\n|---|---|---|\n")
	for _, id := range journal.IDs() {
		state := ""
		if id.State != "" {
			state = "`" + id.State + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", id.ID, state, id.Text)
	}
	return b.String()
}

// printed are the types that commands print, and where.
func printed() []struct{ name, by string } {
	return []struct{ name, by string }{
		{"Status", "`virt-ft status`, a list; also the plan of `virt-ft protect --dry-run`"}, {"Epoch", "`virt-ft epochs`, a stream"}, {"Event", "`virt-ft events`, a stream"},
		{"CheckReport", "`virt-ft check`, and `check` of `virt-ft protect --dry-run`"}, {"Pacing", "`virt-ft set`"}, {"Version", "`virt-ft version`, as `client` and `daemon`"},
	}
}

// fieldsText describes the fields of what is printed, by the comments of
// internal/control.
func fieldsText(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../../internal/control/*.go")
	if err != nil {
		t.Fatal(err)
	}
	types, docs := map[string]*ast.StructType{}, map[string]string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, _ := d.(*ast.GenDecl)
			if g == nil || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				s := spec.(*ast.TypeSpec)
				if st, ok := s.Type.(*ast.StructType); ok {
					types[s.Name.Name], docs[s.Name.Name] = st, strings.TrimSpace(g.Doc.Text())
				}
			}
		}
	}
	var b strings.Builder
	var done []string
	var describe func(name, by string)
	describe = func(name, by string) {
		st := types[name]
		if st == nil || slices.Contains(done, name) {
			return
		}
		done = append(done, name)
		fmt.Fprintf(&b, "\n### %s\n\n", name)
		if by != "" {
			fmt.Fprintf(&b, "Printed by %s. ", by)
		}
		fmt.Fprintf(&b, "%s\n\n| field | type | |\n|---|---|---|\n", strings.ReplaceAll(docs[name], "\n", " "))
		var inner []string
		for _, f := range st.Fields.List {
			kind := typeText(f.Type)
			inner = append(inner, strings.TrimLeft(kind, "[]*"))
			if f.Tag == nil { // embedded
				fmt.Fprintf(&b, "| the fields of %s | | |\n", kind)
				continue
			}
			tag, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
			text := f.Doc.Text() + " " + f.Comment.Text()
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", tag, strings.TrimPrefix(strings.Replace(kind, "[]", "list of ", 1), "*"), tableCell(strings.TrimSpace(text)))
		}
		for _, i := range inner {
			describe(i, "")
		}
	}
	for _, p := range printed() {
		if types[p.name] == nil {
			t.Fatalf("no type %s", p.name)
		}
		describe(p.name, p.by)
	}
	return b.String()
}

func typeText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return "*" + typeText(e.X)
	case *ast.ArrayType:
		return "[]" + typeText(e.Elt)
	case *ast.SelectorExpr:
		return strings.ToLower(e.Sel.Name)
	case *ast.Ident:
		switch e.Name {
		case "uint64", "int64", "int":
			return "integer"
		case "float64":
			return "number"
		case "bool":
			return "boolean"
		case "Level":
			return "string"
		}
		return e.Name
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%T", e)
	return b.String()
}
