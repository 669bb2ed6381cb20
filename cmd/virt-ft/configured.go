package main

import (
	"fmt"
	"os"

	"github.com/virt-ft/virt-ft/internal/config"
)

// exitConfig is what the daemon exits with when its configuration cannot work:
// EX_CONFIG of sysexits.h. The unit does not start it again then, as it does after
// everything else.
const exitConfig = 78

// configured returns the daemon's configuration, or says why it cannot work.
func (a *app) configured() (config.Config, error) {
	cfg, err := config.Load(a.config)
	if err != nil {
		a.complain(err.Error(), "virt-ft daemon --print-config shows one with all defaults")
		return cfg, exitError(exitConfig)
	}
	if cfg.Transport.Mode != config.TransportTLS {
		return cfg, nil
	}
	for _, path := range []string{cfg.Transport.CA, cfg.Transport.ServerCert, cfg.Transport.ServerKey} {
		if _, err := os.Stat(path); err != nil {
			a.complain(fmt.Sprintf("this host cannot prove who it is: %v", err),
				"make certificates (https://libvirt.org/kbase/tlscerts.html), or see [transport] in "+a.config)
			return cfg, exitError(exitConfig)
		}
	}
	return cfg, nil
}
