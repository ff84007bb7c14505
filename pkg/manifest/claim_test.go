package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// run is a run of the program: it claims the chain, records n uploads and stops in
// order, or dies before it seals them.
func (r *rig) run(name string, n int, dies bool) {
	r.Helper()
	r.begin(state.Report{})
	r.work(name, n, dies)
	r.advance(time.Minute)
	r.close()
}

// work is run without its beginning and its end.
func (r *rig) work(name string, n int, dies bool) {
	r.Helper()
	ctx, stop := context.WithCancel(r.Context())
	done := make(chan error, 1)
	go func() { done <- r.f.Run(ctx) }()
	var err error
	r.poll(func() bool { err = r.f.Claim(r.Context()); return err == nil })
	r.commit(name, n)
	if dies {
		r.f.Abandon()
		r.bucket.set(func(string, string) error { return errors.New("the host is off") }, nil)
	}
	stop()
	r.must(<-done)
	r.bucket.set(nil, nil)
}

func (r *rig) copyTo(name string) {
	r.Helper()
	to := filepath.Join(r.dir, name)
	r.must(os.RemoveAll(to))
	for _, dir := range []string{"state", "manifests"} {
		r.must(os.CopyFS(filepath.Join(to, dir), os.DirFS(filepath.Join(r.dir, dir))))
	}
}

func (r *rig) restore(name string, what ...string) {
	r.Helper()
	for _, dir := range what {
		r.must(os.RemoveAll(filepath.Join(r.dir, dir)))
		r.must(os.CopyFS(filepath.Join(r.dir, dir), os.DirFS(filepath.Join(r.dir, name, dir))))
	}
}

func noList(op, _ string) error {
	if op == "LIST" {
		return fs.ErrPermission
	}
	return nil
}

// oneOfEach checks that no chain has two digests of one number, as a reader that
// sorts all keys would see it.
func (r *rig) oneOfEach() {
	r.Helper()
	seen := map[string]string{}
	for _, key := range r.bucket.created() {
		if n, ok := trail.ParseName(key); ok && n.Digest {
			id := fmt.Sprintf("%s-%d", n.Chain, n.Sequence)
			if seen[id] != "" {
				r.Errorf("%s and %s have one number", seen[id], key)
			}
			seen[id] = key
		}
	}
}

// A state that is an old copy never continues its chain: whatever was put back,
// however far the trail has gone on, and with or without the right to list.
func TestAnOldStateBeginsAnotherChain(t *testing.T) {
	for _, what := range []string{"state", "state manifests"} {
		for _, since := range []string{"one run", "three runs", "a killed run"} {
			for _, rights := range []string{"list", "no list", "away at the start", "another host"} {
				t.Run(what+", "+since+", "+rights, func(t *testing.T) {
					r := newRig(t, nil)
					r.run("a", 2, false)
					r.copyTo("backup")
					want := map[string]int{"a": 2, "z": 3}
					names := map[string][]string{"one run": {"b"}, "three runs": {"b", "c", "d"}, "a killed run": {"b"}}[since]
					for _, name := range names {
						r.open()
						r.run(name, 2, since == "a killed run")
						if since != "a killed run" {
							want[name] = 2
						}
					}
					newest := newestOf(r)
					r.restore("backup", strings.Fields(what)...)
					old := r.openOld(rights)
					r.work("z", 3, false)
					r.oneOfEach()
					digests, paths := r.trail()
					r.wantOnceUnordered(paths, want)
					ch := r.chain()
					begins := archive.BeginsForked
					if rights == "another host" {
						begins = archive.BeginsHostChanged
					}
					if ch.ID == old || ch.Begins != begins {
						t.Fatalf("the trail goes on in chain %s, begun %s; the state had %s", ch.ID, ch.Begins, old)
					}
					for _, d := range digests {
						if d.Chain == ch.ID && d.Sequence == 1 && (d.AbandonsChain != old || d.AbandonsDigestSHA256 != newest) && rights != "no list" {
							t.Errorf("the chain leaves %s at %s, want %s at its head %s", d.AbandonsChain, d.AbandonsDigestSHA256, old, newest)
						}
					}
				})
			}
		}
	}
}

// openOld opens a restored state and begins with it; it returns its chain.
func (r *rig) openOld(rights string) (chain string) {
	r.Helper()
	if rights == "another host" {
		r.host = "machine-2"
	}
	r.open()
	old := r.chain().ID
	switch rights {
	case "no list":
		r.bucket.set(noList, nil)
	case "away at the start":
		r.bucket.set(func(string, string) error {
			return archive.Classified(archive.ClassTransient, "List", errors.New("no route to host"))
		}, nil)
	}
	r.begin(state.Report{})
	switch rights {
	case "no list":
		r.must(r.f.Claim(r.Context())) // work lifts the fault.
	case "away at the start":
		if err := r.f.Claim(r.Context()); err == nil {
			r.Error("Claim = nil without an answer: nothing may be written yet")
		}
		r.bucket.set(nil, nil)
	}
	return old
}

func newestOf(r *rig) string {
	sha := ""
	for _, key := range r.bucket.created() {
		if n, ok := trail.ParseName(key); ok && n.Digest {
			sha = hexSHA(r.bucket.objects[key])
		}
	}
	return sha
}

// A state that was copied while the process ran has the name of no digest to come:
// the listing shows what was published since.
func TestAStateCopiedWhileItRanBeginsAnotherChain(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{})
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	r.commit("b", 2)
	r.close() // As it is on disk at this moment.
	r.copyTo("snapshot")
	r.open()
	r.begin(state.Report{})
	r.advance(time.Hour)
	r.flush(trail.ReasonInterval)
	r.close()
	r.restore("snapshot", "state", "manifests")
	r.open()
	r.begin(state.Report{Unclean: true})
	r.advance(time.Hour)
	r.work("c", 1, false)
	r.oneOfEach()
	if ch := r.chain(); ch.Begins != archive.BeginsForked {
		t.Errorf("the chain begins %s, want forked", ch.Begins)
	}
}

// The index of an old state is as old: every file is asked for.
func TestTheIndexOfAnOldStateIsDoubted(t *testing.T) {
	r := newRig(t, nil)
	rec := archive.Record{LocalPath: "/data/f", S3Key: "p/f", Status: archive.StatusUploaded, Trigger: archive.TriggerEvent}
	r.begin(state.Report{})
	_, err := r.st.Commit(r.Context(), archive.Outcome{Path: "f", Key: "p/f", Entry: &archive.Entry{Stored: true, ETag: "1"}, Record: &rec})
	r.must(err)
	r.work("a", 1, false)
	r.close()
	r.copyTo("backup")
	r.open()
	r.run("b", 1, false)
	r.restore("backup", "state")
	r.open()
	r.begin(state.Report{})
	if e, ok, err := r.st.Get("f"); err != nil || !ok || !e.Suspect {
		t.Errorf("Get = %+v, %v, %v, want a doubted entry", e, ok, err)
	}
}

// A run says when its next digest is due before it writes, so that its death is
// seen, and says so again in a chain that it has to begin.
func TestARunBeginsWithADigest(t *testing.T) {
	r := newRig(t, nil)
	r.run("a", 1, false)
	r.open()
	r.begin(state.Report{})
	before := r.chain()
	r.must(r.f.Claim(t.Context()))
	digests, _ := r.trail()
	last := digests[len(digests)-1]
	if last.Reason != trail.ReasonStart || last.NextDigestDue == nil || last.Sequence != before.Sequence {
		t.Errorf("the last digest is %+v, want one of the start that says when the next is due", last)
	}
	n := len(r.bucket.asked())
	r.must(r.f.Claim(t.Context()))
	if got := r.bucket.asked()[n:]; len(got) != 0 {
		t.Errorf("a second Claim asks %v", got)
	}
	r.work("b", 1, true)
	r.reopen()
	r.begin(state.Report{Unclean: true})
	r.flush(trail.ReasonFlush)
	r.oneOfEach()
}

// A run that ends by itself begins with a digest only where it writes, or where it
// cannot know that its state is current.
func TestARunThatEndsByItselfBeginsLate(t *testing.T) {
	for _, denied := range []bool{false, true} {
		r := newRig(t, func(o *Options) { o.LateStart = true })
		r.run("a", 1, false)
		r.copyTo("backup")
		for i := range 2 { // The second one with the state of before the first.
			r.restore("backup", "state")
			r.open()
			if denied {
				r.bucket.set(noList, nil)
			}
			r.begin(state.Report{})
			skips := r.f.Skips()
			rec := archive.Record{LocalPath: "/data/s", S3Key: "p/s", Status: archive.StatusSkipped, Trigger: archive.TriggerSync, Source: "data", Instance: "app-01"}
			r.must(skips.Write(t.Context(), rec))
			ctx, stop := context.WithCancel(t.Context())
			stop()
			r.must(r.f.Run(ctx))
			r.close()
			r.advance(time.Minute)
			r.oneOfEach()
			starts := 0
			digests, _ := r.trail()
			for _, d := range digests[2:] {
				if d.Reason == trail.ReasonStart {
					starts++
				}
			}
			if want := map[bool]int{true: 1 + i, false: 0}[denied]; starts != want {
				t.Errorf("denied %v, run %d: %d digests of a start, want %d", denied, i, starts, want)
			}
		}
	}
}

// Two live states of one instance: the one whose chain was left notices. A start of
// it leaves in turn where its own key has signed the other chain; else that may be
// anybody's, and its own goes on.
func TestAChainThatWasLeftIsSeen(t *testing.T) {
	key := newKey(t)
	for name, sign := range map[string]Signer{"unsigned": nil, "signed": key} {
		t.Run(name, func(t *testing.T) { chainThatWasLeft(t, sign) })
	}
}

func chainThatWasLeft(t *testing.T, sign Signer) {
	t.Helper()
	r := newRig(t, func(o *Options) { o.DigestInterval, o.Sign = time.Nanosecond, sign })
	r.begin(state.Report{})
	r.must(r.f.Claim(t.Context()))
	first := r.chain().ID
	other := newRig(t, func(o *Options) { o.Sign = sign })
	other.bucket = r.bucket
	other.reopen()
	other.advance(time.Minute)
	other.begin(state.Report{New: true})
	other.must(other.f.Claim(t.Context()))
	other.flush(trail.ReasonFlush)
	if got := other.chain().AbandonsChain; got != first {
		t.Fatalf("the other state leaves %q, want %s", got, first)
	}
	r.advance(time.Hour)
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	if st := r.glance(t); st.Chain != first || st.Twin != other.chain().ID || st.TwinSince.IsZero() {
		t.Errorf("Glance = %+v, want chain %s that %s has left", st, first, other.chain().ID)
	}
	if got := testutil.ToFloat64(r.f.m.abandoned); got != 1 {
		t.Errorf("s3syncd_chain_abandoned = %v, want 1", got)
	}
	r.reopen()
	r.begin(state.Report{})
	ch := r.chain()
	if r.glance(t).Twin == "" {
		t.Error("after a start the status names no twin")
	}
	if follows := ch.ID != first && ch.AbandonsChain == other.chain().ID; follows != (sign != nil) || sign == nil && ch.ID != first {
		t.Errorf("after a start the chain is %+v; the other one is %s, signed %v", ch, other.chain().ID, sign != nil)
	}
	if got := other.glance(t); got.Twin != "" {
		t.Errorf("the other state has a twin %q before its chain was left", got.Twin)
	}
}

// A chain that ended is not continued where the copy of its last digest is lost, nor
// by a release that finds the state of one that did not store it.
func TestAnEndedChainIsNotContinued(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{})
	r.commit("a", 1)
	r.must(r.f.CloseChain(t.Context()))
	first := r.chain().ID
	r.close()
	r.must(os.RemoveAll(r.local()))
	r.open()
	r.begin(state.Report{})
	if ch := r.chain(); ch.ID == first || ch.Begins != archive.BeginsReconfigured || ch.AbandonsChain != first {
		t.Errorf("the chain is %+v, want another one than the ended %s", ch, first)
	}
}

// What stands in the bucket under the name of the last digest ends no chain unless
// it is that digest.
func TestAForgedEndEndsNoChain(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{})
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	ch := r.chain()
	d := mustDigest(t, r.bucket.objects[ch.PrevKey])
	d.Reason, d.NextDigestDue = trail.ReasonFinal, nil
	data, err := d.Encode()
	r.must(err)
	r.bucket.objects[ch.PrevKey] = data
	r.close()
	r.must(os.RemoveAll(r.local()))
	r.open()
	r.begin(state.Report{})
	if got := r.chain(); got.ID != ch.ID {
		t.Errorf("the chain is %+v, want %s still", got, ch.ID)
	}
}

// A digest is forged under the name of one that waits. What its manifests hold is
// listed again, also where they were published long ago and the copies are old.
func TestRecordsBehindAForgedDigestOutliveTheSweep(t *testing.T) {
	for _, lost := range []bool{false, true} {
		r := newRig(t, func(o *Options) { o.KeepLocal, o.MaxRecords = time.Hour, 2 })
		r.begin(state.Report{})
		r.commit("a", 1)
		r.flush(trail.ReasonFlush)
		skips := r.f.Skips()
		for i := range 3 { // Nothing but the manifest holds them.
			rec := archive.Record{LocalPath: fmt.Sprintf("/data/s-%d", i), S3Key: fmt.Sprintf("p/s-%d", i), Status: archive.StatusSkipped, Trigger: archive.TriggerSync, Source: "data", Instance: "app-01"}
			r.must(skips.Write(t.Context(), rec))
		}
		_, err := r.f.sealAll(t.Context(), trail.ReasonFlush)
		r.must(err)
		digest := ""
		r.bucket.set(func(op, key string) error {
			if op == "PUT" && strings.Contains(key, "/digest_") {
				digest = key
				return errors.New("down")
			}
			return nil
		}, nil)
		if err := r.f.publisher.publish(t.Context()); err == nil {
			t.Fatal("publish = nil, want the digest to wait")
		}
		r.advance(48 * time.Hour)
		r.f.sweeper.sweep()
		if lost {
			for _, name := range r.files() {
				if strings.HasPrefix(name, "manifest_") {
					r.must(os.Remove(filepath.Join(r.local(), name)))
				}
			}
		}
		r.bucket.set(nil, nil)
		r.bucket.objects[digest] = []byte("forged")
		r.flush(trail.ReasonFlush)
		counts := trail.Counts{}
		digests, _ := r.trail()
		for _, d := range digests {
			counts.Plus(d.Counts)
		}
		if counts.Skipped != 3 || counts.Uploaded != 1 {
			t.Errorf("lost copies %v: the trail counts %+v, want 3 skips and 1 upload", lost, counts)
		}
	}
}
