package daemon

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/virt-ft/virt-ft/internal/control"
	"github.com/virt-ft/virt-ft/internal/virt"
)

const (
	// checkPatience is how long one look may take for `virt-ft check`, and
	// refusePatience before a protection: libvirtd may be probing QEMU then.
	checkPatience  = 4 * time.Second
	refusePatience = 30 * time.Second
)

// Check implements control.Service. What is looked at is looked at side by side,
// each look with its own patience, so that one that hangs hides no other.
func (d *Daemon) Check(ctx context.Context, req control.CheckRequest) (control.CheckReport, error) {
	r := control.CheckReport{HostName: d.cfg.Host}
	var g *guest
	if req.Domain != "" {
		dom, err := d.lookup(ctx, req.Domain)
		if err != nil {
			return r, err
		}
		r.DomainName = dom.Name()
		g = d.guestOf(ctx, dom, checkPatience)
	}
	var addr string
	if req.To != "" {
		var err error
		if addr, err = d.peerAddr(req.To); err != nil {
			return r, err
		}
		r.PeerName = req.To
	}
	var link *linkFacts
	parts := make(chan struct{}, 3)
	begin := func(part func()) {
		go func() {
			defer func() { parts <- struct{}{} }()
			part()
		}()
	}
	begin(func() { r.Host = d.gather(ctx, checkPatience, d.hostLooks(req.To != "")) })
	begin(func() {
		if addr != "" {
			r.Peer, link = d.checkPeer(ctx, addr, g, peerLook{patience: checkPatience, measure: true, bandwidth: !req.NoBandwidth})
		}
	})
	begin(func() {
		if g != nil {
			r.Domain = d.gather(ctx, checkPatience, d.guestLooks(g))
		}
	})
	for range cap(parts) {
		<-parts
	}
	if link != nil {
		r.Link = link.report()
		if g != nil {
			r.Domain = append(r.Domain, d.foretell(g, link)...)
		}
	}
	return r, nil
}

// look is one thing to look at, or a few that belong together.
type look struct {
	id, item string // of the finding that says that there was no answer
	see      func(ctx context.Context) []control.Finding
}

// looksMax bounds the looks that are under way, those that were given up among them:
// each may occupy a thread, of which the runtime allows 10,000.
const looksMax = 256

// gather looks at everything side by side and returns what was found, in the
// order of looks. One that takes longer than patience is a finding itself; it
// goes on in the background, because a system call cannot be called back.
func (d *Daemon) gather(ctx context.Context, patience time.Duration, looks []look) []control.Finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	found := make([]chan []control.Finding, len(looks))
	for i, l := range looks {
		found[i] = make(chan []control.Finding, 1)
		if d.looking.Add(1) > looksMax {
			d.looking.Add(-1)
			found[i] <- []control.Finding{failed(l.id, l.item, "find out what hangs: libvirtd, or storage", fmt.Errorf("%d earlier looks have not returned", looksMax))}
			continue
		}
		go func() {
			defer d.looking.Add(-1)
			found[i] <- l.see(ctx)
		}()
	}
	grace := time.NewTimer(patience + patience/8) // looks that heed ctx say more than we could
	defer grace.Stop()
	var fs []control.Finding
	late := false
	for i, l := range looks {
		if !late {
			select {
			case f := <-found[i]:
				fs = append(fs, f...)
				continue
			case <-grace.C:
				late = true
			}
		}
		select {
		case f := <-found[i]:
			fs = append(fs, f...)
		default:
			fs = append(fs, failed(l.id, l.item, "check again; if it stays so, see the daemon's log", fmt.Errorf("no answer within %v", patience)))
		}
	}
	return fs
}

// one makes a look of a function that finds one thing.
func one(id, item string, see func(ctx context.Context) control.Finding) look {
	return look{id, item, func(ctx context.Context) []control.Finding { return []control.Finding{see(ctx)} }}
}

func okay(id, item, format string, args ...any) control.Finding {
	return control.Finding{ID: id, Item: item, Level: control.LevelOK, Text: fmt.Sprintf(format, args...)}
}

func warned(id, item, remedy, format string, args ...any) control.Finding {
	return control.Finding{ID: id, Item: item, Level: control.LevelWarn, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

func failed(id, item, remedy string, err error) control.Finding {
	return control.Finding{ID: id, Item: item, Level: control.LevelFail, Text: err.Error(), Remedy: remedy}
}

// checkPlaces refuses places for disks that the guest does not have.
func checkPlaces(ctx context.Context, dom *virt.Domain, places map[string]string) error {
	if len(places) == 0 {
		return nil
	}
	live, err := dom.LiveXML(ctx)
	if err != nil {
		return err
	}
	disks, err := virt.Disks(live)
	if err != nil {
		return err
	}
	var names []string
	for _, disk := range disks {
		if disk.Replicated() {
			names = append(names, disk.Target)
		}
	}
	for name, path := range places {
		if !slices.Contains(names, name) {
			return control.Errorf(control.CodeInvalid, "", "%s has no writable disk %s, only: %s", dom.Name(), name, strings.Join(names, ", "))
		}
		if err := checkPlace(path); err != nil {
			return control.Errorf(control.CodeInvalid, "", "disk %s: %w", name, err)
		}
	}
	return nil
}

// checkPlace refuses what cannot be the place of an image.
func checkPlace(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%q is not an absolute, clean path", path)
	}
	return nil
}

// refuse turns failed findings of this host, of the domain and of a peer that
// answers into one error. A peer that does not answer is no reason yet: the
// connection is tried for longer. Nothing is measured.
func (d *Daemon) refuse(ctx context.Context, dom *virt.Domain, addr, kind string, places map[string]string) error {
	g := d.guestOf(ctx, dom, refusePatience)
	if kind != "" {
		g.arbiter = kind
	}
	g.places = places
	fs := d.gather(ctx, refusePatience, append(d.guestLooks(g), d.hostLooks(true)...))
	peer, _ := d.checkPeer(ctx, addr, g, peerLook{patience: refusePatience})
	fs = append(fs, slices.DeleteFunc(peer, func(f control.Finding) bool { return f.ID == peerReachable })...)
	var why, remedies []string
	for _, f := range fs {
		if f.Level == control.LevelFail {
			why = append(why, f.Item+": "+f.Text)
			if f.Remedy != "" && !slices.Contains(remedies, f.Remedy) {
				remedies = append(remedies, f.Remedy)
			}
		}
	}
	if len(why) == 0 {
		return nil
	}
	return control.Errorf(control.CodeRefused, strings.Join(remedies, "; "), "%s cannot be protected: %s", dom.Name(), strings.Join(why, "; "))
}
