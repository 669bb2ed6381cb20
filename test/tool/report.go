package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// ReportVersion is of the file's format. Another one is not merged into.
const ReportVersion = 1

// reportMaxBytes bounds a report that is read.
const reportMaxBytes = 64 << 20

// Report is what bench.json holds. There the metrics stand at the top, beside
// the other keys; one that could not be had is null, and Skipped says why.
type Report struct {
	Metrics map[string]*float64
	Skipped map[string]string
	Head
	Parts map[string]Part // by the name that -only takes
}

// Head says what was measured, when and on what.
type Head struct {
	Version int       `json:"version"`
	Date    time.Time `json:"date"` // of the part that was measured last
	Commit  string    `json:"commit"`
	// Changes is a digest of the Go sources that are not as in Commit; empty:
	// they are.
	Changes string  `json:"changes,omitempty"`
	Machine Machine `json:"machine"`
}

// Machine is what it ran on.
type Machine struct {
	Kernel  string `json:"kernel"`
	QEMU    string `json:"qemu"`
	Libvirt string `json:"libvirt"`
	Go      string `json:"go"`
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	RAMMiB  int    `json:"ram_mib"`
}

// Part is one program's run, or that of the micro-benchmarks.
type Part struct {
	Result
	Date    time.Time `json:"date"` // of its end
	Seconds float64   `json:"seconds"`
	// LoadBefore is how many tasks wanted a core over the minute before it
	// began: figures from a machine with other work are worth less.
	LoadBefore float64 `json:"load_before"`
}

// ReadDetails decodes the details into a type of the caller's.
func (p Part) ReadDetails(to any) error {
	b, err := json.Marshal(p.Details)
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	return err
}

// Merge sets the metrics and reasons anew from what the parts say. wanted are
// the names of the figures that must be there, each with the part that owes it:
// one that is not is null, with a reason.
func (r *Report) Merge(wanted map[string]string) {
	r.Metrics, r.Skipped = map[string]*float64{}, map[string]string{}
	for _, p := range r.Parts {
		for name, v := range p.Metrics {
			r.Metrics[name] = &v
		}
	}
	for _, p := range r.Parts {
		for name, why := range p.Skipped {
			if r.Metrics[name] == nil {
				r.Metrics[name], r.Skipped[name] = nil, why
			}
		}
	}
	for name, part := range wanted {
		if _, told := r.Metrics[name]; told {
			continue
		}
		p, ran := r.Parts[part]
		switch r.Metrics[name] = nil; {
		case !ran:
			r.Skipped[name] = fmt.Sprintf("%s was not run (bench -only %s)", part, part)
		case !p.OK:
			r.Skipped[name] = fmt.Sprintf("%s failed: %s", part, p.Error)
		default:
			r.Skipped[name] = fmt.Sprintf("%s ran, and did not tell it", part)
		}
	}
}

// ReadReport reads a report. If there is none, the error is fs.ErrNotExist.
func ReadReport(path string) (*Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, reportMaxBytes))
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Version != ReportVersion {
		return nil, fmt.Errorf("%s is of format %d, this program knows %d: remove it", path, r.Version, ReportVersion)
	}
	return r, nil
}

// Write puts the report in the place of the one before, as a whole or not at
// all.
func (r *Report) Write(path string) (err error) {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// MarshalJSON implements json.Marshaler.
func (r Report) MarshalJSON() ([]byte, error) {
	flat := map[string]any{}
	for name, v := range r.Metrics {
		flat[name] = v
	}
	head, err := json.Marshal(r.Head)
	if err == nil {
		err = json.Unmarshal(head, &flat)
	}
	flat["skipped"], flat["parts"] = r.Skipped, r.Parts
	if err != nil {
		return nil, err
	}
	return json.Marshal(flat)
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Report) UnmarshalJSON(b []byte) error {
	var flat map[string]json.RawMessage
	rest := struct {
		Skipped map[string]string `json:"skipped"`
		Parts   map[string]Part   `json:"parts"`
	}{}
	r.Head = Head{}
	if err := errors.Join(json.Unmarshal(b, &flat), json.Unmarshal(b, &r.Head), json.Unmarshal(b, &rest)); err != nil {
		return err
	}
	r.Skipped, r.Parts, r.Metrics = rest.Skipped, rest.Parts, map[string]*float64{}
	for _, key := range []string{"version", "date", "commit", "changes", "machine", "skipped", "parts"} {
		delete(flat, key)
	}
	for name, raw := range flat {
		var v *float64
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.Metrics[name] = v
	}
	return nil
}
