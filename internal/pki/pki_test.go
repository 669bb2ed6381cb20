package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	c := &x509.Certificate{DNSNames: []string{"hostA", "*.example.org", "a.example.org"}, IPAddresses: []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")},
		Subject: pkix.Name{CommonName: "HOSTA."}}
	if got := Names(c); !slices.Equal(got, []string{"hostA", "a.example.org", "192.0.2.1", "2001:db8::1"}) {
		t.Errorf("%q", got)
	}
	for _, x := range []struct {
		a, b string
		same bool
	}{
		{"hostA", "hosta.", true}, {"192.0.2.1", "::ffff:192.0.2.1", true}, {"2001:DB8:0::1", "2001:db8::1", true},
		{"hostA", "hostA.example.org", false}, {"192.0.2.1", "192.0.2.10", false}, {"", "hostA", false}, {"192.0.2.1", "hostA", false},
	} {
		if Same(x.a, x.b) != x.same || Same(x.b, x.a) != x.same {
			t.Errorf("%q and %q: %v", x.a, x.b, !x.same)
		}
	}
}

// TestMadeAndInspected: what is made here is found to be good, and until when.
func TestMadeAndInspected(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	ca := filepath.Join(dir, "ca")
	if err := CreateCA(ca, "test-ca", now); err != nil {
		t.Fatal(err)
	}
	f, err := CreateHost(ca, "hostA", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, filepath.Join(dir, "hostA"), now)
	if err != nil {
		t.Fatal(err)
	}
	found := func(f Files, at time.Time, says ...string) {
		t.Helper()
		for i, c := range f.Certificates(at) {
			if (c.Err == nil) != (says[i] == "") || c.Err != nil && !strings.Contains(c.Err.Error(), says[i]) {
				t.Errorf("%s of %s: %v does not say %q", c.Use, c.File, c.Err, says[i])
			}
		}
	}
	found(f, now, "", "", "")
	found(f, now.Add(-2*time.Hour), "not valid before", "not valid before", "not valid before")
	found(f, now.Add(HostValidity+time.Hour), "", "expired on", "expired on")
	if c := f.Certificates(now)[1]; !slices.Equal(c.Names, []string{"hostA", "192.0.2.1"}) || c.Left(now) < HostValidity-time.Minute || c.Left(now) > HostValidity {
		t.Errorf("%+v", c)
	}
	swapped := f
	swapped.ServerCert, swapped.ServerKey = f.ClientCert, f.ClientKey
	found(swapped, now, "", "not for use as a server", "")
	mixed := f
	mixed.ClientKey = f.ServerKey
	found(mixed, now, "", "", "cannot be used with")
	if err := CreateCA(filepath.Join(dir, "other"), "test-ca", now); err != nil {
		t.Fatal(err)
	}
	foreign := f
	foreign.CACert = filepath.Join(dir, "other", CACertFile)
	found(foreign, now, "", "not signed by", "not signed by")
	missing := f
	missing.CACert = filepath.Join(dir, "nothing")
	found(missing, now, "no such file", "not signed by", "not signed by")
	// An authority signs nothing beyond its own time.
	late := now.Add(CAValidity - 24*time.Hour)
	f, err = CreateHost(ca, "hostB", nil, filepath.Join(dir, "hostB"), late)
	if err != nil {
		t.Fatal(err)
	}
	if all := f.Certificates(late); all[1].NotAfter != all[0].NotAfter || all[1].Err != nil {
		t.Errorf("%+v", all)
	}
	if _, err := CreateHost(ca, "hostC", nil, filepath.Join(dir, "hostC"), late.Add(48*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired authority signs: %v", err)
	}
}

// TestNothingIsOverwritten, and nothing is left of what could not be made.
func TestNothingIsOverwritten(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	if err := CreateCA(dir, "test-ca", now); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := CreateCA(dir, "test-ca", now); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, CAKeyFile)); string(after) != string(before) {
		t.Error("the key was replaced")
	}
	half := filepath.Join(dir, "half") // a certificate without its key
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, CACertFile), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateCA(half, "test-ca", now); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(half, CAKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key without its certificate is left: %v", err)
	}
	out := filepath.Join(dir, "out")
	if err := os.Symlink("/nowhere", out); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateHost(dir, "hostA", nil, out, now); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	for _, name := range []string{"", "a b", "*.example.org", strings.Repeat("x", 65), "a/b", "a\nb"} {
		if _, err := CreateHost(dir, name, nil, filepath.Join(dir, "new"), now); err == nil {
			t.Errorf("%q is a host", name)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
}
