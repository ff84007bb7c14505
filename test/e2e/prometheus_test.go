package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// prometheusServer is a real Prometheus with the shipped rules, in which every
// time is seconds instead of minutes and hours.
type prometheusServer struct {
	*process
	url, targets string
}

var (
	prometheusAddress = regexp.MustCompile(`msg="?Listening on"? address=(127\.0\.0\.1:[0-9]+)`)
	ruleFor           = regexp.MustCompile(`(?m)^( +for: ).*$`)
	ruleRange         = regexp.MustCompile(`\[[0-9]+[mhd]\]`)
)

// hurried are the thresholds of the rules, and what they are in this test.
var hurried = strings.NewReplacer(
	"+ 900", "+ 5", "+ 3600)", "+ 5)", "+ 6 * 3600", "+ 20", "> 120", "> 1",
)

// startPrometheus starts Prometheus for the daemons, or skips the test.
func startPrometheus(t *testing.T, daemons ...*process) *prometheusServer {
	t.Helper()
	if !thorough {
		t.Skip("a real Prometheus runs in `make e2e`")
	}
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("no prometheus here (Debian: apt-get install prometheus)")
	}
	dir := t.TempDir()
	rules, err := os.ReadFile(filepath.Join("..", "..", "deploy", "prometheus", "s3syncd.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	text := ruleRange.ReplaceAllString(ruleFor.ReplaceAllString(hurried.Replace(string(rules)), "${1}2s"), "[15s]")
	write(t, filepath.Join(dir, "s3syncd.rules.yml"), text)
	write(t, filepath.Join(dir, "prometheus.yml"), fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [s3syncd.rules.yml]
scrape_configs:
  - job_name: s3syncd
    file_sd_configs: [{files: [%q], refresh_interval: 1s}]
`, filepath.Join(dir, "targets.json")))
	p := &prometheusServer{targets: filepath.Join(dir, "targets.json")}
	p.scrape(t, daemons...)
	p.process = spawnProgram(t, program, nil, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0", "--log.level=info")
	eventually(t, "Prometheus", func() bool {
		m := prometheusAddress.FindStringSubmatch(p.stderr.String())
		if m != nil {
			p.url = "http://" + m[1]
		}
		return m != nil && strings.Contains(p.stderr.String(), "Server is ready to receive web requests")
	})
	return p
}

// scrape makes these daemons the targets.
func (p *prometheusServer) scrape(t *testing.T, daemons ...*process) {
	t.Helper()
	var addresses []string
	for _, d := range daemons {
		addresses = append(addresses, d.address(t))
	}
	b, err := json.Marshal([]map[string]any{{"targets": addresses}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.targets+".new", string(b))
	if err := os.Rename(p.targets+".new", p.targets); err != nil {
		t.Fatal(err)
	}
}

// address is where the daemon is scraped: Prometheus's label instance.
func (p *process) address(t *testing.T) string {
	t.Helper()
	m := adminAddress.FindStringSubmatch(p.stderr.String())
	if m == nil {
		t.Fatalf("no admin listener in the log:\n%s", p.stderr)
	}
	return m[1]
}

// api asks for data below /api/v1.
func (p *prometheusServer) api(t *testing.T, path string, query url.Values, data any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Status string          `json:"status"`
		Data   json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("status %d: %s", resp.StatusCode, tail(string(body), 500))
	}
	return json.Unmarshal(answer.Data, data)
}

// firing returns the alerts of one daemon that fire, and whether it is scraped.
func (p *prometheusServer) firing(t *testing.T, instance string) []string {
	t.Helper()
	var data struct {
		Alerts []struct {
			State       string
			Labels      map[string]string
			Annotations map[string]string
		}
	}
	if err := p.api(t, "alerts", nil, &data); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, a := range data.Alerts {
		if a.State != "firing" || a.Labels["instance"] != instance {
			continue
		}
		for k, text := range a.Annotations {
			if strings.Contains(text, "<no value>") || strings.Contains(text, "{{") {
				t.Errorf("%s of %s is not filled in: %s", k, a.Labels["alertname"], text)
			}
		}
		names = append(names, a.Labels["alertname"])
	}
	return names
}

// fires waits until an alert of the daemon fires.
func (p *prometheusServer) fires(t *testing.T, d *process, alert string) {
	t.Helper()
	eventually(t, alert+" to fire", func() bool { return slices.Contains(p.firing(t, d.address(t)), alert) })
}

// quiet waits until nothing fires for the daemon but what depends on the
// machine that the test runs on.
func (p *prometheusServer) quiet(t *testing.T, d *process) {
	t.Helper()
	var last []string
	defer func() {
		if t.Failed() {
			t.Logf("these alerts fired last: %q", last)
		}
	}()
	eventually(t, "no alert to fire", func() bool {
		last = slices.DeleteFunc(p.firing(t, d.address(t)), func(a string) bool {
			return strings.HasPrefix(a, "S3syncdStateDisk") || a == "S3syncdJournalGrows" || a == "S3syncdMemory"
		})
		return len(last) == 0 && p.count(t, fmt.Sprintf(`up{instance=%q} == 1`, d.address(t))) == 1
	})
}

// count returns how many series a query has.
func (p *prometheusServer) count(t *testing.T, query string) int {
	t.Helper()
	var data struct{ Result []json.RawMessage }
	if err := p.api(t, "query", url.Values{"query": {query}}, &data); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return len(data.Result)
}

// wantDashboard evaluates every query of the dashboard. Those that contain one
// of mayBeEmpty need not have data.
func (p *prometheusServer) wantDashboard(t *testing.T, mayBeEmpty ...string) {
	t.Helper()
	variables := strings.NewReplacer("$instance", ".*", "$source", ".*", "$__rate_interval", "20s")
	for _, q := range dashboardQueries(t) {
		q = variables.Replace(q)
		if slices.ContainsFunc(mayBeEmpty, func(s string) bool { return strings.Contains(q, s) }) {
			p.count(t, q)
			continue
		}
		eventually(t, "data of "+q, func() bool { return p.count(t, q) > 0 })
	}
}

// monitored is a site whose intervals are as short as they may be.
func monitored(t *testing.T, s *site, endpoint string) *process {
	t.Helper()
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	fast := strings.NewReplacer(s.proxy.URL, endpoint, "settle: 200ms, rescan_interval: 0", "settle: 200ms, max_delay: 1s, rescan_interval: 2s")
	write(t, s.file, fast.Replace(string(b))+"manifest: {flush_interval: 1s, digest_interval: 1s}\n")
	return s.daemon(t)
}

func TestARealPrometheusSeesFaultsComeAndGo(t *testing.T) {
	if !thorough {
		t.Skip("a real Prometheus runs in `make e2e`")
	}
	s := newSite(t, "", "")
	net := s3test.NewNetwork(t, s.server.URL)
	d := monitored(t, s, net.URL)
	p := startPrometheus(t, d)
	write(t, s.path("f"), "content")
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	p.quiet(t, d)
	p.wantDashboard(t, "blocked_since", "failures_total", "retries_total", "credentials_expiry", "ALERTS{", "parked_files", "changes(process_start", "== 0)")

	net.Down()
	write(t, s.path("waits"), "content")
	for _, alert := range []string{"S3syncdNoAnswer", "S3syncdBacklogOld", "S3syncdBacklogCritical", "S3syncdManifestNotPublished"} {
		p.fires(t, d, alert)
	}
	p.wantDashboard(t, "failures_total", "retries_total", "credentials_expiry", "parked_files", "changes(process_start", "== 0)", "rescan_duration", "ALERTS{")
	eventually(t, "alerts on the dashboard", func() bool {
		return p.count(t, `ALERTS{alertname=~"S3syncd.*",alertstate="firing",severity=~"critical|warning",instance=~".*|"}`) >= 4
	})
	net.Up()
	eventually(t, "the file that waited", func() bool { return s.inBucket(t, "waits", "content") })
	p.quiet(t, d)

	if err := os.Rename(s.dir, s.dir+".away"); err != nil {
		t.Fatal(err)
	}
	p.fires(t, d, "S3syncdSourceGone")
	if err := os.Rename(s.dir+".away", s.dir); err != nil {
		t.Fatal(err)
	}
	p.quiet(t, d)

	good, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	hangup := func(content string) {
		t.Helper()
		write(t, s.file, content)
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangup(string(good) + "no_such_key: 1\n")
	p.fires(t, d, "S3syncdConfigReloadFailed")
	hangup(string(good))
	p.quiet(t, d)

	dead := d.address(t)
	d.kill(t)
	eventually(t, "S3syncdDown to fire", func() bool { return slices.Contains(p.firing(t, dead), "S3syncdDown") })
	d = s.daemon(t)
	p.scrape(t, d)
	p.quiet(t, d)
	eventually(t, "the dead one to be forgotten", func() bool { return len(p.firing(t, dead)) == 0 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestARealPrometheusSeesTheKeyRefused(t *testing.T) {
	if !thorough {
		t.Skip("a real Prometheus runs in `make e2e`")
	}
	const bucket = "fake"
	f := s3test.NewFake(t, bucket)
	base := t.TempDir()
	s := &site{
		dir: filepath.Join(base, "data"), state: filepath.Join(base, "state"), file: filepath.Join(base, "s3syncd.yaml"),
		env: f.Credentials().Environ(), proxy: s3test.NewProxy(t, f.URL), key: s3test.FakeKeyARN,
		uid: os.Getuid(), bucket: bucketView{client: f.Client(), bucket: bucket, prefix: "backups/app"},
	}
	write(t, s.path("f"), "content")
	s.configure(t, "", "")
	d := monitored(t, s, s.proxy.URL)
	p := startPrometheus(t, d)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	p.quiet(t, d)

	f.Behave(func(b *s3test.Behavior) { b.KMSError = "KMS.DisabledException" })
	for i := range 50 { // One file, a moment after the canary has passed, is taken for the file's fault.
		write(t, s.path(fmt.Sprintf("many/%d", i)), "content")
	}
	write(t, s.path("refused"), "content")
	p.fires(t, d, "S3syncdKeyOrBucketRefused")
	if got := p.firing(t, d.address(t)); slices.Contains(got, "S3syncdDestinationParked") || slices.Contains(got, "S3syncdFilesParked") {
		t.Errorf("one cause has two names: %q", got)
	}
	f.Behave(func(b *s3test.Behavior) { b.KMSError = "" })
	eventually(t, "the file that was refused", func() bool { return s.inBucket(t, "refused", "content") })
	p.quiet(t, d)

	f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = true })
	write(t, s.path("unencrypted"), "content")
	p.fires(t, d, "S3syncdEncryptionMismatch")
	f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = false })
	eventually(t, "the file that was held back", func() bool { return s.inBucket(t, "unencrypted", "content") })
	p.quiet(t, d)

	f.Behave(func(b *s3test.Behavior) { b.Clock = 5 * 60e9 })
	write(t, s.path("clock"), "content")
	p.fires(t, d, "S3syncdClockOffset")
	f.Behave(func(b *s3test.Behavior) { b.Clock = 0 })
	write(t, s.path("clock"), "changed")
	p.quiet(t, d)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
