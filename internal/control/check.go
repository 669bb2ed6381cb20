package control

// Level grades a finding.
type Level string

// Levels of findings. Only LevelFail prevents protection.
const (
	LevelOK   Level = "ok"
	LevelWarn Level = "warn"
	LevelFail Level = "fail"
)

// CheckRequest says what check looks at beside this host.
type CheckRequest struct {
	Domain string // name or UUID; empty: none
	To     string // peer, by name or address; empty: none
	// NoBandwidth leaves out the measurement that fills the link for a moment.
	NoBandwidth bool
}

// Finding is one thing that was looked at.
type Finding struct {
	// ID names the kind of finding and stays the same from release to release;
	// docs/CHECK.md has them all.
	ID     string `json:"id"`
	Item   string `json:"item"` // for people, such as "disk vda"
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// CheckReport is the answer to check.
type CheckReport struct {
	HostName   string    `json:"host_name"`
	PeerName   string    `json:"peer_name,omitempty"`
	DomainName string    `json:"domain_name,omitempty"`
	Host       []Finding `json:"host"`
	Peer       []Finding `json:"peer,omitempty"`
	Domain     []Finding `json:"domain,omitempty"`
	// Link is what was measured on the way to the peer; nil if nothing was.
	Link *LinkReport `json:"link,omitempty"`
}

// LinkReport is what was measured between the two daemons, by the transport that
// a protection uses.
type LinkReport struct {
	RTTP50Us     float64 `json:"rtt_p50_us"` // round trips of a small message, in microseconds
	RTTP99Us     float64 `json:"rtt_p99_us"`
	BandwidthBps float64 `json:"bandwidth_bps"` // bytes per second over one connection; 0: not measured
	// Clock compares both hosts' clocks on the wall; nil: not compared.
	Clock *PeerClock `json:"clock,omitempty"`
}

// Worst returns the gravest level of all findings.
func (r CheckReport) Worst() Level {
	worst := LevelOK
	for _, list := range [][]Finding{r.Host, r.Peer, r.Domain} {
		for _, f := range list {
			if f.Level == LevelFail || f.Level == LevelWarn && worst == LevelOK {
				worst = f.Level
			}
		}
	}
	return worst
}
