package replica

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testCA is a certificate authority made for one test.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newCA(t testing.TB, name string) testCA {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca := testCA{file: filepath.Join(t.TempDir(), "cacert.pem")}
	ca.cert, ca.key = signed(t, tmpl, nil, ca.file, "")
	return ca
}

// issue makes a pair for name, valid until notAfter, for either use.
func (ca testCA) issue(t testing.TB, name string, notAfter time.Time) (certFile, keyFile string) {
	t.Helper()
	return ca.issueAs(t, name, func(x *x509.Certificate) { x.NotAfter = notAfter })
}

// issueAs is issue with the certificate changed before it is signed.
func (ca testCA) issueAs(t testing.TB, name string, change func(*x509.Certificate)) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	change(tmpl)
	signed(t, tmpl, &ca, certFile, keyFile)
	return certFile, keyFile
}

// signed makes a certificate, signed by ca or by itself, and writes it.
func signed(t testing.TB, tmpl *x509.Certificate, ca *testCA, certFile, keyFile string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := tmpl, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, "CERTIFICATE", der)
	if keyFile != "" {
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, keyFile, "PRIVATE KEY", keyDER)
	}
	return cert, key
}

func writePEM(t testing.TB, file, typ string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// plainPages is tr with pages in plain.
func plainPages(tr Transport) Transport {
	tr.Pages = ModePlain
	return tr
}

// transport is the TLS transport of a host named name.
func (ca testCA) transport(t testing.TB, name string) Transport {
	t.Helper()
	cert, key := ca.issue(t, name, time.Now().Add(time.Hour))
	return Transport{Mode: ModeTLS, CACert: ca.file, ServerCert: cert, ServerKey: key, ClientCert: cert, ClientKey: key, ServerName: "host-b", AllowedNames: []string{"host-a"}}
}

// benchCA returns the transports of two hosts.
func benchCA(b *testing.B) map[string]Transport {
	ca := newCA(b, "CA")
	return map[string]Transport{"host-a": ca.transport(b, "host-a"), "host-b": ca.transport(b, "host-b")}
}
