package arbiter

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// authority issues certificates for a test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, "ca", nil)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue writes name.crt and name.key, for a server on the loopback and a client.
func (a *authority) issue(t *testing.T, name string, usage []x509.ExtKeyUsage) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, a.file(name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, a.file(name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})))
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, key
}

// cluster is a real etcd of n members on the loopback.
type cluster struct {
	ca        *authority
	endpoints []string
	members   []*exec.Cmd
}

func startCluster(t *testing.T, n int) *cluster {
	t.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("etcd is not installed (package etcd-server)")
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c := &cluster{ca: newAuthority(t)}
	c.ca.issue(t, "server", both)
	c.ca.issue(t, "client", both)
	var initial, peers []string
	for i := range n {
		peers = append(peers, "http://"+freeAddress(t))
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
		c.endpoints = append(c.endpoints, "https://"+freeAddress(t))
	}
	dir := memoryDir(t)
	for i := range n {
		cmd := exec.Command(program, "--name", fmt.Sprintf("m%d", i), "--data-dir", fmt.Sprintf("%s/m%d", dir, i),
			"--listen-client-urls", c.endpoints[i], "--advertise-client-urls", c.endpoints[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", t.Name(),
			"--heartbeat-interval", "50", "--election-timeout", "500", "--client-cert-auth",
			"--cert-file", c.ca.file("server.crt"), "--key-file", c.ca.file("server.key"), "--trusted-ca-file", c.ca.file("ca.crt"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		log, err := os.Create(fmt.Sprintf("%s/m%d.log", dir, i))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		started, ended := make(chan error), make(chan struct{})
		go func() {
			runtime.LockOSThread() // the kernel ends a member when this thread ends
			defer close(ended)
			defer log.Close()
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait()
			}
		}()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
			if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
				t.Logf("m%d: ... %s", i, b[max(0, len(b)-1500):])
			}
		})
		c.members = append(c.members, cmd)
	}
	return c
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *cluster) options() EtcdOptions {
	return EtcdOptions{
		Endpoints: c.endpoints, CAFile: c.ca.file("ca.crt"), CertFile: c.ca.file("client.crt"), KeyFile: c.ca.file("client.key"),
		Machine: "m", Timeout: 20 * time.Second,
	}
}

func (c *cluster) open(t *testing.T, change func(*EtcdOptions)) *Etcd {
	t.Helper()
	o := c.options()
	if change != nil {
		change(&o)
	}
	e, err := OpenEtcd(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func (c *cluster) signal(t *testing.T, member int, s syscall.Signal) {
	t.Helper()
	if err := c.members[member].Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}
