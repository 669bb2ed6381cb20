package daemon

import (
	"net/http"
	"time"

	"github.com/virt-ft/virt-ft/internal/config"
	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/pki"
	"github.com/virt-ft/virt-ft/internal/web"
)

// Metrics implements control.Historian.
func (d *Daemon) Metrics() http.Handler { return web.Metrics(d.watch, d.facts) }

// facts are what of the host is shown beside its domains.
func (d *Daemon) facts() web.Facts {
	f := web.Facts{Version: d.Version()}
	if m, err := d.memory.Report(); err == nil {
		room, _ := m.RoomBytes()
		f.Memory = web.MemoryFacts{Known: true, PromisedBytes: m.PromisedBytes, RoomBytes: room, AvailableBytes: m.AvailableBytes, Standbys: m.Standbys}
	}
	if t := d.cfg.Transport; t.Mode == config.TransportTLS {
		files := pki.Files{CACert: t.CA, ServerCert: t.ServerCert, ServerKey: t.ServerKey, ClientCert: t.ClientCert, ClientKey: t.ClientKey}
		for _, c := range files.Certificates(time.Now()) {
			f.Certificates = append(f.Certificates, web.Certificate{Use: string(c.Use), NotAfter: c.NotAfter})
		}
	}
	return f
}

// serveWeb serves the status page, if there is to be one, until the daemon stops.
// Guests are protected without it: that it cannot be served is an error in the log.
func (d *Daemon) serveWeb() {
	if d.cfg.Web.Listen == "" {
		return
	}
	s := web.NewServer(web.Options{Listen: d.cfg.Web.Listen, Names: append([]string{d.cfg.Host}, d.cfg.Web.Names...), Watch: d.watch, Facts: d.facts,
		Events: func(n int) []control.Event { return d.lastEvents("", n) },
		Status: func() []control.Status {
			all, _ := d.Status(d.ctx, "") // of all domains it does not fail
			return all
		}, Log: d.log})
	if err := s.Open(d.ctx); err != nil {
		d.log.Error("there is no status page: correct web.listen", "err", err)
		return
	}
	d.log.Info("status page", "url", "http://"+s.Addr().String()+"/")
	if err := s.Serve(d.ctx); err != nil {
		d.log.Error("the status page ended", "err", err)
	}
}
