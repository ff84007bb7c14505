package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// verifyWorkers is how many requests a verification makes at once.
const verifyWorkers = 16

// VerifyOptions are what a verification needs from outside.
type VerifyOptions struct {
	Config *config.Config // nil: Origin
	Only   []string       // names of sources of Config; none: all
	Origin Origin         // without Config; its Bucket "" is none: Offline alone

	Offline  string // the directory of copies to read instead of the bucket
	Instance string
	MaxAge   time.Duration
	Vouchers

	Remote   bool
	Deep     float64 // percent
	Seed     uint64
	Source   bool
	TempDir  string
	Stderr   io.Writer
	Progress VerifyProgress
}

// VerifyProgress follows a verification. Its methods must not block.
type VerifyProgress interface {
	Trail(name string) // what is checked from now on
	Documents(done, total int64)
	Objects(done int64)
	Files(done int64)
}

// VerifyResult is what was found in one trail.
type VerifyResult struct {
	Source string `json:"source,omitempty"` // of the configuration
	*verify.Result
}

// verifyTarget is one trail to check.
type verifyTarget struct {
	source *config.Source // nil: without a configuration
	origin Origin
	trail  *trail.Trail
	reader *s3store.Reader // nil: offline
	bucket string
	prefix string     // as in manifest.Digest.Prefix
	host   *hostTrail // nil: not the host's own, or offline
	copies error      // what the host knows could not be read
}

// verification is one run.
type verification struct{ o VerifyOptions }

// Verify checks the audit trails that o names, one after the other, and what
// they claim of S3 and of the tree where that was asked for. It changes nothing
// but o.AnchorFile, and that only when every trail was clean. What could not be
// read is a finding in the results. They are valid where the error is nil; an
// error says that nothing could be checked.
func Verify(ctx context.Context, o VerifyOptions) ([]VerifyResult, error) {
	v := &verification{o: o}
	results, err := v.run(ctx)
	return results, pipeline.Interrupted(ctx, err)
}

func (v *verification) run(ctx context.Context) ([]VerifyResult, error) {
	if err := v.o.load(); err != nil {
		return nil, err
	}
	targets, err := v.targets(ctx)
	if err != nil {
		return nil, err
	}
	if v.o.ExpectHead != "" && len(targets) > 1 {
		return nil, fmt.Errorf("%w: --expect-head is the head of one trail, and %d are meant: choose with --only", ErrWrongUse, len(targets))
	}
	results, err := v.checkAll(ctx, targets)
	if err != nil || slices.ContainsFunc(results, func(r VerifyResult) bool { return !r.Clean }) {
		return results, err
	}
	return results, v.o.save()
}

// checkAll checks the trails one after the other. An error says that nothing of
// any of them could be read.
func (v *verification) checkAll(ctx context.Context, targets []*verifyTarget) ([]VerifyResult, error) {
	results := []VerifyResult{}
	var failed []error
	for _, t := range targets {
		r, err := v.check(ctx, t)
		if t.reader != nil {
			t.reader.CloseIdle()
		}
		if ctx.Err() != nil {
			return results, err
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", t.name(), err))
		}
		results = append(results, r)
		v.o.note(t.bucket, t.prefix, r.Heads(), v.now(t))
	}
	if len(failed) == len(targets) {
		return results, errors.Join(failed...)
	}
	return results, nil
}

func (v *verification) now(t *verifyTarget) time.Time {
	if t.reader != nil {
		return t.reader.Now()
	}
	return time.Now()
}

// targets returns the trails that the options mean.
func (v *verification) targets(ctx context.Context) ([]*verifyTarget, error) {
	if v.o.Offline != "" {
		return v.copies(ctx)
	}
	list, err := v.named()
	if err != nil {
		return nil, err
	}
	log, err := plainLogger(v.o.Stderr)
	if err != nil {
		return nil, err
	}
	for _, t := range list {
		if t.reader, err = t.origin.open(ctx, verifyWorkers, log); err != nil {
			return nil, err
		}
		t.bucket, t.prefix = t.origin.Bucket, t.origin.mapper().Prefix()
		t.trail = trail.NewTrail(t.reader, t.prefix)
		if t.source != nil {
			t.host = &hostTrail{cfg: v.o.Config, source: t.source}
		}
	}
	return list, nil
}

// named returns the trails that flags or configuration name, not opened.
func (v *verification) named() ([]*verifyTarget, error) {
	if v.o.Config == nil {
		return []*verifyTarget{{origin: v.o.Origin}}, nil
	}
	if err := v.checkNames(); err != nil {
		return nil, err
	}
	var list []*verifyTarget
	for i := range v.o.Config.Sources {
		s := &v.o.Config.Sources[i]
		if len(v.o.Only) > 0 && !slices.Contains(v.o.Only, s.Name) {
			continue
		}
		origin, err := OriginOf(v.o.Config, s.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, &verifyTarget{source: s, origin: origin})
	}
	return list, nil
}

// checkNames refuses names that no source has.
func (v *verification) checkNames() error {
	for _, name := range v.o.Only {
		if _, err := OriginOf(v.o.Config, name); err != nil {
			return err
		}
	}
	return nil
}

// copies returns the trails in a directory of copies.
func (v *verification) copies(ctx context.Context) ([]*verifyTarget, error) {
	found, err := anchor.OpenCopies(ctx, v.o.Offline)
	if err != nil {
		return nil, fmt.Errorf("--offline: %w", err)
	}
	var list []*verifyTarget
	for _, c := range found {
		if v.o.Origin.Bucket != "" && (c.Bucket != v.o.Origin.Bucket || c.Prefix != v.o.Origin.mapper().Prefix()) {
			continue
		}
		t := &verifyTarget{trail: c.Trail, bucket: c.Bucket, prefix: c.Prefix}
		if v.o.Config != nil && !v.sourceOf(t) {
			continue
		}
		list = append(list, t)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("--offline: the copies in %s are of other trails than the one that was asked for", v.o.Offline)
	}
	return list, nil
}

// sourceOf finds the source of the configuration that a copy is of.
func (v *verification) sourceOf(t *verifyTarget) bool {
	for i := range v.o.Config.Sources {
		s := &v.o.Config.Sources[i]
		if s.Bucket == t.bucket && archive.NewMapper(s.Prefix).Prefix() == t.prefix && (len(v.o.Only) == 0 || slices.Contains(v.o.Only, s.Name)) {
			t.source = s
			return true
		}
	}
	return false
}

// name says which trail t is, for an operator.
func (t *verifyTarget) name() string {
	trail := "s3://" + t.bucket + "/" + t.prefix
	if t.source != nil {
		return "source " + t.source.Name + " (" + trail + ")"
	}
	return trail
}

// check checks one trail. An error says that nothing of it could be read.
func (v *verification) check(ctx context.Context, t *verifyTarget) (VerifyResult, error) {
	v.o.Progress.Trail(t.name())
	r := VerifyResult{}
	if t.source != nil {
		r.Source = t.source.Name
	}
	var err error
	o := v.options(ctx, t)
	if r.Result, err = verify.Run(ctx, t.trail, o); err != nil {
		r.Result = verify.Unreadable(o, t.prefix, err)
		return r, err
	}
	if t.copies != nil {
		r.NotRead("", "what the host knows of its trail could not be read", t.copies)
	}
	if t.reader != nil && (v.o.Remote || v.o.Deep > 0) {
		err := r.CheckObjects(ctx, t.trail, t.reader, verify.ObjectOptions{
			Instance: v.o.Instance, Deep: v.o.Deep, Seed: v.o.Seed, Workers: verifyWorkers,
			TempDir: v.o.TempDir, Memory: sortMemory, Progress: v.o.Progress.Objects,
		})
		if err != nil {
			r.NotRead("", "the objects could not be compared to the end", err)
		}
	}
	if v.o.Source && t.source != nil {
		if err := v.checkSource(ctx, t, r.Result); err != nil {
			r.NotRead("", "the directory could not be compared to the end", err)
		}
	}
	return r, ctx.Err()
}

// options returns what a trail is checked against.
func (v *verification) options(ctx context.Context, t *verifyTarget) verify.Options {
	o := verify.Options{
		Bucket: t.bucket, Instance: v.o.Instance, Now: time.Now(), MaxAge: v.o.MaxAge, Keys: v.o.keys,
		Anchors: v.o.heads(t.bucket, t.prefix), Progress: v.o.Progress.Documents,
	}
	if t.reader != nil {
		o.Server = t.reader.Now
	}
	if v.o.Config != nil && v.o.Config.Manifest.Sign != "none" {
		o.Signing = v.o.Config.Instance
	}
	if t.host != nil && (v.o.Remote || v.o.Deep > 0 || v.o.Source) {
		o.Waits = t.host.flush(ctx)
	}
	if t.host != nil {
		var known []anchor.Anchor
		known, t.copies = t.host.anchors(ctx)
		o.Anchors, o.Again = append(o.Anchors, known...), t.host.anchors
	}
	return o
}

// checkSource compares the tree of a source with its trail.
func (v *verification) checkSource(ctx context.Context, t *verifyTarget, r *verify.Result) error {
	root := pipeline.RootOf(t.source)
	id, err := root.Identify()
	if err != nil {
		return err
	}
	root.Pin(id)
	instance := v.o.Instance
	if instance == "" {
		instance = v.o.Config.Instance
	}
	return r.CheckSource(ctx, t.trail, root, verify.SourceOptions{
		Instance: instance, Mapper: archive.NewMapper(t.source.Prefix), TempDir: v.o.TempDir, Memory: sortMemory, Progress: v.o.Progress.Files,
	})
}

// VerifyBundle checks what one bundle of a history proves.
func VerifyBundle(o VerifyOptions) (bundle.Report, error) {
	if err := o.load(); err != nil {
		return bundle.Report{}, err
	}
	file, err := os.Open(o.Offline)
	if err != nil {
		return bundle.Report{}, fmt.Errorf("--offline: %w", err)
	}
	report, err := bundle.Verify(file, bundle.Check{ExpectHead: o.ExpectHead, Trusted: o.keys})
	if err = errors.Join(err, file.Close()); err != nil {
		return report, fmt.Errorf("--offline %s: %w", o.Offline, err)
	}
	return report, nil
}
