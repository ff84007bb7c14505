package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVariablesOverrideTheFile(t *testing.T) {
	c := mustParse(t, full,
		"S3SYNCD_INSTANCE=from-env", "S3SYNCD_UPLOAD_WORKERS=8", "S3SYNCD_UPLOAD_PART_SIZE=6MiB", "S3SYNCD_UPLOAD_MEMORY_LIMIT=20MiB", "S3SYNCD_WATCH_RESCAN_INTERVAL=0",
		"S3SYNCD_MANIFEST_OBJECT_LOCK_DAYS=9", "S3SYNCD_ADMIN_LISTEN=", "S3SYNCD_ADMIN_PAGE=false", "S3SYNCD_S3_EXPECTED_BUCKET_OWNER=000000000001",
		"S3SYNCD_SOURCES_0_BUCKET=other-bucket", "S3SYNCD_SOURCES_1_SETTLE=1s", "NOTIFY_SOCKET=/run/x", "S3SYNCDX=1", "S3SYNCD_UPLOAD_WORKERS=9")
	got := []any{
		c.Instance, c.Sources[0].Prefix, c.Upload.Workers, c.Upload.PartSize, c.Watch.RescanInterval, c.Manifest.ObjectLock.Days,
		c.Admin.Listen, c.Admin.Page, c.Sources[1].ExpectedBucketOwner, c.Sources[0].Bucket, c.Sources[1].Bucket, c.Sources[0].Settle, c.Sources[1].Settle,
	}
	want := []any{
		"from-env", "backups/from-env/x", 9, int64(6 << 20), time.Duration(0), 9,
		"", false, "000000000001", "other-bucket", "my.bucket-2", 10 * time.Millisecond, time.Second,
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("value %d = %v, want %v", i, got[i], want[i])
		}
	}
}

func TestAVariableSuppliesWhatTheFileLeavesOut(t *testing.T) {
	c := mustParse(t, strings.Replace(minimal, "    bucket: my-bucket\n", "", 1), "S3SYNCD_SOURCES_0_BUCKET=env-bucket")
	if c.Sources[0].Bucket != "env-bucket" {
		t.Errorf("Bucket = %q, want env-bucket", c.Sources[0].Bucket)
	}
}

func TestFaultsOfVariables(t *testing.T) {
	for _, tt := range []struct{ name, env, want string }{
		{"unknown", "S3SYNCD_UPLOAD_WORKER=1", "S3SYNCD_UPLOAD_WORKER: is not a variable of s3syncd; did you mean S3SYNCD_UPLOAD_WORKERS?"},
		{"nothing like it", "S3SYNCD_=1", "S3SYNCD_: is not a variable of s3syncd"},
		{"a block", "S3SYNCD_UPLOAD=1", "S3SYNCD_UPLOAD: names a list or a mapping"},
		{"a list", "S3SYNCD_SOURCES_0_EXCLUDE=*.tmp", "S3SYNCD_SOURCES_0_EXCLUDE: names a list or a mapping"},
		{"no such source", "S3SYNCD_SOURCES_1_BUCKET=b", "S3SYNCD_SOURCES_1_BUCKET: names a source that is not configured"},
		{"no such key of a source", "S3SYNCD_SOURCES_0_BUCKT=b", "S3SYNCD_SOURCES_0_BUCKT: is not a variable of s3syncd; did you mean S3SYNCD_SOURCES_0_BUCKET?"},
		{"bad value", "S3SYNCD_UPLOAD_WORKERS=0", `S3SYNCD_UPLOAD_WORKERS: "0" is out of range; accepted: a whole number from 1 to 256`},
		{"empty number", "S3SYNCD_UPLOAD_WORKERS=", `S3SYNCD_UPLOAD_WORKERS: "" is not a whole number`},
		{"found by a later check", "S3SYNCD_S3_ENDPOINT_URL=http://minio.example.com", "S3SYNCD_S3_ENDPOINT_URL: \"http://minio.example.com\" would send data"},
		{"not UTF-8", "S3SYNCD_STATE_DIR=/\xff", `S3SYNCD_STATE_DIR: "/\xff" is not UTF-8`},
	} {
		t.Run(tt.name, func(t *testing.T) { only(t, parseFaults(t, minimal, tt.env), tt.want) })
	}
}

func TestEveryScalarHasItsOwnVariable(t *testing.T) {
	c := mustParse(t, full)
	byName := map[string]string{}
	for key := range c.index() {
		if other, taken := byName[variable(key)]; taken {
			t.Errorf("%s and %s share %s", key, other, variable(key))
		}
		byName[variable(key)] = key
	}
	if got := byName["S3SYNCD_MANIFEST_OBJECT_LOCK_MODE"]; got != "manifest.object_lock.mode" {
		t.Errorf("S3SYNCD_MANIFEST_OBJECT_LOCK_MODE sets %q", got)
	}
}

func someFlags(env ...string) SyncFlags {
	return SyncFlags{Dir: "/no/such/data", Bucket: "my-bucket", Prefix: "a/{instance}/", KMSKeyID: "alias/x", Env: append(env, "HOME=/home/me", "S3SYNCD_INSTANCE=me")}
}

func TestFromFlags(t *testing.T) {
	f := someFlags("S3SYNCD_UPLOAD_WORKERS=3")
	f.Region, f.EndpointURL = "us-west-2", "http://localhost:9000"
	c, err := FromFlags(f)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Sources[0]
	got := []any{len(c.Sources), s.Name, s.Path, s.Bucket, s.Prefix, s.KMSKeyID, s.Region, c.S3.EndpointURL, c.S3.PathStyle, c.Upload.Workers}
	want := []any{1, "data", "/no/such/data", "my-bucket", "a/me", "alias/x", "us-west-2", "http://localhost:9000", true, 3}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("value %d = %v, want %v", i, got[i], want[i])
		}
	}
	if filepath.Dir(c.Manifest.LocalDir) != c.StateDir || filepath.Dir(c.Admin.Socket) != c.StateDir {
		t.Errorf("local_dir %q and socket %q are not in %q", c.Manifest.LocalDir, c.Admin.Socket, c.StateDir)
	}
	mustParse(t, string(c.Canonical()))
}

func TestFromFlagsPutsTheStateWhereItFindsItAgain(t *testing.T) {
	state := func(f SyncFlags) string {
		t.Helper()
		c, err := FromFlags(f)
		if err != nil {
			t.Fatal(err)
		}
		return c.StateDir
	}
	first := state(someFlags())
	for i, tt := range []struct {
		flags SyncFlags
		want  string
	}{
		{someFlags(), "/home/me/.local/state/s3syncd/sync"},
		{someFlags("XDG_STATE_HOME=/xdg"), "/xdg/s3syncd/sync"},
		{someFlags("XDG_STATE_HOME=relative"), "/home/me/.local/state/s3syncd/sync"},
		{someFlags("XDG_STATE_HOME=/xdg", "STATE_DIRECTORY=/var/lib/s3syncd:/second"), "/var/lib/s3syncd/sync"},
	} {
		got := state(tt.flags)
		if filepath.Dir(got) != tt.want || filepath.Base(got) != filepath.Base(first) {
			t.Errorf("state directory %d = %q, want %s in %q", i, got, filepath.Base(first), tt.want)
		}
	}
	for name, change := range map[string]func(*SyncFlags){
		"dir": func(f *SyncFlags) { f.Dir = "/no/such/other" }, "bucket": func(f *SyncFlags) { f.Bucket = "other" }, "prefix": func(f *SyncFlags) { f.Prefix = "b" },
	} {
		f := someFlags()
		change(&f)
		if got := state(f); got == first {
			t.Errorf("another %s has the same state directory %q", name, got)
		}
	}
	f := someFlags("S3SYNCD_STATE_DIR=/env")
	if got := state(f); got != "/env" {
		t.Errorf("state directory by variable = %q", got)
	}
	f.StateDir = "/flag/"
	if got := state(f); got != "/flag" {
		t.Errorf("state directory by flag = %q", got)
	}
	t.Chdir(t.TempDir())
	f.Dir, f.StateDir = "./", "../state"
	if got := state(f); !filepath.IsAbs(got) {
		t.Errorf("relative state directory = %q", got)
	}
}

func TestFaultsOfFlags(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*SyncFlags)
		want   string
	}{
		{"no key", func(f *SyncFlags) { f.KMSKeyID = "" }, "--kms-key-id: is required; accepted: a customer-managed KMS key"},
		{"no directory", func(f *SyncFlags) { f.Dir = "" }, "--dir: is required"},
		{"bad bucket", func(f *SyncFlags) { f.Bucket = "B" }, `--bucket: "B" is not a bucket name`},
		{"managed key", func(f *SyncFlags) { f.KMSKeyID = "alias/aws/s3" }, `--kms-key-id: "alias/aws/s3" is a key that AWS manages`},
		{"reserved prefix", func(f *SyncFlags) { f.Prefix = "_manifests" }, "--prefix: \"_manifests\" has the component"},
		{"bad region", func(f *SyncFlags) { f.Region = "a.b" }, "--region: \"a.b\" is not a region"},
		{"remote http", func(f *SyncFlags) { f.EndpointURL = "http://minio" }, "--endpoint-url: \"http://minio\" would send"},
		{"state inside", func(f *SyncFlags) { f.StateDir = "/no/such/data/x" }, `--state-dir: "/no/such/data/x" lies inside sources[0]`},
		{"home of the user", func(f *SyncFlags) { f.Dir = "/home/me" }, "--state-dir: \"/home/me/.local/state/s3syncd/sync/"},
		{"the root", func(f *SyncFlags) { f.Dir, f.Env = "/", append(f.Env, "S3SYNCD_SOURCES_0_NAME=root") }, "--state-dir:"},
		{"nowhere for the state", func(f *SyncFlags) { f.Env = []string{"S3SYNCD_INSTANCE=me"} }, "--state-dir: is required: none of STATE_DIRECTORY"},
		{"a variable", func(f *SyncFlags) { f.Env = append(f.Env, "S3SYNCD_LOG_LEVEL=x") }, "S3SYNCD_LOG_LEVEL:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := someFlags()
			tt.change(&f)
			_, err := FromFlags(f)
			faults, _ := errors.AsType[Errors](err)
			only(t, faults, tt.want)
		})
	}
}
