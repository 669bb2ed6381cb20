package arbiter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxEndpoints     = 16
	maxPrefixLen     = 256
	maxSecretBytes   = 4096
	maxPEMBytes      = 1 << 20
	maxAnswerBytes   = 64 << 10 // of etcd, for two records of at most maxRecordBytes
	etcdDialTimeout  = time.Second
	etcdKeepAlive    = 10 * time.Second // the shortest that gRPC allows
	etcdKeepAliveMax = 2 * time.Second  // without an answer to that
	etcdTries        = 3                // of the library, for expired tokens
)

// errRefused means that etcd, or its certificate, or ours, says no: waiting
// does not help.
var errRefused = errors.New("refused")

// configure checks the options and fills in their defaults.
func (e *Etcd) configure() error {
	o := &e.o
	if o.Timeout <= 0 {
		o.Timeout = defaultOpTimeout
	}
	if o.Machine == "" {
		o.Machine = machineID()
	}
	if o.Prefix == "" {
		o.Prefix = "/virt-ft"
	}
	e.prefix = strings.TrimRight(o.Prefix, "/") + "/"
	if len(e.prefix) > maxPrefixLen || !strings.HasPrefix(e.prefix, "/") || strings.ContainsFunc(e.prefix, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("prefix %.80q must begin with '/', be printable and have at most %d characters", o.Prefix, maxPrefixLen)
	}
	if len(o.Endpoints) == 0 || len(o.Endpoints) > maxEndpoints {
		return fmt.Errorf("etcd needs 1 to %d endpoints, has %d", maxEndpoints, len(o.Endpoints))
	}
	for i, text := range o.Endpoints {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("etcd endpoint %.80q is not like https://host:2379", text)
		}
		if secure := u.Scheme == "https"; i > 0 && secure != e.tls {
			return errors.New("etcd endpoints must be all https or all http")
		}
		e.tls = u.Scheme == "https"
	}
	switch {
	case (o.CertFile == "") != (o.KeyFile == ""):
		return errors.New("etcd needs both a certificate and its key, or none")
	case (o.Username == "") != (o.PasswordFile == ""):
		return errors.New("etcd needs both a user name and a password file, or none")
	case !e.tls && (o.CAFile != "" || o.CertFile != "" || o.Username != ""):
		return errors.New("etcd certificates and passwords need https endpoints")
	}
	_, err := e.tlsConfig()
	return err
}

func (e *Etcd) tlsConfig() (*tls.Config, error) {
	if !e.tls {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.o.CAFile != "" {
		pem, err := readLimited(e.o.CAFile, maxPEMBytes)
		if err != nil {
			return nil, fmt.Errorf("etcd CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd CA: no certificate in %s", e.o.CAFile)
		}
	}
	if e.o.CertFile == "" {
		return c, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(e.o.CertFile, e.o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd certificate: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return c, nil
}

// connect returns the client, and makes it if there is none: with a password,
// making one needs a cluster that answers.
func (e *Etcd) connect(ctx context.Context) (*clientv3.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, final{errors.New("the arbiter was closed")}
	}
	if e.client != nil {
		return e.client, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	secure, err := e.tlsConfig()
	if err != nil {
		return nil, final{fmt.Errorf("%w: %w", errRefused, err)}
	}
	password := ""
	if e.o.PasswordFile != "" {
		if password, err = readSecret(e.o.PasswordFile); err != nil {
			return nil, final{fmt.Errorf("%w: %w", errRefused, err)}
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: e.o.Endpoints, TLS: secure, Username: e.o.Username, Password: password,
		DialTimeout: min(etcdDialTimeout, e.o.Timeout), DialKeepAliveTime: etcdKeepAlive, DialKeepAliveTimeout: etcdKeepAliveMax,
		MaxCallSendMsgSize: maxAnswerBytes, MaxCallRecvMsgSize: maxAnswerBytes, MaxUnaryRetries: etcdTries,
		Logger: zap.NewNop(), // its errors are returned; logging them too would say it twice
	})
	if err != nil {
		return nil, e.explain(err, false)
	}
	e.client = client
	return client, nil
}

// explain says what an error of the library means and what to do. It is final
// when asking again is of no use, and then nothing was written; writes tells
// that the request might have been performed.
func (e *Etcd) explain(err error, writes bool) error {
	refused := func(text string) error { return final{fmt.Errorf("etcd %w: %s: %w", errRefused, text, err)} }
	known := rpctypes.Error(err)
	is := func(grpc error) bool { return errors.Is(known, rpctypes.Error(grpc)) }
	switch {
	case is(rpctypes.ErrGRPCPermissionDenied):
		who := fmt.Sprintf("user %q", e.o.Username)
		if e.o.Username == "" {
			who = "the user named like our certificate"
		}
		return refused(fmt.Sprintf("%s may not do this: grant it readwrite on the prefix %s", who, e.prefix))
	case is(rpctypes.ErrGRPCAuthFailed), is(rpctypes.ErrGRPCInvalidAuthToken), is(rpctypes.ErrGRPCUserNotFound):
		return refused("it does not know this user and password: look at " + e.o.PasswordFile)
	case is(rpctypes.ErrGRPCUserEmpty):
		return refused("it wants a user name: set a user and a password file")
	case is(rpctypes.ErrGRPCNoSpace):
		return refused("its database is full: see `etcdctl alarm list`")
	case status.Code(err) == codes.ResourceExhausted && !writes && strings.Contains(err.Error(), "larger than max"):
		return final{fmt.Errorf("%w: etcd's answer is longer than %d bytes", ErrStorage, maxAnswerBytes)}
	case is(rpctypes.ErrGRPCNoLeader):
		return fmt.Errorf("etcd has no quorum: bring a majority of its members up: %w", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		status.Code(err) == codes.DeadlineExceeded, status.Code(err) == codes.Unavailable:
		return fmt.Errorf("etcd does not answer at %s: are a majority of its members up and reachable? %w", strings.Join(e.o.Endpoints, ", "), err)
	}
	return fmt.Errorf("etcd: %w", err)
}

// handshakes tells why a member that answers is refused, or refuses us: the
// library only says that it does not answer. A member that is away is none of
// its business.
func (e *Etcd) handshakes(ctx context.Context) error {
	if !e.tls {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdDialTimeout)
	defer cancel()
	results := make(chan error, len(e.o.Endpoints))
	for _, text := range e.o.Endpoints {
		go func() { results <- e.handshake(ctx, text) }()
	}
	var first error
	for range e.o.Endpoints {
		if err := <-results; first == nil {
			first = err
		}
	}
	return first
}

func (e *Etcd) handshake(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	secure, err := e.tlsConfig()
	if err != nil {
		return err
	}
	secure.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", u.Host)
	if err == nil {
		defer conn.Close()
		// A server of HTTP/2 speaks first. With TLS 1.3 its opinion of our
		// certificate comes in place of that.
		if end, ok := ctx.Deadline(); ok {
			_ = conn.SetReadDeadline(end)
		}
		_, err = conn.Read(make([]byte, 1))
	}
	var alert *net.OpError
	var unknown *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("etcd at %s %w: its certificate is not one that %s vouches for, or not for this address: %w", u.Host, errRefused, orSystem(e.o.CAFile), err)
	case errors.As(err, &alert) && alert.Op == "remote error":
		return fmt.Errorf("etcd at %s %w: it wants a client certificate of its own CA: %w", u.Host, errRefused, err)
	}
	return nil
}

func orSystem(file string) string {
	if file == "" {
		return "the system's CAs"
	}
	return file
}

// machineID is empty in some containers: then names alone tell hosts apart.
func machineID() string {
	b, _ := os.ReadFile("/etc/machine-id")
	return strings.TrimSpace(string(b))
}

// readSecret reads the one line of a file that is not for everybody.
func readSecret(name string) (string, error) {
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("everybody may read %s: chmod 600 it", name)
	}
	b, err := readLimited(name, maxSecretBytes)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s must hold one line", name)
	}
	return secret, nil
}

func readLimited(name string, bytesMax int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, bytesMax+1))
	if err == nil && int64(len(b)) > bytesMax {
		err = fmt.Errorf("%s is longer than %d bytes", name, bytesMax)
	}
	return b, err
}
