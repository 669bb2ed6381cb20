package web

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"sigs.k8s.io/yaml"

	"github.com/virt-ft/virt-ft/internal/control"
)

// scrape is what Prometheus reads of f.
func scrape(t testing.TB, f *feed) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	o := f.options("")
	Metrics(o.Watch, o.Facts).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.Bytes()
}

func TestMetricsAreWellNamed(t *testing.T) {
	text := scrape(t, newFeed(time.Now(), 4))
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "virt_ft_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, d := range newDescriptions().all {
		if name := nameOf(t, d.String()); !bytes.Contains(text, []byte("\n# TYPE "+name+" ")) {
			t.Errorf("%s is described and never there", name)
		}
	}
}

func nameOf(t *testing.T, desc string) string {
	t.Helper()
	m := regexp.MustCompile(`fqName: "([a-z_0-9]+)"`).FindStringSubmatch(desc)
	if m == nil {
		t.Fatalf("no name in %s", desc)
	}
	return m[1]
}

// names are all metrics, as queries write them.
func names(t *testing.T) map[string]bool {
	all := map[string]bool{}
	for _, line := range strings.Split(string(scrape(t, newFeed(time.Now(), 4))), "\n") {
		if m := regexp.MustCompile(`^virt_ft_[a-z_0-9]+`).FindString(line); m != "" {
			all[m] = true
		}
	}
	return all
}

func TestMetricsSayWhatIs(t *testing.T) {
	now := time.Now()
	f := newFeed(now, 2)
	f.watch.Claimed("x", "peer silent")
	f.watch.Event(control.Event{Kind: control.EventState, UUID: "x", Role: control.RoleBackup, State: "active"})
	text := string(scrape(t, f))
	for _, line := range []string{
		`virt_ft_state{domain="web1",role="primary",state="protected"} 1`, `virt_ft_state{domain="web1",role="primary",state="alone"} 0`,
		`virt_ft_state{domain="db-standby",role="backup",state="standby"} 1`, `virt_ft_role{domain="db-standby",role="primary"} 0`,
		`virt_ft_protected{domain="web1"} 1`, `virt_ft_generation{domain="web1"} 3`, `virt_ft_held_frames{domain="web1"} 12`,
		`virt_ft_last_commit_age_seconds{domain="web1"} 0.014`, `virt_ft_clock_drift_seconds{domain="web1"} 0.00013`,
		`virt_ft_failovers_total{cause="peer silent"} 1`, `virt_ft_certificate_expiry_timestamp_seconds{use="server"} 1.9e+09`,
		`virt_ft_memory_promised_bytes 4.294967296e+09`, `virt_ft_pause_seconds_count{domain="web1"} 9360`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("not there: %s", line)
		}
	}
	if strings.Contains(text, `use="client"`) {
		t.Error("a certificate that could not be read has an end")
	}
	// A protection that ended leaves its sums, and no gauges.
	f.set(now)
	text = string(scrape(t, f))
	if strings.Contains(text, "virt_ft_protected{") || !strings.Contains(text, `virt_ft_pause_seconds_count{domain="web1"} 9360`) {
		t.Error("what is left of a protection that ended is not right")
	}
	// Nor does an odd name spoil the scrape.
	f.set(now, control.Status{Domain: "a\xffb\n", UUID: "o", Role: "primary", State: "of the future", Peer: "\x00"})
	if text := string(scrape(t, f)); !strings.Contains(text, `state="of the future"} 1`) {
		t.Error("an odd name takes the rest with it")
	}
}

const packaging = "../../packaging/"

// What alerts and the dashboard ask for is there.
func TestQueriesAskForWhatIsThere(t *testing.T) {
	known := names(t)
	var exprs []string
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	b, err := os.ReadFile(packaging + "prometheus/virt-ft.rules.yml")
	if err == nil {
		err = yaml.Unmarshal(b, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			exprs = append(exprs, r.Expr)
		}
	}
	alerts := len(exprs)
	var dashboard any
	if b, err = os.ReadFile(packaging + "grafana/virt-ft.json"); err == nil {
		err = json.Unmarshal(b, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	exprs = append(exprs, exprsOf(dashboard)...)
	if alerts < 10 || len(exprs)-alerts < 20 {
		t.Fatalf("%d queries of alerts, %d of the dashboard", alerts, len(exprs)-alerts)
	}
	for _, e := range exprs {
		asks := regexp.MustCompile(`virt_ft_[a-z_0-9]+`).FindAllString(e, -1)
		for _, name := range asks {
			if !known[name] {
				t.Errorf("%s is no metric: %s", name, e)
			}
		}
		if len(asks) == 0 && !strings.HasPrefix(e, "up{") {
			t.Errorf("asks for nothing of ours: %s", e)
		}
	}
}

// exprsOf are all queries of a dashboard, wherever they are.
func exprsOf(v any) (all []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			all = append(all, exprsOf(e)...)
		}
	case map[string]any:
		for k, e := range v {
			if s, ok := e.(string); ok && (k == "expr" || k == "query" && strings.Contains(s, "virt_ft_")) {
				all = append(all, s)
			} else {
				all = append(all, exprsOf(e)...)
			}
		}
	}
	return all
}

// No two panels of the dashboard lie on each other, and each has an id of its own.
func TestDashboard(t *testing.T) {
	var d struct {
		UID, Title    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ RefID, Expr string }
		}
	}
	b, err := os.ReadFile(packaging + "grafana/virt-ft.json")
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil || d.UID == "" || d.Title == "" || d.SchemaVersion == 0 {
		t.Fatalf("%v: %+v", err, d)
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Type == "" || p.Title == "" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

func TestRules(t *testing.T) {
	promtool, err := filepath.Abs("../../build/tools/promtool")
	if err == nil {
		_, err = os.Stat(promtool)
	}
	if err != nil {
		promtool, err = exec.LookPath("promtool")
	}
	if err != nil {
		t.Skip("promtool is not there: make promtool, or apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "virt-ft.rules.yml"}, {"test", "rules", "virt-ft.rules.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = packaging + "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(scrape(t, newFeed(time.Now(), 4)))
	out, _ := cmd.CombinedOutput() // it also complains of Go's own
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "virt_ft_") {
			t.Error(line)
		}
	}
}

// docs/MONITORING.md has a row for each metric and a section for each alert.
func TestMetricsAreDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("../../docs", "MONITORING.md"))
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(virt_ft_[a-z_0-9]+)`").FindAllStringSubmatch(string(b), -1) {
		told = append(told, m[1])
	}
	var are []string
	for _, d := range newDescriptions().all {
		are = append(are, nameOf(t, d.String()))
	}
	slices.Sort(told)
	slices.Sort(are)
	if !slices.Equal(told, are) {
		t.Errorf("documented:\n%s\nthere:\n%s", strings.Join(told, "\n"), strings.Join(are, "\n"))
	}
	rules, err := os.ReadFile(packaging + "prometheus/virt-ft.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains(string(b), "| `"+m[1]+"`") {
			t.Errorf("what to do about %s is not in docs/MONITORING.md", m[1])
		}
	}
}

// BenchmarkScrape is of thirty domains, beside writing as many bytes out of memory.
func BenchmarkScrape(b *testing.B) {
	f := newFeed(time.Now(), 30)
	o := f.options("")
	h := Metrics(o.Watch, o.Facts)
	var scraped, copied time.Duration
	bytesOut := 0
	for b.Loop() {
		t := time.Now()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		scraped += time.Since(t)
		text := w.Body.Bytes()
		bytesOut = len(text)
		t = time.Now()
		var again bytes.Buffer
		for _, line := range bytes.SplitAfter(text, []byte("\n")) {
			again.Write(line)
		}
		copied += time.Since(t)
	}
	b.ReportMetric(float64(scraped.Microseconds())/1000/float64(b.N), "ms/scrape")
	b.ReportMetric(float64(bytesOut), "bytes")
	b.ReportMetric(float64(scraped)/float64(copied), "of_copying_lines")
}
