package manifest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func TestFlushPublishesManifestsThenTheirDigest(t *testing.T) {
	for _, layout := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
		t.Run(string(layout), func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Layout, o.MaxRecords = layout, 10 })
			r.begin(state.Report{New: true})
			r.commit("a", 25)
			r.flush(trail.ReasonFlush)
			digests, paths := r.trail()
			if len(digests) != 1 || digests[0].Begins != archive.BeginsNew || digests[0].Reason != trail.ReasonFlush || len(digests[0].Manifests) != 3 {
				t.Fatalf("digests = %+v, want one that begins new with three manifests", digests)
			}
			r.wantOnce(paths, map[string]int{"a": 25}, "a")
			for i, key := range r.bucket.created() {
				if got, err := os.ReadFile(filepath.Join(r.local(), strings.TrimPrefix(key, "p/_manifests/"))); err != nil || !bytes.Equal(got, r.bucket.objects[key]) {
					t.Errorf("the local copy of %s differs: %v", key, err)
				}
				if isDigest := strings.Contains(key, "digest_"); isDigest != (i == 3) {
					t.Errorf("document %d is %s; the digest comes last", i, key)
				}
			}
			if ch := r.chain(); ch.Unpublished != 0 || ch.SealedTo != 25 {
				t.Errorf("chain = %+v, want nothing unpublished", ch)
			}
		})
	}
}

func TestFlushWithoutNewsMakesNoRequest(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	before := len(r.bucket.asked())
	r.flush(trail.ReasonFlush)
	r.reopen()
	r.begin(state.Report{})
	r.flush(trail.ReasonFlush)
	for _, got := range r.bucket.asked()[before:] {
		if !strings.HasPrefix(got, "LIST ") { // A start asks whether the state is an old copy.
			t.Errorf("request %s, want none", got)
		}
	}
}

func TestStopAlwaysSaysSo(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.flush(trail.ReasonFlush)
	r.flush(trail.ReasonStop)
	digests, _ := r.trail()
	last := digests[len(digests)-1]
	if last.Reason != trail.ReasonStop || last.NextDigestDue != nil || len(last.Events) != 1 || last.Events[0].Kind != archive.NoteCleanStop {
		t.Errorf("last digest = %+v, want a clean stop", last)
	}
	if first := digests[0]; deref(first.NextDigestDue) != "2026-01-20T11:30:00Z" {
		t.Errorf("next_digest_due = %s, want an hour after the digest", deref(first.NextDigestDue))
	}
}

func TestNamesStandStillForAMinute(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	for _, step := range []time.Duration{0, -30 * time.Second, time.Second, 72 * time.Hour} {
		r.advance(step)
		r.commit("x"+step.String(), 1)
		r.flush(trail.ReasonFlush)
	}
	created := r.bucket.created()
	var last trail.Name
	for _, key := range created {
		n, ok := trail.ParseName(key)
		if !ok || n.Time.Before(last.Time) || !last.Before(n) {
			t.Errorf("%s does not follow %s", key, last)
		}
		last = n
	}
	if len(created) != 8 {
		t.Errorf("%d documents, want 8", len(created))
	}
	r.trail()
}

// Each cut leaves the process dead between two steps; after it the process
// starts again and flushes.
func TestEveryCutEndsInOneRecordEach(t *testing.T) {
	boom := errors.New("connection reset")
	putFails := func(kind string) func(op, key string) error {
		return func(op, key string) error {
			if op == "PUT" && strings.Contains(key, kind) {
				return boom
			}
			return nil
		}
	}
	try := func(r *rig) {
		_, err := r.f.sealAll(r.Context(), trail.ReasonFlush)
		r.must(err)
		if err := r.f.publisher.publish(r.Context()); !errors.Is(err, boom) {
			r.Fatalf("publish = %v, want %v", err, boom)
		}
	}
	cuts := map[string]func(r *rig){
		"before anything":      func(*rig) {},
		"records sealed":       func(r *rig) { r.must(r.f.sealer.seal(r.Context())) },
		"digest sealed":        func(r *rig) { _, err := r.f.sealAll(r.Context(), trail.ReasonFlush); r.must(err) },
		"manifest PUT refused": func(r *rig) { r.bucket.set(putFails("manifest_"), nil); try(r) },
		"digest PUT refused":   func(r *rig) { r.bucket.set(putFails("digest_"), nil); try(r) },
		"manifest PUT without an answer": func(r *rig) {
			r.bucket.set(nil, putFails("manifest_"))
			r.bucket.fault = func(op, _ string) error {
				if op == "GET" {
					return boom
				}
				return nil
			}
			try(r)
		},
		"digest PUT without an answer": func(r *rig) {
			r.bucket.set(func(op, _ string) error {
				if op == "GET" {
					return boom
				}
				return nil
			}, putFails("digest_"))
			try(r)
		},
		"a manifest file without its transaction": func(r *rig) {
			ch := r.chain()
			r.orphan(trail.Name{Time: r.clock(), Instance: "app-01", Chain: ch.ID, Sequence: ch.Sequence, N: 1})
		},
		"a digest file without its transaction": func(r *rig) {
			r.must(r.f.sealer.seal(r.Context()))
			ch := r.chain()
			r.orphan(trail.Name{Digest: true, Time: r.clock(), Instance: "app-01", Chain: ch.ID, Sequence: ch.Sequence})
		},
	}
	for name, cut := range cuts {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.MaxRecords = 4 })
			r.begin(state.Report{New: true})
			r.commit("a", 3)
			r.flush(trail.ReasonFlush)
			r.advance(time.Minute)
			r.commit("b", 6)
			cut(r)
			r.bucket.set(nil, nil)
			r.advance(time.Minute)
			r.reopen()
			r.begin(state.Report{Unclean: true})
			r.commit("c", 2)
			r.flush(trail.ReasonStop)
			digests, paths := r.trail()
			r.wantOnce(paths, map[string]int{"a": 3, "b": 6, "c": 2}, "a", "b", "c")
			for _, d := range digests {
				if d.Chain != digests[0].Chain {
					t.Errorf("chain %s begins %s, want one chain", d.Chain, d.Begins)
				}
			}
			if got, want := len(r.files()), len(r.bucket.created()); got != want {
				t.Errorf("%d local files %v, want the %d published", got, r.files(), want)
			}
		})
	}
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) orphan(n trail.Name) {
	r.Helper()
	r.must(os.WriteFile(filepath.Join(r.local(), n.Path()), []byte("[\n]\n"), 0o600))
}

func TestAnotherDocumentUnderOurKeyForksTheChain(t *testing.T) {
	for _, kind := range []string{"manifest_", "digest_"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.MaxRecords = 2 })
			r.begin(state.Report{New: true})
			r.commit("a", 2)
			r.flush(trail.ReasonFlush)
			old := r.chain()
			r.commit("b", 5)
			_, err := r.f.sealAll(t.Context(), trail.ReasonFlush)
			r.must(err)
			box, err := r.st.Outbox()
			r.must(err)
			i := slices.IndexFunc(box, func(d archive.Doc) bool { return strings.Contains(d.Key, kind) })
			foreign := []byte("foreign")
			r.bucket.objects[box[i].Key] = foreign
			r.commit("c", 1)
			r.advance(time.Second)
			r.flush(trail.ReasonFlush)

			digests, paths := r.trail()
			r.wantOnceUnordered(paths, map[string]int{"a": 2, "b": 5, "c": 1})
			last := digests[len(digests)-1]
			head := old.PrevSHA256
			if kind == "digest_" {
				head = hexSHA(foreign)
			}
			if last.Chain == old.ID || last.Begins != archive.BeginsForked || last.AbandonsChain != old.ID || last.AbandonsDigestSHA256 != head {
				t.Errorf("last digest = %+v, want one that forked from %s at %s", last, old.ID, head)
			}
			if len(last.Events) != 1 || last.Events[0].Kind != archive.NoteGap {
				t.Errorf("events = %+v, want the gap", last.Events)
			}
			if !bytes.Equal(r.bucket.objects[box[i].Key], foreign) {
				t.Error("the other document was overwritten")
			}
			if box, err := r.st.Outbox(); err != nil || len(box) != 0 {
				t.Errorf("outbox = %v, %v, want empty", box, err)
			}
			if got := testutil.ToFloat64(r.f.m.forked); got != 1 {
				t.Errorf("forked flushes = %v, want 1", got)
			}
		})
	}
}

func (r *rig) wantOnceUnordered(paths []string, committed map[string]int) {
	r.Helper()
	order := slices.Sorted(func(yield func(string) bool) {
		for p := range committed {
			if !yield(p) {
				return
			}
		}
	})
	slices.Sort(paths)
	r.wantOnce(paths, committed, order...)
}

func TestALostManifestIsMadeAgain(t *testing.T) {
	for _, layout := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
		r := newRig(t, func(o *Options) { o.MaxRecords, o.Layout = 2, layout })
		r.begin(state.Report{New: true})
		r.commit("a", 5)
		_, err := r.f.sealAll(t.Context(), trail.ReasonFlush)
		r.must(err)
		box, err := r.st.Outbox()
		r.must(err)
		r.must(os.Remove(box[0].File))
		r.must(os.WriteFile(box[1].File, []byte("[\n]\n"), 0o600))
		r.flush(trail.ReasonFlush)
		digests, paths := r.trail()
		r.wantOnce(paths, map[string]int{"a": 5}, "a")
		if len(digests) != 1 {
			t.Errorf("%d digests, want the one that was sealed", len(digests))
		}
	}
}

func TestALostDigestBeginsAnotherChain(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 5)
	_, err := r.f.sealAll(t.Context(), trail.ReasonFlush)
	r.must(err)
	box, err := r.st.Outbox()
	r.must(err)
	r.must(os.Remove(box[1].File))
	r.flush(trail.ReasonFlush)
	digests, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 5}, "a")
	if len(digests) != 1 || digests[0].Begins != archive.BeginsStateLost || digests[0].AbandonsChain == digests[0].Chain {
		t.Errorf("digests = %+v, want one of a chain that says state-lost", digests)
	}
}

func TestAPlaintextTwinIsNoSuccess(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 1)
	before, err := r.st.Chain()
	r.must(err)
	r.bucket.sse = ""
	plain := ""
	r.bucket.set(nil, func(_, key string) error {
		if plain == "" {
			plain = key
			return errors.New("no answer")
		}
		r.bucket.sse = "aws:kms" // The server has been mended.
		return nil
	})
	r.must(r.f.Flush(t.Context(), trail.ReasonFlush))
	after, err := r.st.Chain()
	r.must(err)
	if after.ID == before.ID || after.Begins != archive.BeginsForked || after.AbandonsChain != before.ID {
		t.Errorf("the trail goes on in chain %+v, want another that leaves %s", after, before.ID)
	}
	if after.Unpublished != 0 {
		t.Errorf("%d records are unpublished, want 0", after.Unpublished)
	}
	for _, key := range r.bucket.created() {
		if key != plain && strings.Contains(key, before.ID) {
			t.Errorf("%s was published in the chain whose manifest is in the clear", key)
		}
	}
}

func TestRunKeepsOrderOverAnOutage(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.MaxRecords, o.DigestInterval, o.FlushInterval = 5, 60*time.Millisecond, 10*time.Millisecond
	})
	r.begin(state.Report{New: true})
	var down atomic.Bool
	down.Store(true)
	r.bucket.set(func(string, string) error {
		if down.Load() {
			return archive.Classified(archive.ClassTransient, "PutObject", errors.New("connection refused"))
		}
		return nil
	}, nil)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.f.Run(ctx) }()
	want := map[string]int{}
	var order []string
	for i := range 6 {
		name := string(rune('a' + i))
		want[name], order = 7, append(order, name)
		r.commit(name, 7)
		before := r.chain().SealedTo
		r.f.Nudge()
		r.poll(func() bool { return r.chain().SealedTo > before || r.chain().SealedTo == uint64(7*(i+1)) })
	}
	if got := r.bucket.created(); len(got) != 0 {
		t.Errorf("created %v in the outage", got)
	}
	down.Store(false)
	stop()
	r.must(<-done)
	digests, paths := r.trail()
	r.wantOnce(paths, want, order...)
	if last := digests[len(digests)-1]; last.Reason != trail.ReasonStop {
		t.Errorf("last reason = %s, want stop", last.Reason)
	}
	created := r.bucket.created()
	var last trail.Name
	for _, key := range created {
		n, _ := trail.ParseName(key)
		if !last.Before(n) {
			t.Errorf("%s was published after %s", key, last)
		}
		last = n
	}
	if r.chain().Unpublished != 0 {
		t.Errorf("Unpublished = %d, want 0", r.chain().Unpublished)
	}
}

func (r *rig) poll(ok func() bool) {
	r.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			r.Fatal("not within 10 s")
		}
	}
}

func TestAWaitForTheCanaryIsNoFailure(t *testing.T) {
	logs, seen := observer.New(zap.WarnLevel)
	r := newRig(t, func(o *Options) { o.Log = zap.New(logs) })
	r.begin(state.Report{New: true})
	var asked atomic.Int64
	r.bucket.set(func(op, _ string) error {
		if op == "PUT" && asked.Add(1) == 1 {
			return archive.Classified(archive.ClassTransient, "publish", ErrNotYet)
		}
		return nil
	}, nil)
	r.commit("a", 3)
	r.flush(trail.ReasonFlush)
	if asked.Load() < 2 {
		t.Errorf("asked %d times, want again after the first", asked.Load())
	}
	if seen.Len() != 0 {
		t.Errorf("logged %v, want nothing", seen.All())
	}
	if got := testutil.ToFloat64(r.f.m.failed); got != 0 {
		t.Errorf("%v failures are counted, want 0", got)
	}
	digests, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3}, "a")
	if len(digests) != 1 {
		t.Errorf("%d digests, want 1", len(digests))
	}
}

func TestGlanceSaysSinceWhenARequestHasNoAnswer(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	r.bucket.set(func(string, string) error {
		signal(asked)
		<-answer
		return nil
	}, nil)
	r.commit("a", 3)
	begin := time.Now()
	done := make(chan error, 1)
	go func() { done <- r.f.Flush(t.Context(), trail.ReasonFlush) }()
	<-asked
	st, err := r.f.Glance()
	r.must(err)
	if st.RequestSince.Before(begin) || st.Err != nil {
		t.Errorf("a request is under way since %v, error %v; want since %v at the earliest, and none", st.RequestSince, st.Err, begin)
	}
	close(answer)
	r.must(<-done)
	if st, err = r.f.Glance(); err != nil || !st.RequestSince.IsZero() {
		t.Errorf("a request is under way since %v (%v), want none", st.RequestSince, err)
	}
}

func TestAStopDoesNotWaitForADestinationThatNobodyAsksAnyMore(t *testing.T) {
	r := newRig(t, func(o *Options) { o.StopTimeout = time.Hour })
	r.begin(state.Report{New: true})
	r.bucket.set(func(string, string) error { return archive.Classified(archive.ClassTransient, "publish", ErrNotYet) }, nil)
	r.commit("a", 3)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	done := make(chan error, 1)
	go func() { done <- r.f.Run(ctx) }()
	select {
	case err := <-done:
		r.must(err)
	case <-time.After(time.Minute):
		t.Fatal("Run waits for a canary that nobody sends")
	}
	r.bucket.set(nil, nil)
	r.reopen()
	r.begin(state.Report{})
	r.flush(trail.ReasonFlush)
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3}, "a")
}

func TestAnAbandonedStopDoesNotWaitForTheOutage(t *testing.T) {
	r := newRig(t, func(o *Options) { o.StopTimeout = time.Hour })
	r.begin(state.Report{New: true})
	tried := make(chan struct{}, 1)
	r.bucket.set(func(string, string) error {
		signal(tried)
		return archive.Classified(archive.ClassTransient, "PutObject", errors.New("down"))
	}, nil)
	r.commit("a", 3)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	done := make(chan error, 1)
	go func() { done <- r.f.Run(ctx) }()
	<-tried
	r.f.Abandon()
	r.f.Abandon()
	select {
	case err := <-done:
		r.must(err)
	case <-time.After(time.Minute):
		t.Fatal("Run goes on after Abandon")
	}
	r.bucket.set(nil, nil)
	r.reopen()
	r.begin(state.Report{})
	r.flush(trail.ReasonFlush)
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3}, "a")
}

func TestStopInAnOutageLeavesTheOutbox(t *testing.T) {
	r := newRig(t, func(o *Options) { o.StopTimeout = 100 * time.Millisecond })
	r.begin(state.Report{New: true})
	r.bucket.set(func(string, string) error { return errors.New("down") }, nil)
	r.commit("a", 3)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	r.must(r.f.Run(ctx))
	r.bucket.set(nil, nil)
	r.reopen()
	r.begin(state.Report{})
	r.flush(trail.ReasonFlush)
	digests, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3}, "a")
	if len(digests) != 2 || digests[0].Reason != trail.ReasonStart || digests[1].Reason != trail.ReasonStop {
		t.Errorf("digests = %+v, want the one of the start and the one of the stop", digests)
	}
}

func TestRunWithoutAChainIsAnError(t *testing.T) {
	r := newRig(t, nil)
	if err := r.f.Run(t.Context()); !errors.Is(err, state.ErrNoChain) {
		t.Errorf("Run = %v, want ErrNoChain", err)
	}
}

func TestBeginSaysWhy(t *testing.T) {
	old := func(r *rig) string { // A chain of this instance that another state wrote.
		other := newRig(r.T, nil)
		other.bucket = r.bucket
		other.reopen()
		other.begin(state.Report{New: true})
		other.commit("old", 1)
		other.flush(trail.ReasonFlush)
		return other.chain().ID
	}
	denied := func(string, string) error { return fs.ErrPermission }
	down := func(string, string) error { return errors.New("no route to host") }
	for name, row := range map[string]struct {
		prepare  func(r *rig) string
		fault    func(op, key string) error
		report   state.Report
		opt      func(*Options)
		want     archive.Begins
		wantNote bool
	}{
		"an empty bucket":          {report: state.Report{New: true}, want: archive.BeginsNew},
		"an older chain":           {prepare: old, report: state.Report{New: true}, want: archive.BeginsStateLost},
		"a damaged state":          {report: state.Report{SetAside: "x"}, want: archive.BeginsStateLost},
		"no right to list":         {fault: denied, report: state.Report{New: true}, want: archive.BeginsUnknown},
		"an outage":                {fault: down, report: state.Report{New: true}, want: archive.BeginsUnknown, wantNote: true},
		"another bucket before":    {opt: func(o *Options) { o.Before = "archived to s3://b/old before" }, want: archive.BeginsReconfigured},
		"moved to an older prefix": {prepare: old, opt: func(o *Options) { o.Before = "archived to s3://b/old before" }, want: archive.BeginsStateLost},
		"another instance's chain": {prepare: func(r *rig) string { old(r); return "" }, opt: func(o *Options) { o.Instance = "app-02" }, want: archive.BeginsNew},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, row.opt)
			abandons := ""
			if row.prepare != nil {
				abandons = row.prepare(r)
			}
			r.bucket.set(row.fault, nil)
			r.begin(row.report)
			ch := r.chain()
			if ch.Begins != row.want || ch.AbandonsChain != abandons || (abandons != "") != (ch.AbandonsSHA256 != "") || !trail.ChainPattern.MatchString(ch.ID) {
				t.Errorf("chain = %+v, want one that begins %s and abandons %q", ch, row.want, abandons)
			}
			notes := slices.DeleteFunc(ch.Notes, func(n archive.Note) bool {
				return n.Kind == archive.NoteDestinationChanged && row.want == archive.BeginsReconfigured
			})
			if got := len(notes) == 1; got != row.wantNote {
				t.Errorf("notes = %+v, want one: %v", ch.Notes, row.wantNote)
			}
		})
	}
}

func TestAnotherHostBeginsAnotherChain(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxRecords = 2 })
	r.begin(state.Report{New: true})
	r.commit("a", 3)
	r.flush(trail.ReasonFlush)
	r.commit("b", 3)
	r.must(r.f.sealer.seal(t.Context())) // Two manifests that no digest names yet.
	r.commit("c", 1)
	old := r.chain()
	r.close()
	r.host = "machine-2"
	r.open()
	r.begin(r.db.Report())
	ch := r.chain()
	if ch.Begins != archive.BeginsHostChanged || ch.AbandonsChain != old.ID || ch.AbandonsSHA256 != old.PrevSHA256 {
		t.Errorf("chain = %+v, want one that left %s", ch, old.ID)
	}
	r.flush(trail.ReasonFlush)
	_, paths := r.trail()
	r.wantOnceUnordered(paths, map[string]int{"a": 3, "b": 3, "c": 1})
}

func TestAStateThatWasRolledBackForks(t *testing.T) {
	key := newKey(t)
	for _, c := range []struct {
		keepLocal bool
		sign      Signer
	}{{true, nil}, {false, nil}, {true, key}, {false, key}} {
		keepLocal := c.keepLocal
		r := newRig(t, func(o *Options) { o.Sign = c.sign })
		r.begin(state.Report{New: true})
		r.commit("a", 1)
		r.flush(trail.ReasonFlush)
		r.close()
		r.must(os.CopyFS(filepath.Join(r.dir, "backup"), os.DirFS(filepath.Join(r.dir, "state"))))
		r.open()
		for _, name := range []string{"b", "c"} {
			r.advance(time.Minute)
			r.commit(name, 1)
			r.flush(trail.ReasonFlush)
		}
		old := r.chain()
		r.close()
		r.must(os.RemoveAll(filepath.Join(r.dir, "state")))
		r.must(os.Rename(filepath.Join(r.dir, "backup"), filepath.Join(r.dir, "state")))
		if !keepLocal {
			r.must(os.RemoveAll(r.local()))
		}
		r.open()
		r.begin(state.Report{Unclean: !keepLocal})
		if ch := r.chain(); ch.Begins != archive.BeginsForked || ch.AbandonsChain != old.ID || ch.AbandonsSHA256 != old.PrevSHA256 {
			t.Errorf("chain = %+v, want one that forked from %s at %s", ch, old.ID, old.PrevSHA256)
		}
	}
}

func TestAClosedChainIsNotContinued(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 1)
	r.must(r.f.CloseChain(t.Context()))
	old := r.chain()
	r.reopen()
	r.begin(state.Report{})
	if ch := r.chain(); ch.ID == old.ID || ch.Begins != archive.BeginsReconfigured || ch.AbandonsSHA256 != old.PrevSHA256 {
		t.Errorf("chain = %+v, want another than %s", ch, old.ID)
	}
	if digests, _ := r.trail(); digests[0].Reason != trail.ReasonFinal || digests[0].NextDigestDue != nil {
		t.Errorf("reason = %s, want final", digests[0].Reason)
	}
}

func TestConfigIsPublishedOnce(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	config := []byte("{\"instance\":\"app-01\"}\n")
	sha := hexSHA(config)
	r.must(r.f.PublishConfig(t.Context(), config, sha))
	r.must(r.f.PublishConfig(t.Context(), config, sha))
	if err := r.f.PublishConfig(t.Context(), []byte("{}"), strings.Repeat("1", 64)); err == nil {
		t.Error("a configuration with a foreign hash was taken")
	}
	r.flush(trail.ReasonFlush)
	if got, want := r.bucket.created()[0], "p/_manifests/config_"+sha+".json"; got != want || len(r.bucket.created()) != 2 {
		t.Errorf("created %v, want %s first and a digest", r.bucket.created(), want)
	}
	if digests, _ := r.trail(); digests[0].ConfigSHA256 != sha {
		t.Errorf("config_sha256 = %s, want %s", digests[0].ConfigSHA256, sha)
	}
}

func TestCopyRunIsOneArrayOfThisRun(t *testing.T) {
	for _, layout := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
		r := newRig(t, func(o *Options) { o.MaxRecords, o.Layout = 3, layout })
		r.begin(state.Report{New: true})
		r.commit("before", 2)
		r.flush(trail.ReasonFlush)
		r.reopen()
		r.begin(state.Report{})
		r.commit("now", 7)
		r.flush(trail.ReasonStop)
		var b bytes.Buffer
		r.must(CopyRun(&b, r.f))
		var array []archive.Record
		if err := json.Unmarshal(b.Bytes(), &array); err != nil || len(array) != 7 || array[0].S3Key != "p/now-0" || array[6].S3Key != "p/now-6" {
			t.Errorf("%s: CopyRun = %d records, %v\n%s", layout, len(array), err, b.Bytes())
		}
	}
}

func TestBackoffIsBounded(t *testing.T) {
	for n := range 20 {
		if d := backoff.Jittered(n, archive.ClassTransient); d <= 0 || d > min(time.Minute, time.Second<<min(n, 6)) {
			t.Errorf("backoff(%d) = %v", n, d)
		}
		if d := backoff.Jittered(n, archive.ClassConfiguration); d < 30*time.Second || d > time.Minute {
			t.Errorf("backoff(%d, configuration) = %v, want 30 s to a minute", n, d)
		}
	}
}
