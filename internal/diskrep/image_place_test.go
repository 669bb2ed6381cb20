package diskrep

import (
	"strings"
	"testing"
)

func TestPlace(t *testing.T) {
	p := Placement{Domain: "web1", UUID: "8a", Disk: "vda", Source: "/srv/vm/web 1.qcow2"}
	root := Placement{Domain: "web1", Disk: "vda", Source: "/disk"}
	for _, c := range []struct {
		rule string
		p    Placement
		want string // or a part of the error, behind a !
	}{
		{"/var/lib/libvirt/images/{domain}-{disk}.raw", p, "/var/lib/libvirt/images/web1-vda.raw"},
		{"/x/{uuid}/{disk}", p, "/x/8a/vda"},
		{"{source}", p, "/srv/vm/web 1.qcow2"},
		{"{dir}/copy-of-{base}", p, "/srv/vm/copy-of-web 1.qcow2"},
		{"{dir}/{base}", root, "/disk"},
		{"/backup{source}", p, "/backup/srv/vm/web 1.qcow2"},
		{"/x/{name}", p, "!{name} is not known; there are {domain}"},
		{"/x/{", p, "!a { without"},
		{"/x/}{disk}", p, "!a } without"},
		{"{disk}", p, "!begin with a slash"},
		{"/x/{domain}", Placement{Domain: "../etc"}, "!a slash in it"},
		{"/x/{domain}", Placement{Domain: ".."}, "!not clean"},
		{"/x/{domain}", Placement{Domain: "."}, "!not clean"},
		{"/x/{domain}", Placement{}, "!{domain} is empty"},
		{"/x/{domain}/", p, "!names no file"},
		{"/x/{domain}", Placement{Domain: "a\nb"}, "!control character"},
		{"/x/{domain}", Placement{Domain: "{uuid}", UUID: "1"}, "/x/{uuid}"}, // a value is no rule
		{"{source}", Placement{Disk: "vda"}, "!no path on the primary"},
		{"{source}", Placement{Source: "relative"}, "!not a clean absolute"},
		{"{dir}/x", Placement{Source: "/a/../b"}, "!not a clean absolute"},
		{"//x", p, "!not clean"},
		{"", p, "!begin with a slash"},
		{"/" + strings.Repeat("x", 5000), p, "!5001 bytes"},
	} {
		got, err := Place(c.rule, c.p)
		want, fails := strings.CutPrefix(c.want, "!")
		switch {
		case fails && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %q, %v; want an error with %q", c.rule, got, err, want)
		case !fails && (err != nil || got != want):
			t.Errorf("%q: %q, %v; want %q", c.rule, got, err, want)
		}
	}
}
