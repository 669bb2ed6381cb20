package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// daemonSocket is the control socket of a host's daemon, inside the host.
const daemonSocket = "/run/virt-ft/control.sock"

// answerOfDaemonMaxBytes bounds an answer of the control socket.
const answerOfDaemonMaxBytes = 4 << 20

// Poll is Protections without the command: who asks many times a second until
// something has happened would give the processors that it waits for to
// programs that start and end.
func (h *Host) Poll(ctx context.Context, domain string) ([]Protection, error) {
	var ps []Protection
	err := h.PollInto(ctx, domain, &ps)
	return ps, err
}

// PollInto is Poll for who reads something else of the daemon's answer, which is
// what `virt-ft status -o json` prints.
func (h *Host) PollInto(ctx context.Context, domain string, into any) error {
	return h.get(ctx, "status", url.Values{"domain": {domain}}, into)
}

// get asks the host's daemon for one thing of its interface.
func (h *Host) get(ctx context.Context, what string, query url.Values, into any) error {
	socket, err := h.Root(daemonSocket)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	u := url.URL{Scheme: "http", Host: h.Name, Path: "/v1/" + what, RawQuery: query.Encode()}
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	answer, err := client.Do(ask)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, answerOfDaemonMaxBytes))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: %s: %w", h.Name, what, err)
	}
	return nil
}
