package main

import (
	"slices"
	"strings"
	"testing"
)

func TestReportKeepsSkipsAndFailures(t *testing.T) {
	var out strings.Builder
	r := &reporter{out: &out, output: map[string]*strings.Builder{}}
	for _, line := range []string{
		`{"Action":"output","Package":"p","Test":"TestQuiet","Output":"    a.go:1: chatter\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestQuiet","Elapsed":12.3}`,
		`{"Action":"output","Package":"p","Test":"TestNoKVM","Output":"=== RUN   TestNoKVM\n"}`,
		`{"Action":"output","Package":"p","Test":"TestNoKVM","Output":"    a.go:2: /dev/kvm is missing\n"}`,
		`{"Action":"output","Package":"p","Test":"TestNoKVM","Output":"--- SKIP: TestNoKVM (0.00s)\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestNoKVM"}`,
		`{"Action":"output","Package":"p","Test":"TestBad","Output":"    a.go:3: wrong\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestBad"}`,
		`{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}`,
		`{"Action":"fail","Package":"p"}`,
		`not json`,
	} {
		r.line([]byte(line))
	}
	r.close()
	got := out.String()
	for _, want := range []string{"a.go:3: wrong\n", "FAIL\tp\t0.1s\n", "not json\n", "   12 s  p TestQuiet\n",
		"1 tests passed, 2 failed, 1 skipped\n", "SKIP p TestNoKVM: a.go:2: /dev/kvm is missing\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "chatter") {
		t.Errorf("a passing test is quoted:\n%s", got)
	}
}

func TestLabsRunAlone(t *testing.T) {
	flags, patterns := split([]string{"-count=1", "-run=TestX|TestY", "./a/...", "-v", "./b"})
	if !slices.Equal(flags, []string{"-count=1", "-run=TestX|TestY", "-v"}) || !slices.Equal(patterns, []string{"./a/...", "./b"}) {
		t.Errorf("flags %q, packages %q", flags, patterns)
	}
	beside, alone := groups("m/a testing os\nm/none  \nm/e2e testing " + labPackage + " os\n" + labPackage + " testing\nm/x testing " + labPackage + "/guestapi\n")
	if !slices.Equal(beside, []string{"m/a", "m/none", "m/x"}) || !slices.Equal(alone, []string{"m/e2e", labPackage}) {
		t.Errorf("beside each other %q, alone %q", beside, alone)
	}
	list, err := tested([]string{"../e2e", "../../internal/lab", "."})
	if err != nil {
		t.Fatal(err)
	}
	if beside, alone = groups(list); len(beside) != 1 || len(alone) != 2 {
		t.Errorf("beside each other %q, alone %q", beside, alone)
	}
}
