package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// second is another host with a state of its own that archives dir to the same
// prefix as s.
func (s *site) second(t *testing.T, instance, dir string) *site {
	t.Helper()
	other := *s
	base := t.TempDir()
	other.dir, other.state, other.file = dir, filepath.Join(base, "state"), filepath.Join(base, "s3syncd.yaml")
	other.configure(t, "settle: 20ms", smallParts)
	b, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, other.file, strings.Replace(string(b), "instance: test-01", "instance: "+instance, 1))
	return &other
}

// elsewhere starts a daemon as on another machine.
func (s *site) elsewhere(t *testing.T) *process {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("another machine-id needs root")
	}
	id := filepath.Join(t.TempDir(), "machine-id")
	write(t, id, "fedcba9876543210fedcba9876543210\n")
	const as = `mount --bind "$0" /etc/machine-id && exec "$@"`
	if out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--", "sh", "-c", as, id, "true").CombinedOutput(); err != nil {
		t.Skipf("another machine-id cannot be mounted: %v: %s", err, out)
	}
	p := spawnProgram(t, "unshare", s.env, "--mount", "--", "sh", "-c", as, id, binary, "run", "-c", s.file)
	p.isReady(t)
	return p
}

// Two hosts by one instance's name do not overwrite each other: what the other one
// wrote is a conflict on either side, until the other has stopped.
func TestTwoHostsByOneNameDoNotOverwriteEachOther(t *testing.T) {
	a := newPartSite(t)
	write(t, a.path("f"), "from a")
	da := a.daemon(t)
	a.mustFlush(t)
	b := a.second(t, "test-01", t.TempDir())
	write(t, b.path("f"), "from b")
	write(t, b.path("g"), "from b")
	db := b.elsewhere(t)
	b.holds(t, "g", "from b")
	write(t, a.path("g"), "from a")
	for name, s := range map[string]struct {
		*site
		*process
	}{"a": {a, da}, "b": {b, db}} {
		eventually(t, "the conflict of "+name, func() bool {
			return s.metric(t, `s3syncd_conflicts_total{source="app"}`) == 1 && s.metric(t, `s3syncd_parked_files{class="conflict",source="app"}`) == 1
		})
		if code, out, _ := s.ask(t, "status"); code != 3 {
			t.Errorf("%s: status = %d, want 3:\n%s", name, code, out)
		}
	}
	if !a.inBucket(t, "f", "from a") || !a.inBucket(t, "g", "from b") {
		t.Error("a host replaced the other one's object")
	}
	for _, p := range []*process{da, db} {
		if code := p.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	}
	for _, k := range []string{"f", "g"} {
		if _, out := a.bucket.get(t, a.bucket.prefix+"/"+k); len(out.Metadata["s3syncd-host"]) != 32 {
			t.Errorf("%s carries the metadata %v, want a host", k, out.Metadata)
		}
	}
	// The other one has stopped: what it left is taken over.
	db = b.elsewhere(t)
	eventually(t, "the takeover", func() bool { return b.inBucket(t, "f", "from b") })
	db.stop(t)
}

func TestASecondDaemonOnOneStateRefusesAndNamesTheFirst(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	pid := strconv.Itoa(d.cmd.Process.Pid)
	for _, command := range []string{"run", "sync"} {
		code, out, errs := commandAs(t, s.uid, s.env, command, "-c", s.file)
		if code != 1 || !strings.Contains(errs, "in use by process "+pid+":") || !strings.Contains(errs, "s3syncd rescan") {
			t.Errorf("%s = %d, want 1, the pid %s and what to do:\n%s", command, code, pid, out+errs)
		}
	}
	write(t, s.path("f"), "content")
	s.holds(t, "f", "content")
	s.stopAndCompare(t, d)
}

func TestTwoStatesOfOneInstanceCorruptNothing(t *testing.T) {
	files, rounds := 20, 10
	if thorough {
		files, rounds = 200, 2000
	}
	a := newPartSite(t)
	b := a.second(t, "test-01", a.dir)
	da, db := spawn(t, a.env, "run", "-c", a.file), spawn(t, b.env, "run", "-c", b.file)
	da.isReady(t)
	db.isReady(t)
	rng := rand.New(rand.NewPCG(seed(t), 2))
	for i := range rounds {
		for range files / 10 {
			write(t, a.path(fmt.Sprintf("f%d", rng.IntN(files))), fmt.Sprintf("content %d", i))
		}
		if i == rounds/2 {
			random(t, a.path("big"), partSize+99, 3)
		}
	}
	for _, s := range []*site{a, b, a, b} { // What one replaced, the other may have put back.
		s.mustFlush(t)
	}
	for _, d := range []*process{da, db} {
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	}
	t.Log(a.wantNothingLostIn(t, 2))
}

// Two hosts by one name, with other files: the last one to write a key has it,
// and both trails say so.
func TestTwoHostsByOneNameAreVisible(t *testing.T) {
	if !thorough {
		t.Skip("three runs of a daemon: S3SYNCD_E2E is not set")
	}
	a := newPartSite(t)
	write(t, a.path("f"), "from a")
	a.finishes(t)
	b := a.second(t, "test-01", t.TempDir())
	write(t, b.path("f"), "from b")
	b.finishes(t)
	write(t, a.path("f"), "from a again")
	a.finishes(t)
	tr := a.bucket.readTrail(t)
	replaced := 0
	for _, r := range tr.records {
		if r.Status == "uploaded" && r.Replaced != "" {
			replaced++
		}
	}
	if replaced != 2 {
		t.Errorf("%d records name what they replaced, want 2", replaced)
	}
	begins := map[string]bool{}
	for _, d := range tr.digests {
		begins[d.Begins] = true
	}
	if !begins["new"] || !begins["state-lost"] {
		t.Errorf("chains begin %v, want new and state-lost: the second one found the first", begins)
	}
	t.Log(a.wantNothingLostIn(t, 2)) // The first one sees that it was left, and goes on: the other chain may be forged.
}

func TestAnotherInstancesObjectIsNeverReplaced(t *testing.T) {
	a := newPartSite(t)
	for _, f := range []string{"same", "other", "large"} {
		write(t, a.path(f), f+" of a")
	}
	random(t, a.path("large"), partSize+5, 1)
	da := a.daemon(t)
	a.mustFlush(t)
	b := a.second(t, "test-02", t.TempDir())
	write(t, b.path("same"), "same of a")
	write(t, b.path("other"), "other of b")
	write(t, b.path("own"), "own of b")
	random(t, b.path("large"), partSize+7, 2)
	db := b.daemon(t)
	b.holds(t, "own", "own of b")
	eventually(t, "the conflicts", func() bool {
		return db.metric(t, `s3syncd_conflicts_total{source="app"}`) == 2 && db.metric(t, `s3syncd_parked_files{class="conflict",source="app"}`) == 2
	})
	if code, out, _ := b.ask(t, "status"); code != 3 {
		t.Errorf("status = %d, want 3:\n%s", code, out)
	}
	write(t, b.path("other"), "other of b, newer")
	eventually(t, "another look", func() bool { return b.proxy.Count(s3test.Match{Op: "HeadObject", Key: "/other"}) > 1 })
	for _, d := range []*process{db, da} {
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	}
	if !a.inBucket(t, "other", "other of a") || a.metaMD5(t, "large") == "" {
		t.Error("an object of the other instance was replaced")
	}
	tr := a.bucket.readTrail(t)
	failed := map[string]string{}
	for _, r := range tr.records {
		if r.Status == "failed" {
			failed[filepath.Base(r.S3Key)] += r.ErrorClass
		}
	}
	if len(failed) != 2 || !strings.HasPrefix(failed["other"], "conflict") || failed["large"] != "conflict" {
		t.Errorf("failed records: %v, want one conflict for each of other and large", failed)
	}
	for _, r := range tr.records {
		if r.Status == "uploaded" && filepath.Base(r.S3Key) == "other" && r.Replaced != "" {
			t.Errorf("the object was replaced: %+v", r)
		}
	}
}
