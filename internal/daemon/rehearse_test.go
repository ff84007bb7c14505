package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3test"
)

// reloader is a daemon whose configuration changes.
type reloader struct {
	t      *testing.T
	fake   *s3test.Fake
	base   string
	file   string
	hangup chan os.Signal
	log    *logBuffer
	stop   func()
}

// source is one entry of sources.
func (r *reloader) source(name, bucket, prefix string) string {
	r.t.Helper()
	dir := filepath.Join(r.base, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("- {name: %s, path: %s, bucket: %s, prefix: %s, kms_key_id: %s}\n", name, dir, bucket, prefix, s3test.FakeKeyARN)
}

func (r *reloader) configure(sources ...string) {
	r.t.Helper()
	text := fmt.Sprintf("instance: test-01\nstate_dir: %s\ns3: {region: us-east-1, endpoint_url: %q}\nsources:\n%s"+
		"watch: {settle: 10ms, rescan_interval: 0}\nadmin: {listen: \"\"}\n", filepath.Join(r.base, "state"), r.fake.URL, strings.Join(sources, ""))
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// newReloader starts a daemon with one source, app, in bucket-1.
func newReloader(t *testing.T, more ...string) *reloader {
	t.Helper()
	r := &reloader{t: t, fake: s3test.NewFake(t, "bucket-1", "bucket-2"), base: t.TempDir(), hangup: make(chan os.Signal, 1)}
	r.fake.Setenv(t)
	r.file = filepath.Join(r.base, "s3syncd.yaml")
	list := []string{r.source("app", "bucket-1", "app")}
	for _, name := range more {
		list = append(list, r.source(name, "bucket-2", name))
	}
	r.configure(list...)
	r.log, r.stop = start(t, Options{
		Load: func() (*config.Config, error) { return config.Load(r.file, nil) }, Hangup: r.hangup,
		Version: "test", Grace: pipeline.StandardGrace(),
	})
	await(t, "ready", func() bool { return r.log.has(`"msg":"ready"`) })
	r.archives("app", "bucket-1", "app/first")
	return r
}

// archives writes a file into a source and waits for its object.
func (r *reloader) archives(name, bucket, key string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.base, name, filepath.Base(key)), []byte(key), 0o600); err != nil {
		r.t.Fatal(err)
	}
	await(r.t, key, func() bool { _, ok := r.fake.Object(bucket, key); return ok })
}

// add adds a block to the configuration.
func (r *reloader) add(block string) {
	r.t.Helper()
	text, err := os.ReadFile(r.file)
	if err == nil {
		err = os.WriteFile(r.file, append(text, block+"\n"...), 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *reloader) reload() { r.hangup <- syscall.SIGHUP }

// status asks the daemon.
func (r *reloader) status() (st admin.Status) {
	r.t.Helper()
	_, raw, err := admin.NewClient(filepath.Join(r.base, "state", "control.sock")).StatusJSON(r.t.Context())
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func TestAReloadThatCannotWorkLeavesTheOldConfigurationInForce(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(r *reloader) // faults
		change func(r *reloader)
		why    string
	}{
		"another bucket is not there": {nil, func(r *reloader) { r.configure(r.source("app", "bucket-9", "app")) }, "NoSuchBucket"},
		"the bucket of a source more is not there": {nil, func(r *reloader) {
			r.configure(r.source("app", "bucket-1", "app"), r.source("more", "bucket-9", "more"))
		}, "NoSuchBucket"},
		"S3 refuses the new prefix": {func(r *reloader) {
			r.fake.Answer(s3test.Match{Op: "PutObject", Prefix: "elsewhere/", Times: -1}, 403, "AccessDenied")
		}, func(r *reloader) { r.configure(r.source("app", "bucket-1", "elsewhere")) }, "AccessDenied"},
		"a profile is not there": {nil, func(r *reloader) {
			r.configure(strings.Replace(r.source("app", "bucket-1", "app"), "kms_key_id", "profile: nobody, kms_key_id", 1))
		}, "nobody"},
		"the local copies cannot be written": {nil, func(r *reloader) { r.add("manifest: {local_dir: /proc/nowhere}") }, "/proc/nowhere"},
		"a signing key is not there":         {nil, func(r *reloader) { r.add("manifest: {sign: 'ed25519:" + r.base + "/none'}") }, "none"},
		"a path is a file": {nil, func(r *reloader) {
			if err := os.WriteFile(filepath.Join(r.base, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r.configure(strings.Replace(r.source("app", "bucket-1", "app"), "/app,", "/file,", 1))
		}, "not a directory"},
		"a path leads into another source": {nil, func(r *reloader) {
			if err := os.Symlink(filepath.Join(r.base, "app"), filepath.Join(r.base, "link")); err != nil {
				t.Fatal(err)
			}
			r.configure(r.source("app", "bucket-1", "app"), strings.Replace(r.source("more", "bucket-2", "more"), "/more,", "/link,", 1))
		}, "is the directory of"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReloader(t)
			if tt.before != nil {
				tt.before(r)
			}
			tt.change(r)
			r.reload()
			await(t, "the refusal", func() bool { l := r.status().LastReload; return l != nil && !l.Successful })
			if l := r.status().LastReload; !strings.Contains(l.Error, tt.why) {
				t.Errorf("status says %q, want a word of %q", l.Error, tt.why)
			}
			r.archives("app", "bucket-1", "app/second")
			r.configure(r.source("app", "bucket-1", "app"), r.source("other", "bucket-2", "other"))
			r.reload()
			r.archives("other", "bucket-2", "other/third")
			if l := r.status().LastReload; l == nil || !l.Successful || l.Error != "" {
				t.Errorf("after a good reload: %+v", l)
			}
			r.stop()
		})
	}
}

func TestAReloadSurvivesThatABucketGoesWithItsSource(t *testing.T) {
	r := newReloader(t, "gone")
	r.archives("gone", "bucket-2", "gone/f")
	r.fake.Answer(s3test.Match{Bucket: "bucket-2", Times: -1}, 404, "NoSuchBucket")
	r.configure(r.source("app", "bucket-1", "app"))
	r.reload()
	await(t, "the new configuration", func() bool { return len(r.status().Sources) == 1 })
	r.archives("app", "bucket-1", "app/second")
	await(t, "the chain is given up", func() bool { return r.log.has("is given up") })
	r.stop()
	log, stop := start(t, Options{
		Load: func() (*config.Config, error) { return config.Load(r.file, nil) }, Hangup: r.hangup, Version: "test", Grace: pipeline.StandardGrace(),
	})
	await(t, "ready", func() bool { return log.has(`"msg":"ready"`) })
	r.archives("app", "bucket-1", "app/third")
	if log.has("removed source") || log.has("is given up") {
		t.Error("what was given up is tried again")
	}
	stop()
}

func TestWhatIsSwitchedOffEndsNothing(t *testing.T) {
	r := newReloader(t)
	r.configure(r.source("app", "bucket-1", "app"))
	text, err := os.ReadFile(r.file)
	if err == nil {
		off := strings.Replace(string(text), "rescan_interval: 0", "rescan_interval: 0, poll_interval: 0, remote_check_interval: 0, reread: 0", 1)
		err = os.WriteFile(r.file, []byte(off), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.reload()
	await(t, "the reload", func() bool { l := r.status().LastReload; return l != nil && l.Successful })
	r.archives("app", "bucket-1", "app/second")
	if l := r.status().LastReload; !l.Successful {
		t.Errorf("the new configuration did not last: %s", l.Error)
	}
	r.stop()
}

func TestReloadsInARowDelayNothing(t *testing.T) {
	r := newReloader(t)
	begin := time.Now()
	for i := range 3 {
		r.configure(r.source("app", "bucket-1", "app"), r.source(fmt.Sprintf("more%d", i), "bucket-2", fmt.Sprintf("more%d", i)))
		r.reload()
	}
	r.archives("app", "bucket-1", "app/second")
	r.archives("more2", "bucket-2", "more2/third")
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("two files took %v", took)
	}
	r.stop()
}

func TestAReloadInAnOutageAppliesWhatNeedsNoAnswer(t *testing.T) {
	r := newReloader(t)
	fault := r.fake.Cut(s3test.Match{Times: -1})
	fault.MayRest()
	r.add("log: {level: debug}\nupload: {workers: 3}")
	r.reload()
	await(t, "the reload", func() bool { l := r.status().LastReload; return l != nil && l.Successful })
	r.fake.Lift(fault)
	r.archives("app", "bucket-1", "app/second")
	r.stop()
}

func TestAReloadDoesNotWaitForASlowUpload(t *testing.T) {
	r := newReloader(t)
	stall := r.fake.Stall(s3test.Match{Op: "PutObject", Key: "app/slow"})
	if err := os.WriteFile(filepath.Join(r.base, "app", "slow"), []byte("slow"), 0o600); err != nil {
		t.Fatal(err)
	}
	stall.Wait(t)
	begin := time.Now()
	r.configure(r.source("app", "bucket-1", "app"), r.source("more", "bucket-2", "more"))
	r.reload()
	r.archives("more", "bucket-2", "more/f")
	if took := time.Since(begin); took > pipeline.DrainTime/2 {
		t.Errorf("a file of another source took %v", took)
	}
	r.archives("app", "bucket-1", "app/slow") // The upload that was cut is made again.
	r.stop()
}
