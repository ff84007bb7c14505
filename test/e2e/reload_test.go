package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// twoSources is a site whose configuration the test writes itself.
type twoSources struct {
	*site
	other bucketView // of the second source
	more  string     // its directory
}

func newTwoSources(t *testing.T) *twoSources {
	t.Helper()
	s := newSite(t, "", "")
	two := &twoSources{site: s, other: s.bucket, more: filepath.Join(filepath.Dir(s.dir), "more")}
	two.other.prefix = "backups/more"
	if err := os.Mkdir(two.more, 0o755); err != nil {
		t.Fatal(err)
	}
	return two
}

// source is one entry of the configuration.
func (s *twoSources) source(name, extra string) string {
	dir, prefix := s.dir, s.bucket.prefix
	if name != "app" {
		dir, prefix = s.more, s.other.prefix
	}
	return fmt.Sprintf("- {name: %s, path: %s, bucket: %s, prefix: %s, kms_key_id: %s%s}\n", name, dir, s.bucket.bucket, prefix, s.key, extra)
}

// reload sends SIGHUP and waits for a line of the log that was not there.
func (p *process) reload(t *testing.T, line string) string {
	t.Helper()
	before := len(p.stderr.String())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, line, func() bool { return strings.Contains(p.stderr.String()[before:], line) })
	return p.stderr.String()[before:]
}

func TestAReloadAppliesSourcesExclusionsLimitsIntervalsAndLevel(t *testing.T) {
	s := newTwoSources(t)
	write(t, s.path("f"), "content")
	write(t, filepath.Join(s.more, "g"), "more")
	write(t, s.file, yaml(s.proxy.URL, s.state, s.source("app", ""), "log: {level: warn}"))
	d := spawn(t, s.env, "run", "-c", s.file)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	if strings.Contains(d.stderr.String(), `"level":"info"`) {
		t.Errorf("the level warn prints info:\n%s", d.stderr)
	}

	// A source and an exclusion more, another limit, interval and level.
	config := strings.Replace(yaml(s.proxy.URL, s.state, s.source("app", ", exclude: ['*.tmp']")+s.source("more", ""), "upload: {workers: 2}"),
		"rescan_interval: 0", "rescan_interval: 1s", 1)
	write(t, s.file, config)
	d.reload(t, `"msg":"ready"`)
	eventually(t, "the new source", func() bool { return slices.Contains(s.other.keys(t, false), s.other.prefix+"/g") })
	eventually(t, "rescans at the new interval", func() bool {
		return strings.Contains(d.stderr.String(), `"msg":"scanned","source":"app","trigger":"rescan"`)
	})
	write(t, s.path("left-out.tmp"), "excluded")
	write(t, s.path("kept"), "kept")
	eventually(t, "the kept file", func() bool { return s.inBucket(t, "kept", "kept") })

	// The first source goes: its chain ends, its objects stay.
	write(t, s.file, yaml(s.proxy.URL, s.state, s.source("more", ""), ""))
	log := d.reload(t, `"msg":"ready"`)
	if !strings.Contains(log, `"keys":["sources[app]","upload.workers","watch.rescan_interval"]`) {
		t.Errorf("the log does not name what changed:\n%s", log)
	}
	write(t, s.path("late"), "late")
	write(t, filepath.Join(s.more, "h"), "more")
	eventually(t, "a file of the other source", func() bool { return slices.Contains(s.other.keys(t, false), s.other.prefix+"/h") })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got, want := s.bucket.keys(t, false), []string{s.bucket.prefix + "/f", s.bucket.prefix + "/kept"}; !slices.Equal(got, want) {
		t.Errorf("objects of the first source: %q, want %q", got, want)
	}
	s.checkReloads(t, s.bucket.readTrail(t), s.other.readTrail(t))
}

// checkReloads looks for the changes in the trail of either source.
func (s *twoSources) checkReloads(t *testing.T, first, second trail) {
	t.Helper()
	var details []string
	for _, d := range first.digests {
		for _, e := range d.Events {
			if e.Event == "reload" {
				details = append(details, e.Detail)
			}
		}
	}
	if len(details) != 1 || !strings.Contains(details[0], "sources[app].exclude") || strings.Contains(details[0], "sources[more]") {
		t.Errorf("the first source's trail says of reloads %q, want one that names its exclusions alone", details)
	}
	if n := len(first.digests); n == 0 || first.digests[n-1].Reason != "final" {
		t.Errorf("the trail of the source that left does not end with a final digest: %+v", first.digests)
	}
	configurations := 0
	for _, k := range s.bucket.keys(t, true) {
		if strings.HasPrefix(filepath.Base(k), "config_") {
			configurations++
		}
	}
	if configurations != 2 {
		t.Errorf("%d configurations of the first source are published, want 2", configurations)
	}
	reloads := 0
	for _, d := range second.digests {
		for _, e := range d.Events {
			if e.Event == "reload" {
				reloads++
			}
		}
	}
	if reloads != 2 {
		t.Errorf("the second source's trail has %d reloads, want 2", reloads)
	}
}

func TestAReloadNamesWhatNeedsARestartAndAppliesTheRest(t *testing.T) {
	s := newTwoSources(t)
	write(t, s.path("f"), "content")
	write(t, s.file, yaml(s.proxy.URL, s.state, s.source("app", ""), ""))
	d := startDaemon(t, s.file, s.env...)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })

	apply := yaml(s.proxy.URL, s.state, s.source("app", ", exclude: ['*.tmp']"), "log: {format: console}")
	write(t, s.file, strings.Replace(apply, `listen: "127.0.0.1:0"`, `listen: ""`, 1))
	log := d.reload(t, `"msg":"ready"`)
	if !strings.Contains(log, `stay as they are; the rest of the new configuration is applied","keys":["admin.listen","log.format"]`) {
		t.Errorf("the log does not name what needs a restart:\n%s", log)
	}
	if log = d.reload(t, "the configuration in force is the same"); !strings.Contains(log, `"keys":["admin.listen","log.format"]`) {
		t.Errorf("the second reload does not name what still needs a restart:\n%s", log)
	}
	write(t, s.path("left-out.tmp"), "excluded")
	write(t, s.path("kept"), "kept")
	eventually(t, "the kept file", func() bool { return s.inBucket(t, "kept", "kept") })
	if code, m := d.get(t, "/metrics"); code != 200 || !strings.Contains(m, "\ns3syncd_config_last_reload_successful 1\n") {
		t.Errorf("the admin listener says %d after the reload", code)
	}

	// Another instance would archive elsewhere: nothing of that is applied.
	write(t, s.file, strings.Replace(yaml(s.proxy.URL, s.state, s.source("app", ""), ""), "instance: test-01", "instance: test-02", 1))
	log = d.reload(t, "nothing of the new configuration is applied")
	if !strings.Contains(log, `"instance"`) {
		t.Errorf("the log does not name instance:\n%s", log)
	}
	write(t, s.path("also-left-out.tmp"), "excluded")
	write(t, s.path("last"), "last")
	eventually(t, "the last file", func() bool { return s.inBucket(t, "last", "last") })
	if _, m := d.get(t, "/metrics"); !strings.Contains(m, "\ns3syncd_config_last_reload_successful 0\n") {
		t.Errorf("the metrics do not say that the file is not in force")
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	for _, k := range s.bucket.keys(t, false) {
		if strings.HasSuffix(k, ".tmp") {
			t.Errorf("an excluded file is in the bucket: %s", k)
		}
	}
	s.bucket.readTrail(t)
}
