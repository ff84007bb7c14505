package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// shelf is a trail in memory.
type shelf struct {
	docs map[string]string
	err  error
	asks int
}

func (s *shelf) Get(_ context.Context, key string) (io.ReadCloser, archive.Object, error) {
	d, ok := s.docs[key]
	if !ok {
		return nil, archive.Object{}, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(d)), archive.Object{Key: key}, nil
}

func (s *shelf) List(_ context.Context, _, _ string, fn func(archive.Object) error) error {
	s.asks++
	for k := range s.docs {
		if err := fn(archive.Object{Key: k}); err != nil {
			return err
		}
	}
	return s.err
}

// digest puts the first digest of a chain on the shelf.
func (s *shelf) digest(instance, chain, reason, due string) {
	if due = `"` + due + `"`; due == `""` {
		due = "null"
	}
	s.docs[fmt.Sprintf("p/_manifests/digest_20260301_000000_%s_%s_00000001.json", instance, chain)] = fmt.Sprintf(`{"version":1,"instance":%q,"source":"app",
		"bucket":"b","prefix":"p/","chain":%q,"sequence":1,"start_time":"2026-03-01T00:00:00Z","end_time":"2026-03-01T00:00:00Z","manifests":[],
		"counts":{"uploaded":0,"skipped":0,"failed":0,"deleted":0,"rekeyed":0},"unchanged_by_index":0,"excluded":null,"unreadable":null,"special":null,"scans":[],
		"events":[],"config_sha256":"%064d","s3syncd_version":"1","previous_digest_s3_key":null,"previous_digest_sha256":null,"begins":"new",
		"reason":%q,"next_digest_due":%s,"pending":0,"oldest_pending_since":null}`, instance, chain, 0, reason, due)
}

func TestAChainHasEndedWhenSomethingSaysSo(t *testing.T) {
	now := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	s := &shelf{docs: map[string]string{}}
	s.digest("app-01", "00000001", "stop", "")
	s.digest("app-01", "00000002", "final", "")
	s.digest("app-01", "00000003", "interval", "2026-03-04T11:00:00Z")
	s.digest("app-01", "00000004", "interval", "2026-03-05T11:00:00Z")
	s.digest("app-01", "00000005", "flush", "2026-03-05T13:00:00Z")
	s.digest("app-02", "00000006", "stop", "")
	s.docs["p/_manifests/digest_20260301_000000_app-01_00000007_00000001.json"] = "[]"
	e := &endings{
		trail: trail.NewTrail(s, "p/"), instance: "app-01", taken: []string{"00000009"}, now: func() time.Time { return now },
		log: zap.NewNop(), known: map[string]ending{},
	}
	fresh, old := now.Add(-time.Hour), now.Add(-72*time.Hour)
	for _, row := range []struct {
		name, id string
		wrote    time.Time
		want     bool
	}{
		{"stopped", "app-01/00000001/1", fresh, true},
		{"retired", "app-01/00000002/1", fresh, true},
		{"overdue for a day and an hour", "app-01/00000003/1", fresh, true},
		{"overdue for an hour: an outage, or alive", "app-01/00000004/1", fresh, false},
		{"alive", "app-01/00000005/1", old, false},
		{"another instance's", "app-02/00000006/1", old, false},
		{"its newest digest is none", "app-01/00000007/1", old, false},
		{"without a digest, lately", "app-01/00000008/1", fresh, false},
		{"an operator says so", "app-01/00000009/1", fresh, true},
		{"without a digest for days", "app-01/0000000a/1", old, true},
		{"no id", "?", old, false},
	} {
		o := archive.Object{LastModified: row.wrote, Metadata: map[string]string{archive.MetaID: row.id}}
		if got, err := e.ended(t.Context(), o); got != row.want || err != nil {
			t.Errorf("%s: ended = %v, %v, want %v", row.name, got, err, row.want)
		}
	}
	if s.asks != 1 {
		t.Errorf("the trail was listed %d times, want once", s.asks)
	}
	// A host that was stopped starts again.
	s.digest("app-01", "00000001", "interval", "2026-03-05T13:00:00Z")
	now = now.Add(endedKept)
	if got, err := e.ended(t.Context(), archive.Object{Metadata: map[string]string{archive.MetaID: "app-01/00000001/2"}}); got || err != nil {
		t.Errorf("of a chain that goes on, ended = %v, %v, want false", got, err)
	}
}

func TestAChainThatMayNotBeReadHasNotEnded(t *testing.T) {
	s := &shelf{err: &archive.Error{Class: archive.ClassConfiguration, Op: "ListObjectsV2", Err: fs.ErrPermission}}
	e := &endings{trail: trail.NewTrail(s, "p/"), instance: "app-01", now: time.Now, log: zap.NewNop(), known: map[string]ending{}}
	o := archive.Object{Metadata: map[string]string{archive.MetaID: "app-01/00000001/1"}}
	if got, err := e.ended(t.Context(), o); got || err != nil {
		t.Errorf("ended = %v, %v, want false", got, err)
	}
	s.err = &archive.Error{Class: archive.ClassFile, Op: "ListObjectsV2", Err: errors.New("odd")}
	o.Metadata[archive.MetaID] = "app-01/00000002/1"
	if _, err := e.ended(t.Context(), o); err == nil {
		t.Error("a failed question is an answer")
	}
}
