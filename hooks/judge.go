package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/virt-ft/virt-ft/internal/hookd"
	"github.com/virt-ft/virt-ft/internal/marker"
)

// judge returns why the domain must not start, in one line; empty: it may.
func (h *hook) judge(ctx context.Context) string {
	c := h.call
	c.UUID, _ = bounded(ctx, func() (string, error) { return readUUID(h.stdin) })
	at, o := h.object(c)
	switch {
	case o == nil:
		return "" // it has nothing to do with us, or ended: no daemon is needed
	case c.UUID == "":
		return refusal(c, o.Why, "libvirt did not tell which domain it is in time: try again", o.Remedy)
	}
	a, err := bounded(ctx, func() (hookd.Answer, error) { return h.ask(ctx, at.socket(), c) })
	switch {
	case err == nil && a.Allow:
		return ""
	case err == nil && a.Reason != "":
		return refusal(c, a.Reason)
	case err == nil:
		return refusal(c, o.Why, o.Remedy)
	case errors.Is(err, hookd.ErrNoDaemon):
		return refusal(c, o.Why, "virt-ft's daemon does not run: start it", o.Remedy)
	}
	return refusal(c, o.Why, fmt.Sprintf("virt-ft's daemon does not answer (%v): look at it, or restart it", err), o.Remedy)
}

// object asks the files, and returns where the daemon keeps them.
func (h *hook) object(c hookd.Call) (dirs, *marker.Objection) {
	ctx, cancel := context.WithTimeout(context.Background(), filesMax)
	defer cancel()
	at, err := bounded(ctx, func() (dirs, error) { return readDirs(h.config), nil })
	var o *marker.Objection
	if err == nil {
		o, err = bounded(ctx, func() (*marker.Objection, error) {
			if c.UUID == "" {
				return marker.ObjectByName(at.state, c.Name), nil
			}
			return marker.Object(at.state, c.UUID), nil
		})
	}
	if err != nil {
		o = &marker.Objection{Why: "virt-ft's files cannot be read in time", Remedy: "look at the disk that they are on, and try again"}
	}
	return at, o
}

// refusal is the line that libvirt shows. Texts that are empty are left out.
func refusal(c hookd.Call, texts ...string) string {
	var said []string
	for _, t := range texts {
		if t != "" {
			said = append(said, t)
		}
	}
	line := fmt.Sprintf("%s must not be started here: %s", c.Name, strings.Join(said, "; "))
	return strings.Join(strings.Fields(line), " ") // names and errors may have line ends
}
