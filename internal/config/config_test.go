package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/s3syncd/s3syncd/internal/help"
)

// minimal is the least that is a configuration: three keys of one source.
const minimal = "instance: app-01\nsources:\n  - path: /no/such/app\n    bucket: my-bucket\n    kms_key_id: alias/archive\n"

func mustParse(t *testing.T, data string, env ...string) *Config {
	t.Helper()
	c, err := Parse("c.yaml", []byte(data), env)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return c
}

func parseFaults(t *testing.T, data string, env ...string) Errors {
	t.Helper()
	_, err := Parse("c.yaml", []byte(data), env)
	faults, ok := errors.AsType[Errors](err)
	if !ok {
		t.Fatalf("Parse(%q) = %v, want Errors", data, err)
	}
	return faults
}

// only fails unless want is the beginning of the only fault.
func only(t *testing.T, faults Errors, want string) {
	t.Helper()
	if len(faults) != 1 || !strings.HasPrefix(faults[0].String(), want) {
		t.Errorf("faults:\n%v\nwant one that begins %q", faults, want)
	}
}

func TestParseFillsInEveryDefault(t *testing.T) {
	got := mustParse(t, minimal)
	want := &Config{
		Instance: "app-01",
		StateDir: "/var/lib/s3syncd",
		Sources: []Source{{
			Name: "app", Path: "/no/such/app", Bucket: "my-bucket", KMSKeyID: "alias/archive",
			SSE: "aws:kms", BucketKey: true, Symlinks: "skip", Hardlinks: "same-owner", Deletes: "keep",
			MaxDeletes: 100, CrossMounts: true, Identity: "inode", Settle: 2 * time.Second, MaxDelay: 15 * time.Minute,
		}},
		Watch: Watch{
			Settle: 2 * time.Second, MaxDelay: 15 * time.Minute, RescanInterval: time.Hour,
			PollInterval: time.Minute, RemoteCheckInterval: 24 * time.Hour, Reread: 30 * day,
		},
		Upload: Upload{Workers: 16, PartSize: 16 << 20, SinglePutMax: 64 << 20, MemoryLimit: 128 << 20},
		Manifest: Manifest{
			FlushInterval: 5 * time.Minute, DigestInterval: time.Hour, MaxUnpublished: 1000000, MaxRecords: 50000,
			Layout: "flat", ListSkipped: "sync", LocalDir: "/var/lib/s3syncd/manifests",
			KeepLocal: 720 * time.Hour, KeepLocalSize: 1 << 30, Sign: "none",
		},
		Admin: Admin{Listen: "127.0.0.1:9810", Socket: "/var/lib/s3syncd/control.sock"},
		Log:   Log{Level: "info", Format: "json"},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Admin{}, Config{})); d != "" {
		t.Errorf("Parse(minimal), -want +got:\n%s", d)
	}
}

// full sets every key to something that is not its default.
const full = `
instance: host-7
state_dir: /srv/state/
s3:
  region: eu-central-1
  endpoint_url: http://127.0.0.1:9000
  allow_insecure_endpoint: true
  path_style: false
  expected_bucket_owner: 012345678901
  acl: bucket-owner-full-control
sources:
  - name: Ünïcode data
    path: /no/such//dir/
    bucket: my.bucket-2
    prefix: backups/{instance}/x/
    kms_key_id: arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/team/archive
    accept_kms_keys: &keys [1234abcd-12ab-34cd-56ef-1234567890ab, mrk-1234abcd12ab34cd56ef1234567890ab, arn:aws:kms:minio-key]
    takes_over: [0a1b2c3d]
    sse: aws:kms:dsse
    bucket_key: false
    encryption_context: {team: archive, empty: ""}
    storage_class: CUSTOM_CLASS
    tags: {team: archive}
    include: ["*.log"]
    exclude:
      - "*.tmp"
      - "#x"
    ignore_files: true
    symlinks: follow
    hardlinks: allow
    deletes: mirror
    max_deletes: 7
    cross_mounts: false
    identity: size-mtime
    settle: 10ms
    max_delay: 100ms
    region: us-west-2
    expected_bucket_owner: "111122223333"
    profile: archive
  - path: /no/such/other
    bucket: my.bucket-2
    prefix: backups/host-77
    kms_key_id: minio-key
    accept_kms_keys: *keys
watch: {settle: 1m30s, max_delay: 2h, rescan_interval: 0, poll_interval: 1d12h, remote_check_interval: 1s, reread: 1d}
upload: {workers: 256, part_size: 5MiB, single_put_max: 5GiB, memory_limit: 13631488, bandwidth_limit: 500KiB}
manifest:
  flush_interval: 1s
  digest_interval: 0
  max_unpublished: 100
  max_records: 10
  layout: hive
  list_skipped: all
  local_dir: /srv/copies
  keep_local: 0
  keep_local_size: 0
  sign: ed25519:/etc/s3syncd/key
  object_lock: {mode: COMPLIANCE, days: 3650}
admin: {listen: "0.0.0.0:0", page: true, web_config: /etc/s3syncd/web.yml, socket: /run/x.sock}
log: {level: debug, format: console}
`

func TestParseReadsEveryKey(t *testing.T) {
	got := mustParse(t, full)
	keys := []string{"1234abcd-12ab-34cd-56ef-1234567890ab", "mrk-1234abcd12ab34cd56ef1234567890ab", "arn:aws:kms:minio-key"}
	want := &Config{
		Instance: "host-7",
		StateDir: "/srv/state",
		S3:       S3{Region: "eu-central-1", EndpointURL: "http://127.0.0.1:9000", AllowInsecureEndpoint: true, ExpectedBucketOwner: "012345678901", ACL: "bucket-owner-full-control"},
		Sources: []Source{{
			Name: "Ünïcode data", Path: "/no/such/dir", Bucket: "my.bucket-2", Prefix: "backups/host-7/x",
			KMSKeyID: "arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/team/archive", AcceptKMSKeys: keys, TakesOver: []string{"0a1b2c3d"},
			SSE: "aws:kms:dsse", BucketKey: false, EncryptionContext: map[string]string{"team": "archive", "empty": ""}, StorageClass: "CUSTOM_CLASS", Tags: map[string]string{"team": "archive"}, Identity: "size-mtime",
			Include: []string{"*.log"}, Exclude: []string{"*.tmp", "#x"}, IgnoreFiles: true,
			Symlinks: "follow", Hardlinks: "allow", Deletes: "mirror", MaxDeletes: 7,
			Settle: 10 * time.Millisecond, MaxDelay: 100 * time.Millisecond,
			Region: "us-west-2", ExpectedBucketOwner: "111122223333", Profile: "archive",
		}, {
			Name: "other", Path: "/no/such/other", Bucket: "my.bucket-2", Prefix: "backups/host-77",
			KMSKeyID: "minio-key", AcceptKMSKeys: keys,
			SSE: "aws:kms", BucketKey: true, Symlinks: "skip", Hardlinks: "same-owner", Deletes: "keep",
			MaxDeletes: 100, CrossMounts: true, Identity: "inode", Settle: 90 * time.Second, MaxDelay: 2 * time.Hour,
			Region: "eu-central-1", ExpectedBucketOwner: "012345678901",
		}},
		Watch:  Watch{Settle: 90 * time.Second, MaxDelay: 2 * time.Hour, PollInterval: 36 * time.Hour, RemoteCheckInterval: time.Second, Reread: day},
		Upload: Upload{Workers: 256, PartSize: 5 << 20, SinglePutMax: 5 << 30, MemoryLimit: 13 << 20, BandwidthLimit: 500 << 10},
		Manifest: Manifest{
			FlushInterval: time.Second, MaxUnpublished: 100, MaxRecords: 10, Layout: "hive", ListSkipped: "all",
			LocalDir: "/srv/copies", Sign: "ed25519:/etc/s3syncd/key", ObjectLock: ObjectLock{Mode: "COMPLIANCE", Days: 3650},
		},
		Admin: Admin{Listen: "0.0.0.0:0", Page: true, WebConfig: "/etc/s3syncd/web.yml", Socket: "/run/x.sock"},
		Log:   Log{Level: "debug", Format: "console"},
		Warnings: []string{
			`c.yaml:26: sources[0].exclude: "#x" is a comment and matches nothing; for a name that begins with # write \#`,
		},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Admin{}, Config{})); d != "" {
		t.Errorf("Parse(full), -want +got:\n%s", d)
	}
}

// TestEveryKeyIsTested sees to it that full and the example name every option.
func TestEveryKeyIsTested(t *testing.T) {
	example, err := os.ReadFile("../../deploy/s3syncd.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range allKeys((&Config{}).options(), "") {
		for name, text := range map[string]string{"full": full, "the example": string(example)} {
			if !strings.Contains(text, lastKey(path)+":") {
				t.Errorf("%s does not set %s", name, path)
			}
		}
	}
}

// The defaults that the example shows in comments are those that hold without
// them, and none of them is pinned by the file as it is installed.
func TestExampleParsesAndDocumentsEachKey(t *testing.T) {
	data, err := os.ReadFile("../../deploy/s3syncd.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const source = "s3: {region: us-east-1}\nsources: [{name: app-data, path: /opt/app/data, bucket: my-company-data, " +
		"prefix: 'backups/{instance}/app-data', kms_key_id: arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab}]"
	full := help.Uncomment(string(data))
	for text, want := range map[string]string{string(data): source, full: "instance: app-01\n" + source} {
		if d := Diff(mustParse(t, want), mustParse(t, text)); d != nil {
			t.Errorf("the example differs from the defaults in %v", d)
		}
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		key, _, _ := strings.Cut(strings.TrimLeft(line, " -"), ":")
		if strings.HasPrefix(line, "#") || line == "" || slices.Contains([]string{"s3", "region", "sources", "name", "path", "bucket", "prefix", "kms_key_id"}, key) {
			continue
		}
		t.Errorf("the example pins a default: %s", line)
	}
	for i, line := range strings.Split(full, "\n") {
		_, value, found := strings.Cut(line, ": ")
		if found && !strings.HasPrefix(line, "#") && value != "" && !strings.Contains(line, " # ") {
			t.Errorf("line %d has no comment: %s", i+1, line)
		}
	}
}

func TestInstanceDefaultsToTheHostName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil || checkInstance(host) != "" {
		t.Fatalf("Hostname() = %q, %v", host, err)
	}
	c := mustParse(t, strings.Replace(minimal, "instance: app-01\n", "", 1)+"    prefix: a/{instance}/{instance}\n")
	if want := "a/" + host + "/" + host; c.Instance != host || c.Sources[0].Prefix != want {
		t.Errorf("Instance = %q, Prefix = %q, want %q and %q", c.Instance, c.Sources[0].Prefix, host, want)
	}
}

func TestPathStyleFollowsTheEndpoint(t *testing.T) {
	for _, tt := range []struct {
		s3   string
		want bool
	}{
		{"{}", false},
		{"{endpoint_url: 'https://minio.example.com'}", true},
		{"{endpoint_url: 'https://minio.example.com', path_style: false}", false},
		{"{path_style: true}", true},
	} {
		if got := mustParse(t, minimal+"s3: "+tt.s3).S3.PathStyle; got != tt.want {
			t.Errorf("path_style with s3: %s = %v, want %v", tt.s3, got, tt.want)
		}
	}
}

func TestBucketKeyIsOffWithDSSE(t *testing.T) {
	for _, more := range []string{"", "    bucket_key: true\n"} {
		if c := mustParse(t, minimal+"    sse: aws:kms:dsse\n"+more); c.Sources[0].BucketKey {
			t.Errorf("BucketKey with aws:kms:dsse and %q is on", more)
		}
	}
}

func TestSocketStandsInTheRuntimeDirectory(t *testing.T) {
	c := mustParse(t, minimal, "RUNTIME_DIRECTORY=/run/s3syncd:/run/second")
	if want := "/run/s3syncd/control.sock"; c.Admin.Socket != want {
		t.Errorf("Socket = %q, want %q", c.Admin.Socket, want)
	}
	if d := mustParse(t, minimal); c.SHA256() != d.SHA256() {
		t.Errorf("SHA256 depends on RUNTIME_DIRECTORY:\n%s\n%s", c.Canonical(), d.Canonical())
	}
}

func TestLoadWarnsOfAFileThatOthersMayWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o644: 0, 0o664: 1, 0o602: 1} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		c, err := Load(name, nil)
		if err != nil || len(c.Warnings) != want {
			t.Errorf("Load with mode %o: %v, warnings %q, want %d", mode, err, c.Warnings, want)
		}
	}
	_, err := Load(name+".not", nil)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of no file = %v, want ErrNotExist", err)
	}
}

func TestCanonicalParsesToItself(t *testing.T) {
	for _, data := range []string{minimal, full, "\uFEFF" + strings.ReplaceAll(minimal, "\n", "\r\n")} {
		c := mustParse(t, data)
		again := mustParse(t, string(c.Canonical()))
		c.Warnings, again.Warnings = nil, nil
		if d := Diff(c, again); d != nil || string(again.Canonical()) != string(c.Canonical()) || c.SHA256() != again.SHA256() {
			t.Errorf("Canonical of %s\nis read as %s\nDiff %v", c.Canonical(), again.Canonical(), d)
		}
		if d := cmp.Diff(normal(c), normal(again), cmpopts.IgnoreUnexported(Admin{}, Config{})); d != "" {
			t.Errorf("Parse(Canonical()), -want +got:\n%s", d)
		}
	}
}

// normal makes empty and absent collections the same.
func normal(c *Config) *Config {
	n := *c
	n.Sources = slices.Clone(c.Sources)
	for i := range n.Sources {
		for _, l := range n.Sources[i].options() {
			if l.list != nil && len(*l.list.p) == 0 {
				*l.list.p = nil
			}
			if l.dict != nil && len(*l.dict.p) == 0 {
				*l.dict.p = nil
			}
		}
	}
	return &n
}

func TestSourceSHA256ConcernsOneSource(t *testing.T) {
	a := mustParse(t, full)
	b := mustParse(t, strings.NewReplacer("/no/such/other", "/no/such/changed", "level: debug", "level: warn", "state_dir: /srv/state/", "state_dir: /srv/elsewhere").Replace(full))
	if a.SourceSHA256(0) != b.SourceSHA256(0) {
		t.Errorf("SourceSHA256(0) changed with another source:\n%s\n%s", a.SourceCanonical(0), b.SourceCanonical(0))
	}
	if a.SourceSHA256(1) == b.SourceSHA256(1) {
		t.Error("SourceSHA256(1) did not change with its path")
	}
	if a.SHA256() == b.SHA256() {
		t.Error("SHA256 did not change")
	}
	if strings.Contains(string(a.SourceCanonical(0)), "/no/such/other") {
		t.Errorf("SourceCanonical(0) names another source: %s", a.SourceCanonical(0))
	}
	c := mustParse(t, strings.Replace(full, "workers: 256", "workers: 3", 1))
	if a.SourceSHA256(0) == c.SourceSHA256(0) {
		t.Error("SourceSHA256(0) did not change with upload.workers")
	}
}

func TestDiffNamesWhatChanged(t *testing.T) {
	prev := mustParse(t, full)
	next := mustParse(t, strings.NewReplacer("workers: 256", "workers: 255", "days: 3650", "days: 1",
		"[\"*.log\"]", "[]", "path: /no/such/other", "path: /no/such/new", "settle: 1m30s", "settle: 1m").Replace(full))
	want := []string{"manifest.object_lock.days", "sources[new]", "sources[other]", "sources[Ünïcode data].include", "upload.workers", "watch.settle"}
	if got := Diff(prev, next); !slices.Equal(got, want) {
		t.Errorf("Diff = %q, want %q", got, want)
	}
	if got := Diff(prev, mustParse(t, full)); got != nil {
		t.Errorf("Diff of equals = %q, want none", got)
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, data, want string }{
		{"a settle above max_delay", minimal + "watch: {max_delay: 1s}", "c.yaml:6: watch.max_delay: 1s is shorter"},
		{"a key of another region", strings.Replace(minimal, "alias/archive", "arn:aws:kms:eu-west-1:123456789012:key/abc-123", 1) + "s3: {region: us-east-1}", "c.yaml:5: sources[0].kms_key_id: the key is in eu-west-1"},
		{"a page that nobody serves", minimal + "admin: {page: true, listen: ''}", "c.yaml:6: admin.page: admin.listen is off"},
		{"bucket keys with dsse", minimal + "    sse: aws:kms:dsse\n    bucket_key: true\n", "c.yaml:7: sources[0].bucket_key: aws:kms:dsse knows"},
		{"a limit below a manifest", minimal + "manifest: {max_unpublished: 10}", "c.yaml:6: manifest.max_unpublished: is below"},
		{"a state directory too deep for a socket", minimal + "state_dir: /" + strings.Repeat("x", 100), "c.yaml:1: admin.socket:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := mustParse(t, tt.data).Warnings
			if len(got) != 1 || !strings.HasPrefix(got[0], tt.want) {
				t.Errorf("Warnings = %q, want one that begins %q", got, tt.want)
			}
		})
	}
	if got := mustParse(t, minimal).Warnings; got != nil {
		t.Errorf("Warnings of the least configuration = %q, want none", got)
	}
}

func TestNothingSecretIsPrinted(t *testing.T) {
	const canary = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
	for _, data := range []string{
		minimal + "s3: {secret_access_key: " + canary + "}",
		minimal + "access_key_id: " + canary,
		minimal + "    session_token: " + canary,
		minimal + "s3: {endpoint_url: 'https://user:" + canary + "@minio.example.com'}",
		minimal + "s3: {endpoint_url: 'ftp://user:" + canary + "@minio.example.com'}",
	} {
		faults := parseFaults(t, data)
		if out := fmt.Sprintf("%v %+v %#v", faults, faults[0], faults[0]); strings.Contains(out, canary) {
			t.Errorf("the secret is printed: %s", out)
		}
		if !strings.Contains(faults.Error(), "the AWS default chain supplies them") {
			t.Errorf("the fault does not say where credentials come from: %v", faults)
		}
	}
	faults := parseFaults(t, minimal, "S3SYNCD_S3_SECRET_ACCESS_KEY="+canary)
	if strings.Contains(faults.Error(), canary) || !strings.Contains(faults.Error(), "default chain") {
		t.Errorf("fault of a variable: %v", faults)
	}
}

func TestTagsAreCheckedAsS3Does(t *testing.T) {
	for tags, good := range map[string]bool{
		`{team: "a b", "x/y": "1+2=3@z"}`: true,
		`{"é": ""}`:                       true,
		`{"aws:x": "1"}`:                  false,
		`{"": "1"}`:                       false,
		`{"a": "b;c"}`:                    false,
		`{"a": "` + strings.Repeat("x", 257) + `"}`:                          false,
		`{"` + strings.Repeat("x", 129) + `": "a"}`:                          false,
		`{a: b, c: d, e: f, g: h, i: j, k: l, m: n, o: p, q: r, s: t}`:       true,
		`{a: b, c: d, e: f, g: h, i: j, k: l, m: n, o: p, q: r, s: t, u: v}`: false,
	} {
		text := "instance: a\nsources: [{path: /x, bucket: bbb, kms_key_id: k, identity: size-mtime, tags: " + tags + "}]\ns3: {region: us-east-1, acl: bucket-owner-full-control}\n"
		c, err := Parse("test.yaml", []byte(text), nil)
		if (err == nil) != good {
			t.Errorf("tags %.40s: %v, want them taken: %v", tags, err, good)
		}
		if err == nil && (c.S3.ACL != "bucket-owner-full-control" || c.Sources[0].Identity != "size-mtime" || len(c.Sources[0].Tags) == 0) {
			t.Errorf("acl %q, identity %q, tags %v", c.S3.ACL, c.Sources[0].Identity, c.Sources[0].Tags)
		}
	}
}
