package systemd_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// site is a machine whose service archives /srv/app.
type site struct {
	*machine
	server *s3test.Server
	client *s3.Client
	bucket string
	files  int // that were written
}

const configuration = "/etc/s3syncd/s3syncd.yaml"

// pack builds the package of a version and returns where it is.
func pack(t *testing.T, version string) string {
	t.Helper()
	dist := filepath.Join(t.TempDir(), "dist")
	arch := strings.TrimSpace(output(t, "go", "env", "GOHOSTARCH"))
	output(t, "make", "-C", repository, "--no-print-directory", "packages", "DIST="+dist, "VERSION="+version, "ARCHES="+arch, "FORMATS=deb")
	files, err := filepath.Glob(filepath.Join(dist, "*.deb"))
	if err != nil || len(files) != 1 {
		t.Fatalf("make packages made %v, %v; want one package", files, err)
	}
	return files[0]
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, tail(string(out), 2000))
	}
	return string(out)
}

// install gives the package at path to dpkg.
func (s *site) install(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "var/s3syncd.deb", string(b), 0o644)
	return s.must(t, "dpkg", "-i", "/var/s3syncd.deb")
}

// configure writes the configuration; extra is more YAML at its end.
func (s *site) configure(t *testing.T, extra string) {
	t.Helper()
	s.write(t, configuration, fmt.Sprintf(`instance: machine-01
s3: {region: us-east-1, endpoint_url: %q}
sources:
  - {name: app, path: /srv/app, bucket: %s, prefix: p, kms_key_id: %s}
watch: {settle: 200ms, rescan_interval: 0, remote_check_interval: 0}
manifest: {flush_interval: 1s}
admin: {listen: ""}
%s
`, s.server.URL, s.bucket, s3test.KeyName, extra), 0o640)
}

// archives writes a file that only root may read and waits for its object.
func (s *site) archives(t *testing.T) {
	t.Helper()
	s.files++
	name := fmt.Sprintf("f%d", s.files)
	s.write(t, "srv/app/"+name, name, 0o600)
	eventually(t, name+" in the bucket", func() bool {
		head, err := s.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.bucket, Key: aws.String("p/" + name)})
		return err == nil && strings.HasSuffix(aws.ToString(head.SSEKMSKeyId), s3test.KeyName)
	})
}

// digest is what is looked at in a digest.
type digest struct {
	Chain    string `json:"chain"`
	Sequence int    `json:"sequence"`
	Version  string `json:"s3syncd_version"`
	Events   []struct {
		Event string `json:"event"`
	} `json:"events"`
}

// digests returns those of the bucket in their order.
func (s *site) digests(t *testing.T) []digest {
	t.Helper()
	var list []digest
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String("p/_manifests/digest_")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			got, err := s.client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: o.Key})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(got.Body)
			_ = got.Body.Close()
			var d digest
			if err == nil {
				err = json.Unmarshal(b, &d)
			}
			if err != nil {
				t.Fatalf("%s: %v", *o.Key, err)
			}
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b digest) int { return a.Sequence - b.Sequence })
	return list
}

// oneChain checks that no digest began a chain but the first.
func (s *site) oneChain(t *testing.T) []digest {
	t.Helper()
	list := s.digests(t)
	for i, d := range list {
		if d.Chain != list[0].Chain || d.Sequence != list[0].Sequence+i {
			t.Fatalf("digest %d is number %d of chain %s, the first is number %d of %s", i, d.Sequence, d.Chain, list[0].Sequence, list[0].Chain)
		}
	}
	if len(list) == 0 {
		t.Fatalf("the trail has no digest")
	}
	return list
}

func TestThePackagedServiceOnDebian(t *testing.T) {
	needs(t)
	old, next := pack(t, "v0.0.1"), pack(t, "v0.0.2")
	for suite, kind := range map[string]string{"bookworm": "notify", "trixie": "notify-reload"} {
		t.Run(suite, func(t *testing.T) {
			srv := s3test.MinIO(t)
			s := &site{server: srv, client: srv.Client(), bucket: srv.Bucket(t)}
			s.machine = boot(t, root(t, suite))
			t.Logf("%s", strings.SplitN(s.must(t, "systemctl", "--version"), "\n", 2)[0])
			for _, step := range []struct {
				name string
				do   func(*testing.T, *site)
			}{
				{"installing neither enables nor starts it", func(t *testing.T, s *site) { t.Helper(); installs(t, s, old) }},
				{"start waits for READY", func(t *testing.T, s *site) { t.Helper(); starts(t, s, kind) }},
				{"an unprivileged user with one capability", isConfined},
				{"reload rescans and keeps the process", reloads},
				{"reload of a bad file fails and changes nothing", refusesABadFile},
				{"after kill -9 it is started again", restarts},
				{"the watchdog ends a stuck process", watchdogBites},
				{"exit 2 is not started again", staysDown},
				{"an upgrade restarts it and the chain goes on", func(t *testing.T, s *site) { t.Helper(); upgrades(t, s, next) }},
				{"a dynamic user does as well", runsAsADynamicUser},
				{"systemd knows every line of the documented drop-ins", knowsTheDropIns},
				{"removal keeps state and configuration", removes},
				{"purge deletes them", purges},
			} {
				t.Helper()
				t.Helper()
				t.Helper()
				if !t.Run(step.name, func(t *testing.T) { step.do(t, s) }) {
					t.FailNow() // The rest builds on it.
				}
			}
		})
	}
}

func installs(t *testing.T, s *site, pkg string) {
	t.Helper()
	said := s.install(t, pkg)
	if !strings.Contains(said, "systemctl enable --now s3syncd") {
		t.Errorf("dpkg does not say what to do next:\n%s", said)
	}
	if out, _ := s.try("systemctl", "is-enabled", "s3syncd"); strings.TrimSpace(out) != "disabled" {
		t.Errorf("is-enabled = %q, want disabled", out)
	}
	if got := s.show(t, "ActiveState"); got != "inactive" {
		t.Errorf("ActiveState = %s, want inactive", got)
	}
	for path, want := range map[string]string{
		configuration: "640 root:s3syncd", "/etc/s3syncd": "750 root:s3syncd", "/usr/bin/s3syncd": "755 root:root",
		"/usr/share/man/man1/s3syncd-run.1.gz": "644 root:root", "/usr/share/doc/s3syncd/examples/s3syncd.yaml": "644 root:root",
		"/usr/share/s3syncd/s3syncd.example.yaml": "644 root:root",
		"/usr/share/doc/s3syncd/OPERATIONS.md":    "644 root:root", "/usr/share/s3syncd/prometheus/s3syncd.rules.yml": "644 root:root",
	} {
		if got := s.must(t, "stat", "-c", "%a %U:%G", path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	if got := s.must(t, "s3syncd", "version"); !strings.Contains(got, "v0.0.1") {
		t.Errorf("version = %q, want v0.0.1", got)
	}
	s.must(t, "s3syncd", "check", "-c", configuration)
}

func starts(t *testing.T, s *site, kind string) {
	t.Helper()
	s.configure(t, "")
	s.must(t, "install", "-d", "-m", "700", "/srv/app")
	env := s.server.Root.Environ()
	value := func(name string) string {
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
	s.write(t, "etc/s3syncd/aws-credentials", fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
		value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY")), 0o600)
	s.dropIn(t, "site", "[Service]\nLoadCredential=aws:/etc/s3syncd/aws-credentials\n"+
		"Environment=AWS_SHARED_CREDENTIALS_FILE=%d/aws AWS_EC2_METADATA_DISABLED=true\n")
	s.must(t, "systemctl", "enable", "--now", "s3syncd")
	if got := s.show(t, "Type"); got != kind {
		t.Errorf("Type = %s, want %s", got, kind)
	}
	if got := s.show(t, "ActiveState"); got != "active" {
		t.Errorf("ActiveState = %s, want active", got)
	}
	s.archives(t)
	eventually(t, "a status line", func() bool { return strings.Contains(s.show(t, "StatusText"), "app: ") })
	eventually(t, "status says that it is current", func() bool {
		_, code := s.try("s3syncd", "status")
		return code == 0
	})
}

func isConfined(t *testing.T, s *site) {
	t.Helper()
	status := s.must(t, "cat", "/proc/"+s.show(t, "MainPID")+"/status")
	for _, want := range []string{"CapEff:\t0000000000000004", "CapBnd:\t0000000000000004", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("the process does not have %q:\n%s", want, status)
		}
	}
	uid := s.must(t, "id", "-u", "s3syncd")
	if !strings.Contains(status, "Uid:\t"+uid+"\t") || uid == "0" {
		t.Errorf("the process is not user %s:\n%s", uid, status)
	}
	if got := s.must(t, "stat", "-c", "%a %U", "/var/lib/s3syncd"); got != "700 s3syncd" {
		t.Errorf("the state directory is %s, want 700 s3syncd", got)
	}
	out := s.must(t, "systemd-analyze", "security", "--no-pager", "--threshold=20", "s3syncd.service")
	lines := strings.Split(out, "\n")
	t.Log(strings.TrimSpace(lines[len(lines)-1]))
}

// hangups counts the rescans that were done for a hang-up.
func (s *site) hangups() int { return strings.Count(s.journal(), `"trigger":"hangup"`) }

func reloads(t *testing.T, s *site) {
	t.Helper()
	pid, before := s.show(t, "MainPID"), s.hangups()
	s.must(t, "systemctl", "reload", "s3syncd")
	eventually(t, "a rescan", func() bool { return s.hangups() > before })
	if got := s.show(t, "MainPID"); got != pid {
		t.Errorf("MainPID = %s, want %s", got, pid)
	}
	s.configure(t, "log: {level: debug}")
	s.must(t, "systemctl", "reload", "s3syncd")
	eventually(t, "the new configuration", func() bool { return strings.Contains(s.journal(), `"keys":["log.level"]`) })
	s.archives(t)
	if got := s.show(t, "MainPID"); got != pid {
		t.Errorf("MainPID = %s, want %s", got, pid)
	}
}

func refusesABadFile(t *testing.T, s *site) {
	t.Helper()
	pid := s.show(t, "MainPID")
	s.configure(t, "no_such_key: 1")
	if out, code := s.try("systemctl", "reload", "s3syncd"); code == 0 {
		t.Errorf("systemctl reload = 0, want a failure\n%s", out)
	}
	if got := s.show(t, "MainPID") + " " + s.show(t, "ActiveState"); got != pid+" active" {
		t.Errorf("the service is %s, want %s active", got, pid)
	}
	if !strings.Contains(s.journal(), "no_such_key") {
		t.Errorf("the journal does not name the key:\n%s", tail(s.journal(), 1000))
	}
	eventually(t, "the daemon's own refusal", func() bool { return strings.Contains(s.journal(), "the new configuration is refused") })
	s.archives(t)
	s.configure(t, "")
	s.must(t, "systemctl", "reload", "s3syncd")
}

// replaced waits for another main process that is ready.
func (s *site) replaced(t *testing.T, pid string) {
	t.Helper()
	eventually(t, "another process", func() bool {
		now := s.show(t, "MainPID")
		return now != pid && now != "0" && s.show(t, "ActiveState") == "active"
	})
	s.archives(t)
}

func restarts(t *testing.T, s *site) {
	t.Helper()
	pid := s.show(t, "MainPID")
	s.must(t, "systemctl", "kill", "-s", "KILL", "--kill-whom=main", "s3syncd")
	s.replaced(t, pid)
	if got := s.show(t, "NRestarts"); got != "1" {
		t.Errorf("NRestarts = %s, want 1", got)
	}
}

func watchdogBites(t *testing.T, s *site) {
	t.Helper()
	s.dropIn(t, "watchdog", "[Service]\nWatchdogSec=10s\n")
	s.must(t, "systemctl", "restart", "s3syncd")
	pid := s.show(t, "MainPID")
	s.must(t, "kill", "-STOP", pid)
	s.replaced(t, pid)
	for _, want := range []string{"Watchdog timeout", "SIGABRT", "main.main()"} {
		if !strings.Contains(s.journal(), want) {
			t.Errorf("the journal does not have %q", want)
		}
	}
	s.dropIn(t, "watchdog", "")
	s.must(t, "systemctl", "restart", "s3syncd")
}

func staysDown(t *testing.T, s *site) {
	t.Helper()
	s.must(t, "systemctl", "stop", "s3syncd")
	s.configure(t, "no_such_key: 1")
	if _, code := s.try("systemctl", "start", "s3syncd"); code == 0 {
		t.Errorf("systemctl start = 0 with a bad configuration")
	}
	for property, want := range map[string]string{"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "2", "NRestarts": "0"} {
		if got := s.show(t, property); got != want {
			t.Errorf("%s = %s, want %s", property, got, want)
		}
	}
	s.configure(t, "")
	s.must(t, "systemctl", "start", "s3syncd")
	s.archives(t)
}

func upgrades(t *testing.T, s *site, pkg string) {
	t.Helper()
	pid := s.show(t, "MainPID")
	s.install(t, pkg)
	if got := s.show(t, "NeedDaemonReload"); got != "no" {
		t.Errorf("NeedDaemonReload = %s after the upgrade", got)
	}
	s.replaced(t, pid)
	if got := s.must(t, "s3syncd", "version"); !strings.Contains(got, "v0.0.2") {
		t.Errorf("version = %q, want v0.0.2", got)
	}
	if got := s.must(t, "grep", "-c", "machine-01", configuration); got != "1" {
		t.Errorf("the configuration was replaced")
	}
	s.must(t, "s3syncd", "flush")
	var versions, kinds []string
	for _, d := range s.oneChain(t) {
		versions = append(versions, d.Version)
		for _, e := range d.Events {
			kinds = append(kinds, e.Event)
		}
	}
	if !slices.Contains(versions, "v0.0.1") || versions[len(versions)-1] != "v0.0.2" {
		t.Errorf("the digests are of %q, want v0.0.1 and at the end v0.0.2", versions)
	}
	if n := len(kinds); n < 2 || kinds[n-1] != "start" || kinds[n-2] != "clean-stop" {
		t.Errorf("the trail's events are %q, want a clean stop and a start at the end", kinds)
	}
}

func runsAsADynamicUser(t *testing.T, s *site) {
	t.Helper()
	s.dropIn(t, "dynamic", "[Service]\nUser=s3syncd-dynamic\nGroup=\nDynamicUser=yes\n")
	s.must(t, "systemctl", "restart", "s3syncd")
	s.archives(t)
	status := s.must(t, "cat", "/proc/"+s.show(t, "MainPID")+"/status")
	if !strings.Contains(status, "CapEff:\t0000000000000004") || strings.Contains(status, "Uid:\t"+s.must(t, "id", "-u", "s3syncd")+"\t") {
		t.Errorf("the process is not a dynamic user with one capability:\n%s", status)
	}
	s.must(t, "systemctl", "reload", "s3syncd")
	s.must(t, "s3syncd", "flush")
	s.dropIn(t, "dynamic", "")
	s.must(t, "systemctl", "restart", "s3syncd")
	s.archives(t)
	s.must(t, "s3syncd", "flush")
	s.oneChain(t)
}

func knowsTheDropIns(t *testing.T, s *site) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "docs", "INSTALL.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)\n```ini\n(.*?)\n```\n").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 5 {
		t.Fatalf("docs/INSTALL.md has %d drop-ins, want at least 5", len(blocks))
	}
	for i, b := range append(blocks, []string{"", "[Service]\nNoSuchKey=1\n"}) {
		name := fmt.Sprintf("document-%d", i)
		s.dropIn(t, name, b[1])
		complaint := s.must(t, "sh", "-c", "journalctl -o cat --no-pager | grep -F /"+name+".conf: || true")
		if i < len(blocks) && complaint != "" {
			t.Errorf("systemd about a drop-in of docs/INSTALL.md: %s\n%s", complaint, b[1])
		}
		if i == len(blocks) && complaint == "" {
			t.Errorf("systemd says nothing about a key that does not exist: is its journal read right?")
		}
		s.dropIn(t, name, "")
	}
}

func removes(t *testing.T, s *site) {
	t.Helper()
	s.must(t, "dpkg", "-r", "s3syncd")
	if out, code := s.try("systemctl", "is-active", "s3syncd"); code == 0 {
		t.Errorf("is-active = %q after the removal", out)
	}
	if _, code := s.try("test", "-e", "/etc/systemd/system/multi-user.target.wants/s3syncd.service"); code == 0 {
		t.Errorf("it is still enabled")
	}
	for _, path := range []string{configuration, "/var/lib/s3syncd/state.db"} {
		s.must(t, "test", "-s", path)
	}
	list := s.oneChain(t)
	if last := list[len(list)-1]; len(last.Events) == 0 || last.Events[len(last.Events)-1].Event != "clean-stop" {
		t.Errorf("the last digest says %+v, want a clean stop", last)
	}
}

func purges(t *testing.T, s *site) {
	t.Helper()
	s.must(t, "dpkg", "-P", "s3syncd")
	for _, path := range []string{configuration, "/var/lib/s3syncd", "/var/lib/private/s3syncd", "/usr/bin/s3syncd"} {
		if _, code := s.try("test", "-e", path); code == 0 {
			t.Errorf("%s is there after the purge", path)
		}
	}
	s.must(t, "test", "-e", "/etc/s3syncd/aws-credentials") // Not the package's.
}
