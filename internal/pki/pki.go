// Package pki is about the certificates of hosts: where libvirt has them, whom
// they are made out to, until when they are good, and how to make some where
// there is no certificate authority.
//
// It trusts nothing and opens no connection; internal/replica does.
package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// fileBytesMax bounds a PEM file: the largest chain of libvirt's takes a few kilobytes.
const fileBytesMax = 1 << 20

// Files are the PEM files of a host: the authority that all hosts trust, the pair
// that it shows to who connects to it, and the one that it shows to whom it
// connects to. The two pairs may be the same files.
type Files struct {
	CACert, ServerCert, ServerKey, ClientCert, ClientKey string
}

// Libvirt returns the files where libvirt has them
// (https://libvirt.org/kbase/tlscerts.html).
func Libvirt() Files {
	return Files{
		CACert:     "/etc/pki/CA/cacert.pem",
		ServerCert: "/etc/pki/libvirt/servercert.pem",
		ServerKey:  "/etc/pki/libvirt/private/serverkey.pem",
		ClientCert: "/etc/pki/libvirt/clientcert.pem",
		ClientKey:  "/etc/pki/libvirt/private/clientkey.pem",
	}
}

// Under returns the same files in the tree at root.
func (f Files) Under(root string) Files {
	for _, p := range f.all() {
		*p = filepath.Join(root, *p)
	}
	return f
}

func (f *Files) all() []*string {
	return []*string{&f.CACert, &f.ServerCert, &f.ServerKey, &f.ClientCert, &f.ClientKey}
}

// Names returns whom a certificate is made out to: its DNS names, its addresses,
// and its common name, which certificates of libvirt's clients often have alone.
// Names that are patterns ("*.example.org") are left out: a certificate that is
// good for every host proves to be none.
func Names(c *x509.Certificate) []string {
	var names []string
	add := func(n string) {
		if n != "" && !strings.Contains(n, "*") && !slices.ContainsFunc(names, func(o string) bool { return Same(o, n) }) {
			names = append(names, n)
		}
	}
	for _, n := range c.DNSNames {
		add(n)
	}
	for _, ip := range c.IPAddresses {
		add(ip.String())
	}
	add(c.Subject.CommonName)
	return names
}

// Same tells whether two names of hosts, or two addresses, are one: case, a final
// dot and the way in which an address is written do not matter.
func Same(a, b string) bool {
	if x, err := netip.ParseAddr(a); err == nil {
		y, err := netip.ParseAddr(b)
		return err == nil && x.Unmap() == y.Unmap()
	}
	return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// readCertificates reads the first certificate of a PEM file, and those that follow it.
func readCertificates(file string) ([]*x509.Certificate, error) {
	b, err := readFile(file)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: %w", file, errNoCertificate)
	}
	return certs, nil
}

var errNoCertificate = errors.New("holds no PEM certificate")

func readFile(file string) ([]byte, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > fileBytesMax {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", file, fileBytesMax)
	}
	return os.ReadFile(file)
}
