package virt

import (
	"flag"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStandbyXMLGolden(t *testing.T) {
	got, err := StandbyXML(readFile(t, "testdata/source.xml"),
		StandbyOptions{Protection: "p-1", Generation: 4, PrimaryHost: "host-a.example"})
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/standby.golden.xml"
	if *update {
		if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := readFile(t, golden); got+"\n" != want {
		t.Errorf("got:\n%s", got)
	}
}

// TestStandbyXMLAgain: protection in the other direction, after a failover, starts from the standby's XML.
func TestStandbyXMLAgain(t *testing.T) {
	o := StandbyOptions{Protection: "p-1", Generation: 4, PrimaryHost: "host-a"}
	first, err := StandbyXML(readFile(t, "testdata/source.xml"), o)
	if err != nil {
		t.Fatal(err)
	}
	same, err := StandbyXML(first, o)
	if err != nil {
		t.Fatal(err)
	}
	if same != first {
		t.Errorf("a second pass changes something:\n%s\n--- first:\n%s", same, first)
	}
	o.Generation, o.PrimaryHost = 5, "host-b"
	back, err := StandbyXML(first, o)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(back, "host-a") || strings.Count(back, Namespace) != 1 || strings.Count(back, `"-incoming"`) != 1 {
		t.Errorf("traces of the earlier standby:\n%s", back)
	}
	if !strings.Contains(back, "<virtft:title>Shop &amp; blog</virtft:title>") {
		t.Errorf("the guest's title is lost:\n%s", back)
	}
}

func TestStandbyXMLTakesLiveCPU(t *testing.T) {
	src := readFile(t, "testdata/source.xml")
	live := strings.NewReplacer("check='partial'", "check='full'", "fallback='allow'>Skylake-Server</model>",
		"fallback='forbid'>Skylake-Server</model><feature policy='disable' name='hle'/>").Replace(src)
	got, err := StandbyXML(src, StandbyOptions{Protection: "p", LiveXML: live})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got, `check="full"`) || !strings.Contains(got, `<feature policy="disable" name="hle">`) {
		t.Errorf("CPU of the live XML is not used:\n%s", got)
	}
	if strings.Contains(got, "private") {
		t.Errorf("a NUMA cell is not shared:\n%s", got)
	}
}

func TestStandbyXMLRefuses(t *testing.T) {
	src := readFile(t, "testdata/source.xml")
	good := StandbyOptions{Protection: "p"}
	for _, c := range []struct {
		name, src string
		o         StandbyOptions
		want      string
	}{
		{"machine alias", strings.Replace(src, "pc-q35-7.2", "q35", 1), good, "alias"},
		{"no UUID", strings.Replace(src, "<uuid>5f0c1b1e-8c0f-4b0e-9a57-3a4d6a1f0001</uuid>", "", 1), good, "UUID"},
		{"no protection", src, StandbyOptions{}, "protection id"},
		{"no XML", "web1", good, "domain XML"},
		{"too long", strings.Repeat(" ", maxDomainXMLBytes+1), good, "at most"},
		{"bad live XML", src, StandbyOptions{Protection: "p", LiveXML: "<domain"}, "live XML"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := StandbyXML(c.src, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func TestCutNotesKeepsTheRest(t *testing.T) {
	ours := Note{Protection: "p", Generation: 1, Role: RoleActive, PrimaryHost: "a"}
	const other = "\n  <x:a xmlns:x='urn:x' k=\"1\"><!-- c --><x:b/>&#x20;</x:a>\n  "
	for _, inner := range []string{
		ours.full() + other, other + ours.full(), other + ours.full() + ours.full(),
		other + `<protection xmlns="` + Namespace + `" broken="yes"><deep/></protection>`,
	} {
		rest, _, _, err := cutNotes(inner)
		if err != nil || rest != other {
			t.Errorf("of %q:\n%q, %v", inner, rest, err)
		}
	}
	if _, _, _, err := cutNotes("<open>"); err == nil {
		t.Error("unbalanced metadata accepted")
	}
}

// xmlText is what XML 1.0 can carry, and an XML reader does not normalize.
func xmlText() *rapid.Generator[string] {
	return rapid.StringMatching(`[ -~äß€\n\t]{0,40}`)
}

func TestNoteRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Note{
			Protection: xmlText().Draw(t, "id"), Generation: rapid.Uint64().Draw(t, "generation"),
			Role:        rapid.SampledFrom([]Role{RoleStandby, RoleActive}).Draw(t, "role"),
			PrimaryHost: xmlText().Draw(t, "primary"),
			Title:       xmlText().Draw(t, "title"), Description: xmlText().Draw(t, "description"),
		}
		for _, doc := range []string{want.full(), want.marshal(noteElement, "")} {
			if got, err := parseNote(doc); err != nil || got != want {
				t.Fatalf("%s\nreads as %+v, %v", doc, got, err)
			}
		}
		rest, got, found, err := cutNotes("<a/>" + want.full())
		if err != nil || !found || rest != "<a/>" || got != want {
			t.Fatalf("cut: %q, %+v, %v, %v", rest, got, found, err)
		}
	})
}

func FuzzStandbyXML(f *testing.F) {
	b, err := os.ReadFile("testdata/source.xml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	disks, err := os.ReadFile("testdata/disks.xml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(disks))
	f.Fuzz(func(t *testing.T, src string) {
		o := StandbyOptions{Protection: "p", PrimaryHost: "a"}
		Judge(src)
		_, _ = Disks(src)
		_, _ = Copies(src)
		if same, err := SameHardware(src, src); err == nil && !same {
			t.Fatal("not the same as itself")
		}
		first, err := StandbyXML(src, o)
		if err != nil {
			return
		}
		if _, err := StandbyXML(first, o); err != nil {
			t.Fatalf("our own output is refused: %v\n%s", err, first)
		}
	})
}
