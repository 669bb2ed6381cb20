package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Use is what a certificate of a host is for.
type Use string

// The uses.
const (
	UseCA     Use = "ca"
	UseServer Use = "server" // shown to hosts that connect to this one
	UseClient Use = "client" // shown to hosts that this one connects to
)

// Certificate is what one of the configured files holds.
type Certificate struct {
	Use                 Use
	File                string
	Names               []string // whom it is made out to; of an authority, its own name
	NotBefore, NotAfter time.Time
	// Err says why it cannot be used now: missing, not readable, out of its time,
	// not of this authority, not for this use, or not of this key. Nil if it can.
	Err error
}

// Left is for how long the certificate is still good; negative when it is not.
func (c Certificate) Left(now time.Time) time.Duration { return c.NotAfter.Sub(now) }

// Certificates looks at the authority and at both of the host's certificates, in
// this order, as of now. It never fails: what is wrong is in Err, and only a
// certificate that could be read has names and times.
func (f Files) Certificates(now time.Time) []Certificate {
	ca, roots := Certificate{Use: UseCA, File: f.CACert}, x509.NewCertPool()
	authorities, err := readCertificates(f.CACert)
	if err != nil {
		ca.Err = err
	} else {
		ca.describe(authorities[0], now)
		for _, a := range authorities {
			roots.AddCert(a)
		}
	}
	return []Certificate{
		ca,
		inspect(UseServer, f.ServerCert, f.ServerKey, roots, x509.ExtKeyUsageServerAuth, now),
		inspect(UseClient, f.ClientCert, f.ClientKey, roots, x509.ExtKeyUsageClientAuth, now),
	}
}

func (c *Certificate) describe(x *x509.Certificate, now time.Time) {
	c.Names, c.NotBefore, c.NotAfter = Names(x), x.NotBefore, x.NotAfter
	c.Err = InTime(x, now)
}

// InTime returns an error unless now is within the certificate's time.
func InTime(x *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(x.NotBefore):
		return fmt.Errorf("is not valid before %s, and this host's clock says %s", stamp(x.NotBefore), stamp(now))
	case now.After(x.NotAfter):
		return fmt.Errorf("expired on %s, and this host's clock says %s", stamp(x.NotAfter), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func inspect(use Use, certFile, keyFile string, roots *x509.CertPool, eku x509.ExtKeyUsage, now time.Time) Certificate {
	c := Certificate{Use: use, File: certFile}
	chain, err := readCertificates(certFile)
	if err != nil {
		c.Err = err
		return c
	}
	if c.describe(chain[0], now); c.Err != nil {
		return c
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		c.Err = fmt.Errorf("cannot be used with %s: %w", keyFile, err)
		return c
	}
	between := x509.NewCertPool()
	for _, x := range chain[1:] {
		between.AddCert(x)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{eku}, CurrentTime: now})
	c.Err = explain(err, use)
	return c
}

// explain says in an operator's words why a chain is not trusted.
func explain(err error, use Use) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return errors.New("is not signed by the configured authority")
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("is not for use as a %s certificate (extended key usage)", use)
	}
	return err
}
