package replica

import (
	"crypto/tls"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// keyring is a listener's TLS configuration, made again when its files changed,
// so that a renewed certificate counts from the next connection on. Three stat
// calls are what a stranger can make us do. Safe for concurrent use.
type keyring struct {
	t   Transport
	log *slog.Logger

	mu    sync.Mutex
	cfg   *tls.Config // nil: plain
	state [3]fileState
	bad   [3]fileState // which could not be used
	retry time.Time    // when they may be tried again
}

// retryAfter is how long files that cannot be used are left alone, unless they change.
const retryAfter = 5 * time.Second

// fileState tells a file from what it was.
type fileState struct {
	ino      uint64
	size     int64
	modified time.Time
}

func newKeyring(t Transport, log *slog.Logger) (*keyring, error) {
	k := &keyring{t: t.withDefaults(), log: log}
	k.state = k.look() // before they are read: a change meanwhile is seen next time
	var err error
	k.cfg, err = k.t.serverConfig()
	return k, err
}

func (k *keyring) look() (s [3]fileState) {
	for i, file := range [...]string{k.t.CACert, k.t.ServerCert, k.t.ServerKey} {
		if st, err := os.Stat(file); err == nil {
			s[i] = fileState{inode(st), st.Size(), st.ModTime()}
		}
	}
	return s
}

func inode(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Ino
	}
	return 0
}

// config returns what the next connection is to use. Files that cannot be used,
// which a renewal may leave for a moment, leave the old ones in use, and are
// tried again.
func (k *keyring) config() *tls.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cfg == nil {
		return nil
	}
	now := k.look()
	if now == k.state || now == k.bad && time.Now().Before(k.retry) {
		return k.cfg
	}
	cfg, err := k.t.serverConfig()
	if err != nil {
		k.bad, k.retry = now, time.Now().Add(retryAfter)
		k.log.Warn("replication: the certificate files changed, and cannot be used: the old ones stay in use", "err", err)
		return k.cfg
	}
	k.cfg, k.state = cfg, now
	k.log.Info("replication: renewed certificates are used from now on", "server_cert", k.t.ServerCert)
	return k.cfg
}
