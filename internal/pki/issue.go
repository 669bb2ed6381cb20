package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// For how long what is made here is good. Clocks of hosts differ: what begins now
// begins a little earlier.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	HostValidity = 2 * 365 * 24 * time.Hour
	backdated    = time.Hour
)

// Files of an authority in its directory. CAKeyFile is its secret: it belongs on no host.
const (
	CACertFile = "cacert.pem"
	CAKeyFile  = "cakey.pem"
)

const (
	nameBytesMax = 64 // of a common name (ub-common-name)
	addressesMax = 64
)

// CreateCA makes an authority named name in dir, which is made if it is not there.
// It never overwrites one (fs.ErrExist).
func CreateCA(dir, name string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t, err := template(name, now, CAValidity)
	if err != nil {
		return err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true // it signs hosts, not further authorities
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, CAKeyFile)
	if err := writeKey(keyFile, key); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, CACertFile), "CERTIFICATE", der, 0o644); err != nil {
		return errors.Join(err, os.Remove(keyFile)) // ours: it was made a moment ago
	}
	return nil
}

// CreateHost makes both pairs of the host name, signed by the authority in caDir,
// as a tree at out in which the files are where libvirt wants them: what is to be
// copied to the root of the host. The certificates are made out to name and
// addresses. It never overwrites anything: out must not exist (fs.ErrExist).
func CreateHost(caDir, name string, addresses []netip.Addr, out string, now time.Time) (Files, error) {
	if len(addresses) > addressesMax {
		return Files{}, fmt.Errorf("%d addresses, at most %d", len(addresses), addressesMax)
	}
	ca, err := loadCA(caDir, now)
	if err != nil {
		return Files{}, err
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		return Files{}, &fs.PathError{Op: "create", Path: out, Err: fs.ErrExist}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return Files{}, err
	}
	tree, err := os.MkdirTemp(filepath.Dir(out), ".new-*") // so that no half of one is taken for a whole
	if err != nil {
		return Files{}, err
	}
	defer os.RemoveAll(tree)
	if err := ca.host(Libvirt().Under(tree), name, addresses, now); err != nil {
		return Files{}, err
	}
	return Libvirt().Under(out), os.Rename(tree, out)
}

// authority is one that can sign.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func loadCA(dir string, now time.Time) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile)
	certs, err := readCertificates(certFile)
	if err != nil {
		return nil, fmt.Errorf("the authority in %s: %w", dir, err)
	}
	if err := InTime(certs[0], now); err != nil {
		return nil, fmt.Errorf("the authority in %s %w", dir, err)
	}
	b, err := readFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("the authority in %s: %w", dir, err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", keyFile)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := k.(*ecdsa.PrivateKey)
	if err != nil || !ok || !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("%s is not the key that goes with %s, as `virt-ft pki ca` makes them", keyFile, certFile)
	}
	return &authority{certs[0], key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certs[0].Raw})}, nil
}

// host writes the files of a host.
func (ca *authority) host(f Files, name string, addresses []netip.Addr, now time.Time) error {
	for _, p := range []struct {
		path string
		mode fs.FileMode
	}{{filepath.Dir(f.CACert), 0o755}, {filepath.Dir(f.ServerCert), 0o755}, {filepath.Dir(f.ServerKey), 0o700}} {
		if err := os.MkdirAll(p.path, p.mode); err != nil {
			return err
		}
	}
	// MkdirTemp's directory, which becomes the tree's root, is for its owner only.
	if err := os.WriteFile(f.CACert, ca.pem, 0o644); err != nil {
		return err
	}
	if err := ca.issue(f.ServerCert, f.ServerKey, name, addresses, x509.ExtKeyUsageServerAuth, now); err != nil {
		return err
	}
	return ca.issue(f.ClientCert, f.ClientKey, name, addresses, x509.ExtKeyUsageClientAuth, now)
}

func (ca *authority) issue(certFile, keyFile, name string, addresses []netip.Addr, use x509.ExtKeyUsage, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t, err := template(name, now, HostValidity)
	if err != nil {
		return err
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		t.NotAfter = ca.cert.NotAfter
	}
	t.KeyUsage, t.ExtKeyUsage, t.BasicConstraintsValid = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{use}, true
	t.DNSNames = []string{name}
	for _, a := range addresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.Unmap().AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return err
	}
	if err := writeKey(keyFile, key); err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", der, 0o644)
}

func template(name string, now time.Time, validity time.Duration) (*x509.Certificate, error) {
	if name == "" || len(name) > nameBytesMax || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("*/\\,", r) }) {
		return nil, fmt.Errorf("%q is not a name of a host: 1 to %d letters, digits, '-', '_' and '.'", name, nameBytesMax)
	}
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdated).UTC(),
		NotAfter:  now.Add(validity).UTC(),
	}, nil // without a serial number x509 takes a random one
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "PRIVATE KEY", der, 0o600)
}

// writePEM makes a file that is not there yet.
func writePEM(file, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(mode), pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}
