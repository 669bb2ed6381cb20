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

	"github.com/virt-ft/virt-ft/internal/pki"
)

// Modes of a Transport.
const (
	ModeTLS   = "tls"
	ModePlain = "plain"
)

// Transport says how connections are protected, and which hosts may speak. The
// zero value is mutual TLS 1.3 with libvirt's own PKI and no host that may dial,
// see DefaultTransport. Plain has neither secrecy nor authentication: whoever
// reaches the port may pretend to be a host; the checksums find accidents, not
// attacks.
type Transport struct {
	Mode string // "tls" (also when empty) or "plain"
	// Pages is how data connections travel under TLS: the same ("tls", also when
	// empty), or "plain" when both hosts say so: not encrypted, but authenticated
	// record by record with keys of the control connection's TLS session, see seal.
	Pages string

	// PEM files; empty means libvirt's. The server pair is used to listen,
	// the client pair to dial. They are read again for each dial, and for each
	// connection that comes when they changed.
	CACert, ServerCert, ServerKey, ClientCert, ClientKey string

	// ServerName is what the listener's certificate must be made out to; empty
	// means the host part of the dialed address, or the name that Peers has for it.
	ServerName string
	// AllowedNames are names and addresses, of which a dialer's certificate must
	// have one. Empty: the names and addresses of Peers. Empty both: nobody may dial.
	AllowedNames []string
	// Peers are the hosts that are known: for the name that a daemon calls itself
	// by, the name or address at which it is, without port. See vouches.
	Peers map[string]string
}

// DefaultTransport returns mutual TLS with the files where libvirt has them.
func DefaultTransport() Transport { return Transport{}.withDefaults() }

func (t Transport) withDefaults() Transport {
	f := pki.Libvirt()
	for _, x := range []struct {
		to *string
		or string
	}{
		{&t.Mode, ModeTLS}, {&t.Pages, ModeTLS},
		{&t.CACert, f.CACert}, {&t.ServerCert, f.ServerCert}, {&t.ServerKey, f.ServerKey}, {&t.ClientCert, f.ClientCert}, {&t.ClientKey, f.ClientKey},
	} {
		if *x.to == "" {
			*x.to = x.or
		}
	}
	return t
}

// Files returns the files that are used, whatever the mode.
func (t Transport) Files() pki.Files {
	t = t.withDefaults()
	return pki.Files{CACert: t.CACert, ServerCert: t.ServerCert, ServerKey: t.ServerKey, ClientCert: t.ClientCert, ClientKey: t.ClientKey}
}

// plainPages tells whether this host wants its data connections without TLS.
func (t Transport) plainPages() bool {
	t = t.withDefaults()
	return t.Mode == ModeTLS && t.Pages == ModePlain
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

const pkiRemedy = "create it as for libvirt's own TLS (https://libvirt.org/kbase/tlscerts.html), or with virt-ft pki"

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
	if t.Pages != ModeTLS && t.Pages != ModePlain {
		return nil, nil, &TransportError{Err: fmt.Errorf("unknown way %q for pages", t.Pages), Remedy: `use "tls" or "plain"`}
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

// serverConfig proves the dialer's certificate to be of the CA; whose it may be is
// judged once the dialer said who it is, so that it can be told: see identify.
func (t Transport) serverConfig() (*tls.Config, error) {
	t = t.withDefaults()
	cfg, pool, err := t.config(t.ServerCert, t.ServerKey)
	if cfg == nil || err != nil {
		return nil, err
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return cfg, nil
}

// clientConfig is for dialing host. crypto/tls would look for its name among the
// subject alternative names only, and knows of one name.
func (t Transport) clientConfig(host string) (*tls.Config, error) {
	t = t.withDefaults()
	cfg, pool, err := t.config(t.ClientCert, t.ClientKey)
	if cfg == nil || err != nil {
		return nil, err
	}
	wanted := t.namesAt(host)
	cfg.ServerName = host // for the listener's information; not sent when it is an address
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		return verifyServer(cs.PeerCertificates, pool, wanted)
	}
	return cfg, nil
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
	var unknownCA x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	switch {
	case errors.As(err, &notTLS):
		return "set the same transport on both hosts"
	case errors.As(err, &unknownCA):
		return "both hosts' certificates must be signed by the authority in transport.ca"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the certificate, and check both hosts' clocks"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "a host that dials shows its client certificate, one that is dialed its server certificate"
	case errors.As(err, &alert):
		return "the peer's log tells why it does not accept this host's certificate"
	}
	return ""
}
