package virt

import (
	"log/slog"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

const eventLoopRetryDelay = 100 * time.Millisecond

// libvirt's client library has exactly one event loop per process: it is registered once, before the first
// connection, and can never be taken back. Hence the only package-level state here, and a goroutine that
// nobody can wait for.
var (
	eventLoopOnce sync.Once
	eventLoopErr  error
)

func startEventLoop(log *slog.Logger) error {
	eventLoopOnce.Do(func() {
		if eventLoopErr = libvirt.EventRegisterDefaultImpl(); eventLoopErr != nil {
			return
		}
		go func() {
			for {
				if err := libvirt.EventRunDefaultImpl(); err != nil {
					log.Warn("libvirt event loop", "error", err)
					time.Sleep(eventLoopRetryDelay) // do not spin should poll(2) fail over and over
				}
			}
		}()
	})
	return eventLoopErr
}
