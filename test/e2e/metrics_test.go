package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	goyaml "github.com/goccy/go-yaml"
)

// metricsPromised are the metrics that the documentation promises, with their
// labels: alert rules, dashboards and scripts of others rely on them.
const metricsPromised = `
files_total{source,status} bytes_uploaded_total{source} failures_total{source,class} s3_requests_total{op,code}
s3_request_duration_seconds{op} queue_depth{source,state} oldest_pending_timestamp_seconds{source}
event_to_durable_seconds{source} events_total{source,op} event_overflows_total{source} watched_directories{source}
polled_directories{source} rescans_total{source,trigger} rescan_duration_seconds{source} rescan_missed_files_total{source}
last_successful_scan_timestamp_seconds{source} last_upload_timestamp_seconds{source} hash_bytes_total{source}
indexed_files{source} indexed_bytes{source} manifest_flushes_total{source,result} manifest_unpublished_records{source}
last_manifest_timestamp_seconds{source} manifest_sequence{source} journal_bytes encryption_mismatches_total{source}
source_available{source} skipped_files{source,reason} watcher_degraded{source} state_free_bytes
credentials_expiry_timestamp_seconds config_last_reload_successful config_last_reload_success_timestamp_seconds
build_info{version,revision,goversion} conflicts_total{source} destination_state{source,state} unresolved_intents{source}
retries_total{source,class} parked_files{source,class} blocked_since_timestamp_seconds{source,class}
wrong_key_objects{source} clock_offset_seconds clock_corrections_total{result} remote_repaired_files_total{source} short_lived_files_total{source}
unsigned_digests{source} oldest_unsigned_digest_timestamp_seconds{source} chain_abandoned{source}
rereads_total{source,result} log_lines_lost_total source_hung_since_timestamp_seconds{source}
failing_files{source} stalled_requests{source} state_writable deletes_withheld{source} setting_seconds{setting} max_delay_seconds{source} max_unpublished_records upload_memory_limit_bytes
`

// seriesOf is what a /metrics page has of one name: for each label its values.
type seriesOf map[string]map[string]map[string]bool

var (
	sampleLine  = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? `)
	labelPair   = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)
	familyParts = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// readPage reads a page in the text format.
func readPage(page string) seriesOf {
	all := seriesOf{}
	for line := range strings.Lines(page) {
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if all[m[1]] == nil {
			all[m[1]] = map[string]map[string]bool{}
		}
		for _, l := range labelPair.FindAllStringSubmatch(m[2], -1) {
			if all[m[1]][l[1]] == nil {
				all[m[1]][l[1]] = map[string]bool{}
			}
			all[m[1]][l[1]][l[2]] = true
		}
	}
	return all
}

func (s seriesOf) labels(name string) []string {
	var labels []string
	for l := range s[name] {
		if l != "le" {
			labels = append(labels, l)
		}
	}
	slices.Sort(labels)
	return labels
}

func TestEveryMetricThatIsPromisedIsOnThePageAndDocumented(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	_, text := d.get(t, "/metrics")
	page := readPage(text)
	operations, err := os.ReadFile(filepath.Join("..", "..", "docs", "METRICS.md"))
	if err != nil {
		t.Fatal(err)
	}
	promised := map[string]bool{}
	for p := range strings.FieldsSeq(metricsPromised) {
		name, labels, _ := strings.Cut(strings.TrimSuffix(p, "}"), "{")
		promised[name] = true
		sample := "s3syncd_" + name
		if page[sample] == nil {
			sample += "_count" // A histogram.
		}
		var want []string
		if labels != "" {
			want = strings.Split(labels, ",")
		}
		slices.Sort(want)
		if page[sample] == nil {
			t.Errorf("/metrics lacks s3syncd_%s", p)
		} else if got := page.labels(sample); !slices.Equal(got, want) {
			t.Errorf("s3syncd_%s has the labels %q, want %q", name, got, want)
		}
		if !strings.Contains(string(operations), "`"+p+"`") {
			t.Errorf("docs/METRICS.md does not name `%s`", p)
		}
	}
	for name := range page {
		short, own := strings.CutPrefix(name, "s3syncd_")
		if own && !promised[short] && !promised[familyParts.ReplaceAllString(short, "")] {
			t.Errorf("%s is on the page, and nowhere promised", name)
		}
	}
	for _, name := range []string{"go_goroutines", "process_start_time_seconds", "process_resident_memory_bytes"} {
		if page[name] == nil {
			t.Errorf("/metrics lacks %s", name)
		}
	}
	wantQueriesOf(t, page, ruleQueries(t))
	wantQueriesOf(t, page, dashboardQueries(t))
}

var (
	selector  = regexp.MustCompile(`\b((?:s3syncd|go|process)_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	condition = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	grouping  = regexp.MustCompile(`(?:\bby|\bon) \(([^)]*)\)`)
)

// wantQueriesOf checks that each query asks for metrics that are on the page,
// by labels that they have and values that these take.
func wantQueriesOf(t *testing.T, page seriesOf, queries []string) {
	t.Helper()
	added := []string{"job", "instance"} // by Prometheus
	for _, q := range queries {
		known := slices.Concat(added, []string{"source"})
		for _, m := range selector.FindAllStringSubmatch(q, -1) {
			labels, ok := page[m[1]]
			if !ok {
				t.Errorf("%s is not on the page: %s", m[1], q)
				continue
			}
			for l := range labels {
				known = append(known, l)
			}
			for _, c := range condition.FindAllStringSubmatch(m[2], -1) {
				if slices.Contains(added, c[1]) || strings.HasPrefix(c[3], "$") {
					continue
				}
				for v := range strings.SplitSeq(c[3], "|") {
					if !labels[c[1]][v] {
						t.Errorf("%s has no series with %s=%q: %s", m[1], c[1], v, q)
					}
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(q, -1) {
			for l := range strings.SplitSeq(g[1], ",") {
				if !slices.Contains(known, strings.TrimSpace(l)) {
					t.Errorf("nothing in the query has the label %s: %s", l, q)
				}
			}
		}
	}
}

// ruleQueries are the expressions of the alerts.
func ruleQueries(t *testing.T) []string {
	t.Helper()
	var queries []string
	for _, r := range alertRules(t) {
		queries = append(queries, r.Expr)
	}
	return queries
}

// alertRule is one alert as the rules file has it.
type alertRule struct {
	Alert, Expr, For string
	Labels           map[string]string
	Annotations      map[string]string
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "prometheus", "s3syncd.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []alertRule }
	}
	if err := goyaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var rules []alertRule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) < 30 {
		t.Fatalf("%d alerts, want at least 30", len(rules))
	}
	return rules
}

// dashboardQueries are all that the dashboard asks, with its annotations.
func dashboardQueries(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "grafana", "s3syncd.json"))
	if err != nil {
		t.Fatal(err)
	}
	type query struct {
		Expr string `json:"expr"`
	}
	var d struct {
		Annotations struct {
			List []query `json:"list"`
		} `json:"annotations"`
		Panels []struct {
			Targets []query `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	var queries []string
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			queries = append(queries, a.Expr)
		}
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			queries = append(queries, q.Expr)
		}
	}
	if len(queries) < 40 {
		t.Fatalf("%d queries, want at least 40", len(queries))
	}
	return queries
}

func TestASourceThatLeavesTheConfigurationLeavesTheMetrics(t *testing.T) {
	s := newSite(t, "", "")
	old := filepath.Join(filepath.Dir(s.dir), "old")
	write(t, filepath.Join(old, "f"), "content")
	one := fmt.Sprintf("- {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %s}", s.dir, s.bucket.bucket, s.key)
	two := one + fmt.Sprintf("\n- {name: old, path: %s, bucket: %s, prefix: backups/old, kms_key_id: %s}", old, s.bucket.bucket, s.key)
	write(t, s.file, yamlFile(s, two))
	d := s.daemon(t)
	has := func(what string) bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, what)
	}
	eventually(t, "the upload", func() bool { return has(`s3syncd_files_total{source="old",status="uploaded"} 1`) })
	reload := func(sources, wanted string) {
		t.Helper()
		write(t, s.file, yamlFile(s, sources))
		n := strings.Count(d.stderr.String(), `"msg":"ready"`)
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new pipeline", func() bool { return strings.Count(d.stderr.String(), `"msg":"ready"`) > n && has(wanted) })
	}
	reload(one, `s3syncd_destination_state{source="app",state="ok"} 1`)
	if _, page := d.get(t, "/metrics"); strings.Contains(page, `source="old"`) {
		t.Errorf("a source that is not configured any more has series:\n%s", tail(page, 2000))
	}
	reload(two, `s3syncd_indexed_files{source="old"} 1`)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func yamlFile(s *site, sources string) string { return yaml(s.proxy.URL, s.state, sources, "") }

func TestAFileThatDiesRightAfterItsUploadIsCounted(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	begin := time.Now()
	write(t, s.path("short"), "content")
	eventually(t, "the upload", func() bool { return s.inBucket(t, "short", "content") })
	if err := os.Remove(s.path("short")); err != nil {
		t.Fatal(err)
	}
	var page string
	eventually(t, "the removal", func() bool {
		_, page = d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_files_total{source="app",status="deleted"} 1`)
	})
	if time.Since(begin) < 50*time.Second && !strings.Contains(page, `s3syncd_short_lived_files_total{source="app"} 1`) {
		t.Errorf("a file that lived for less than a minute is not counted")
	}
	_, out, _ := command(t, s.env, "status", "--json", "-c", s.file)
	var status struct {
		Sources []struct {
			Busy []struct {
				Events int `json:"events"`
			} `json:"busy_directories"`
		} `json:"sources"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Sources) != 1 || len(status.Sources[0].Busy) != 1 || status.Sources[0].Busy[0].Events < 2 {
		t.Errorf("the status names no directory with events (%v):\n%s", err, tail(out, 2000))
	}
}
