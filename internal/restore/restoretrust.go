package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Why a digest is not believed though it is one.
var (
	errUnnamed      = errors.New("no digest names it, so nothing vouches for it")
	errNotVouched   = errors.New("nothing that is known from elsewhere vouches for it")
	errContradicted = errors.New("its signature does not hold")
	errNotYet       = errors.New("it is dated in the future")
)

// trust is what a restore believes of a trail that was verified.
type trust struct {
	checked *verify.Result
	latest  time.Time // what is dated later has not been written by a host
	refuted map[digestPlace]bool
	again   map[string]bool // manifests whose records another chain has
}

// digestPlace is a digest's place in its chain.
type digestPlace struct {
	instance, chain string
	sequence        uint64
}

// check verifies the trail, where that was asked for, and puts what is wrong with
// it into the summary.
func (r *restorer) check(ctx context.Context) error {
	if r.o.Verify == nil {
		return nil
	}
	t, err := r.verify(ctx)
	if err != nil {
		return err
	}
	r.trust = t
	r.sum.Faults, r.sum.FaultCount, r.doubted = t.faults()
	return nil
}

// verify checks the whole trail before anything is planned.
func (r *restorer) verify(ctx context.Context) (*trust, error) {
	v, err := verify.Run(ctx, r.trail, *r.o.Verify)
	if err != nil {
		return nil, err
	}
	at, err := time.Parse(time.RFC3339Nano, v.CheckedAt) // By the server's clock, where it is the earlier one.
	if err != nil {
		return nil, fmt.Errorf("the time of the check: %w", err)
	}
	t := &trust{checked: v, latest: at.Add(verify.ClockGrace), refuted: map[digestPlace]bool{}, again: map[string]bool{}}
	for _, f := range v.Notes {
		if f.Kind == verify.NoteLeftBehind {
			t.again[f.Key] = true
		}
	}
	for _, f := range v.Findings {
		if f.Kind == verify.FindingSignature || f.Kind == verify.FindingForeignKey {
			t.refuted[digestPlace{f.Instance, f.Chain, f.Sequence}] = true
		}
	}
	return t, nil
}

// anchored reports whether something outside of the trail can vouch for it.
func (t *trust) anchored() bool { return t.checked.Vouched.Anchored() }

// believe says why a digest is not believed: where something can vouch for the
// trail, because it does not; else because the digest contradicts itself.
func (t *trust) believe(e trail.Entry, d *trail.Digest, sha string) error {
	n := e.Name
	switch {
	case t.anchored() && !t.checked.Vouched.Believe(n.Instance, n.Chain, n.Sequence, sha):
		return errNotVouched
	case t.anchored():
		return nil
	case t.refuted[digestPlace{n.Instance, n.Chain, n.Sequence}]:
		return errContradicted
	case n.Time.After(t.latest), d.EndTime > archive.FormatTime(t.latest):
		return errNotYet
	}
	return nil
}

// unnamed says why a manifest is not believed that no digest names yet.
func (t *trust) unnamed(e trail.Entry) error {
	switch {
	case t.anchored():
		return errUnnamed
	case e.Name.Time.After(t.latest):
		return errNotYet
	}
	return nil
}

// concernsContent reports whether a finding means that something may be missing or
// forged in what is restored. The others are about a host that is silent, as a
// lost one is, and about documents that no file depends on.
func concernsContent(k verify.FindingKind) bool {
	switch k { //nolint:exhaustive // The others are about the trail's future, and about what a restore checks itself.
	case verify.FindingSilent, verify.FindingStale, verify.FindingStopped, verify.FindingConfig, verify.FindingDeleted, verify.FindingReplaced:
		return false
	}
	return true
}

// faults are the findings that concern a restore, for people.
func (t *trust) faults() (list []string, count int64, keys map[string]bool) {
	keys = map[string]bool{}
	for _, k := range t.checked.FoundBy {
		if concernsContent(k.Kind) {
			count += k.Count
		}
	}
	for _, f := range t.checked.Findings {
		if !concernsContent(f.Kind) {
			continue
		}
		keys[f.Key] = f.Key != ""
		if len(list) < maxFaults {
			list = append(list, describe(&f))
		}
	}
	return list, count, keys
}

// describe is the finding in a line.
func describe(f *verify.Finding) string {
	at := f.Key
	if at == "" && f.Chain != "" {
		at = fmt.Sprintf("chain %s digest %d", f.Chain, f.Sequence)
	}
	if at == "" {
		return fmt.Sprintf("%s (%s)", f.Detail, f.Kind)
	}
	return fmt.Sprintf("%s: %s (%s)", at, f.Detail, f.Kind)
}
