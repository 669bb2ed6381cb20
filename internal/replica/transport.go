package replica

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
)

// Modes of a Transport.
const (
	ModeTLS   = "tls"
	ModePlain = "plain"
)

// Transport says how connections are protected. The zero value is mutual TLS
// 1.3 with libvirt's own PKI, see DefaultTransport. Plain has neither secrecy
// nor authentication: whoever reaches the port may pretend to be a host; the
// checksums find accidents, not attacks.
type Transport struct {
	Mode string // "tls" (also when empty) or "plain"

	// PEM files; empty means libvirt's. The server pair is used to listen,
	// the client pair to dial.
	CACert, ServerCert, ServerKey, ClientCert, ClientKey string

	// ServerName is what the listener's certificate must be made out to; empty
	// means the host part of the dialed address.
	ServerName string
	// AllowedNames, when not empty, are the DNS names or common names of which a
	// dialer's certificate must have one. Empty: any certificate of the CA.
	AllowedNames []string
}

// DefaultTransport returns mutual TLS with the files where libvirt has them.
func DefaultTransport() Transport { return Transport{}.withDefaults() }

func (t Transport) withDefaults() Transport {
	for _, f := range []struct {
		to   *string
		path string
	}{
		{&t.Mode, ModeTLS},
		{&t.CACert, "/etc/pki/CA/cacert.pem"},
		{&t.ServerCert, "/etc/pki/libvirt/servercert.pem"},
		{&t.ServerKey, "/etc/pki/libvirt/private/serverkey.pem"},
		{&t.ClientCert, "/etc/pki/libvirt/clientcert.pem"},
		{&t.ClientKey, "/etc/pki/libvirt/private/clientkey.pem"},
	} {
		if *f.to == "" {
			*f.to = f.path
		}
	}
	return t
}

// TransportError says which file of the transport is missing or wrong, and
// what to do.
type TransportError struct {
	File   string // empty when no single file is to blame
	Err    error
	Remedy string
}

func (e *TransportError) Error() string {
	s := "transport tls: " + e.Err.Error()
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}

func (e *TransportError) Unwrap() error { return e.Err }

// Check loads everything that listening and dialing need.
func (t Transport) Check() error {
	_, err1 := t.serverConfig()
	_, err2 := t.clientConfig("localhost")
	if err1 != nil {
		return err1
	}
	return err2
}

const pkiRemedy = "create it as for libvirt's own TLS (https://libvirt.org/kbase/tlscerts.html) or set the transport to plain"

func fileError(file string, err error) error {
	remedy := pkiRemedy
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = "make it readable for the user the daemon runs as"
	case !errors.Is(err, fs.ErrNotExist):
		err, remedy = fmt.Errorf("%s: %w", file, err), "replace the file"
	}
	return &TransportError{File: file, Err: err, Remedy: remedy}
}

// config loads the CA and one pair. nil, nil means plain.
func (t Transport) config(certFile, keyFile string) (*tls.Config, *x509.CertPool, error) {
	switch t.Mode {
	case ModePlain:
		return nil, nil, nil
	case ModeTLS:
	default:
		return nil, nil, &TransportError{Err: fmt.Errorf("unknown mode %q", t.Mode), Remedy: `use "tls" or "plain"`}
	}
	ca, err := os.ReadFile(t.CACert)
	if err != nil {
		return nil, nil, fileError(t.CACert, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, nil, fileError(t.CACert, errors.New("holds no PEM certificate"))
	}
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, fileError(certFile, err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, fileError(keyFile, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, fileError(certFile, fmt.Errorf("does not go with %s: %w", keyFile, err))
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}, pool, nil
}

func (t Transport) serverConfig() (*tls.Config, error) {
	t = t.withDefaults()
	cfg, pool, err := t.config(t.ServerCert, t.ServerKey)
	if cfg == nil || err != nil {
		return nil, err
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, pool
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if names := certNames(cs); len(t.AllowedNames) > 0 && !slices.ContainsFunc(names, func(n string) bool { return slices.Contains(t.AllowedNames, n) }) {
			return fmt.Errorf("certificate is made out to %q, none of which is allowed here", names)
		}
		return nil
	}
	return cfg, nil
}

func (t Transport) clientConfig(host string) (*tls.Config, error) {
	t = t.withDefaults()
	cfg, pool, err := t.config(t.ClientCert, t.ClientKey)
	if cfg == nil || err != nil {
		return nil, err
	}
	cfg.RootCAs, cfg.ServerName = pool, host
	if t.ServerName != "" {
		cfg.ServerName = t.ServerName
	}
	return cfg, nil
}

// certNames returns what the peer's certificate is made out to.
func certNames(cs tls.ConnectionState) []string {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	names := slices.Clone(leaf.DNSNames)
	if cn := leaf.Subject.CommonName; cn != "" && !slices.Contains(names, cn) {
		names = append(names, cn)
	}
	return names
}

// secure runs the TLS handshake over raw, or returns raw itself in plain mode
// (cfg nil).
func secure(ctx context.Context, raw net.Conn, cfg *tls.Config, server bool) (net.Conn, error) {
	if cfg == nil {
		return raw, nil
	}
	var conn *tls.Conn
	if server {
		conn = tls.Server(raw, cfg)
	} else {
		conn = tls.Client(raw, cfg)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &TransportError{Err: err, Remedy: tlsRemedy(err)}
	}
	return conn, nil
}

// tlsRemedy says what to do about a failed TLS handshake.
func tlsRemedy(err error) string {
	var notTLS tls.RecordHeaderError
	var wrongName x509.HostnameError
	var unknownCA x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	switch {
	case errors.As(err, &notTLS):
		return "set the same transport on both hosts"
	case errors.As(err, &wrongName):
		return "use the name the peer's certificate is made out to (subject alternative name)"
	case errors.As(err, &unknownCA):
		return "both hosts' certificates must be signed by the CA in cacert.pem"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the certificate, and check both hosts' clocks"
	case errors.As(err, &alert):
		return "the peer's log tells why it does not accept this host's certificate"
	}
	return ""
}
