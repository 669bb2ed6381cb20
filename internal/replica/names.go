package replica

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/virt-ft/virt-ft/internal/pki"
)

// Who a host is. There are three names of a dialer: those that its certificate is
// made out to, which the CA vouches for; the one in its Hello, which is the one
// that the arbiter's records and the markers have; and none of them counts before
// they are tied together:
//
//	certificate ──one of its names is among──▶ allowed (AllowedNames, or Peers)
//	certificate ──one of its names is──▶ the Hello's host, or where Peers has that
//
// A host that may dial can so pretend to be itself only. The other way round it is
// the same: the certificate of who is dialed must be made out to what was dialed,
// and vouch for the host in its Welcome. In plain mode nobody vouches for anything.

// NameError says that a certificate that the CA signed is of a host which is not
// the one that is wanted.
type NameError struct {
	Names  []string // that it is made out to
	Why    string
	Remedy string // names the key to set
}

func (e *NameError) Error() string {
	return fmt.Sprintf("the certificate is made out to %s, %s: %s", quoted(e.Names), e.Why, e.Remedy)
}

func quoted(names []string) string {
	if len(names) == 0 {
		return "nobody"
	}
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, ", ")
}

// anyOf tells whether one of names is among others.
func anyOf(names, others []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		return slices.ContainsFunc(others, func(o string) bool { return pki.Same(n, o) })
	})
}

// Allowed returns the names and addresses of which a dialer's certificate must
// have one; none means that nobody may dial.
func (t Transport) Allowed() []string {
	if len(t.AllowedNames) > 0 {
		return slices.Clone(t.AllowedNames)
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(t.Peers)) {
		names = append(names, name)
		if at := t.Peers[name]; !pki.Same(name, at) {
			names = append(names, at)
		}
	}
	return names
}

// namesAt returns what the certificate of the host at an address may be made out
// to: that address, or the names of the peers that are there.
func (t Transport) namesAt(host string) []string {
	if t.ServerName != "" {
		return []string{t.ServerName}
	}
	names := []string{host}
	for _, name := range slices.Sorted(maps.Keys(t.Peers)) {
		if pki.Same(t.Peers[name], host) {
			names = append(names, name)
		}
	}
	return names
}

// vouches tells whether a certificate with these names is one of the host that
// calls itself host.
func (t Transport) vouches(names []string, host string) bool {
	is := []string{host}
	if at, known := t.Peers[host]; known {
		is = append(is, at)
	}
	return anyOf(names, is)
}

// identify judges a dialer whose certificate, which the CA signed, has these names.
func (t Transport) identify(names []string, host string) error {
	if allowed := t.Allowed(); !anyOf(names, allowed) {
		return &NameError{Names: names, Why: "and this host lets in " + quoted(allowed),
			Remedy: "set transport.allowed_names here, or add the host to [peers]"}
	}
	if !t.vouches(names, host) {
		return &NameError{Names: names, Why: fmt.Sprintf("and its host calls itself %q", host),
			Remedy: "set `host` there to one of these names, or tie them together here: [peers] " + host + " = ADDRESS-ON-THE-CERTIFICATE"}
	}
	return nil
}

// identifyListener judges who answered a dial and calls itself host.
func (t Transport) identifyListener(names []string, host string) error {
	if t.vouches(names, host) || t.ServerName != "" && pki.Same(t.ServerName, host) {
		return nil
	}
	return &NameError{Names: names, Why: fmt.Sprintf("and its host calls itself %q", host),
		Remedy: "set `host` there to one of these names, or tie them together here: [peers] " + host + " = ADDRESS-ON-THE-CERTIFICATE"}
}

// verifyServer is what crypto/tls does by itself, and the names in our way.
func verifyServer(chain []*x509.Certificate, roots *x509.CertPool, wanted []string) error {
	if len(chain) == 0 {
		return errors.New("the peer shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if _, err := chain[0].Verify(opts); err != nil {
		return err
	}
	if names := pki.Names(chain[0]); !anyOf(names, wanted) {
		return &NameError{Names: names, Why: "and not to " + quoted(wanted),
			Remedy: "use one of these names for it: in [peers], or as --to"}
	}
	return nil
}
