package manifest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

var (
	errBroken = archive.Classified(archive.ClassTransient, "GetObject", io.ErrUnexpectedEOF)
	errDenied = &archive.Error{Class: archive.ClassConfiguration, Op: "GetObject", Code: "AccessDenied", Status: 403, Err: fs.ErrPermission}
)

// breaking is a hook for bodies: those of the keys that bad selects break off in
// the middle, the first times of each.
func breaking(times int, bad func(key string) bool) func(key string, data []byte) io.Reader {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(key string, data []byte) io.Reader {
		mu.Lock()
		defer mu.Unlock()
		if seen[key]++; !bad(key) || times >= 0 && seen[key] > times {
			return bytes.NewReader(data)
		}
		return io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(errBroken))
	}
}

func keyIs(key string) func(string) bool { return func(k string) bool { return k == key } }

func everyKey(string) bool { return true }

// Each document of a trail in turn cannot be read: it is named, and all the rest
// is checked and holds.
func TestVerifyNamesWhatItCouldNotRead(t *testing.T) {
	s := publishTrail(t, 3, func(o *Options) { o.MaxRecords = 2 })
	for key := range s.objects {
		for name, spoil := range map[string]func(b *bucket){
			"refused": func(b *bucket) {
				b.fault = func(op, k string) error {
					if op == "GET" && k == key {
						return errDenied
					}
					return nil
				}
			},
			"broken": func(b *bucket) { b.body = breaking(-1, keyIs(key)) },
		} {
			synctest.Test(t, func(t *testing.T) {
				b, _ := s.library(nil).(*bucket)
				spoil(b)
				v := s.verify(t, b, nil)
				if !slices.ContainsFunc(v.Findings, func(f verify.Finding) bool { return f.Key == key }) || v.Clean || v.Unchecked != int64(len(v.Findings)) {
					t.Errorf("%s, %s: found %+v, %d unchecked", key, name, v.Findings, v.Unchecked)
				}
				for _, f := range v.Findings {
					if f.Kind != verify.FindingUnchecked {
						t.Errorf("%s, %s: also found %+v", key, name, f)
					}
				}
				if c := v.Chains[0]; c.FirstSequence != 1 || c.LastSequence != 4 {
					t.Errorf("%s, %s: the chain is %+v", key, name, c)
				}
			})
		}
	}
}

// What breaks off and can be read later is no fault of the trail.
func TestVerifyReadsABrokenBodyAgain(t *testing.T) {
	s := publishTrail(t, 2, nil)
	synctest.Test(t, func(t *testing.T) {
		b, _ := s.library(nil).(*bucket)
		b.body = breaking(3, everyKey)
		wantKinds(t, s.verify(t, b, nil), nil, "stopped")
	})
}

func TestVerifyFailsOnlyWhereNothingCouldBeRead(t *testing.T) {
	s := publishTrail(t, 2, nil)
	synctest.Test(t, func(t *testing.T) {
		b, _ := s.library(nil).(*bucket)
		b.fault = func(op, _ string) error {
			if op == "GET" {
				return errDenied
			}
			return nil
		}
		if _, err := verify.Run(t.Context(), trail.NewTrail(b, "p/"), verify.Options{Bucket: "b", Now: s.now}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Verify = %v, want the refusal", err)
		}
		b.fault = func(op, key string) error {
			if op == "GET" && key != s.documents("digest_")[0] {
				return errDenied
			}
			return nil
		}
		if v := s.verify(t, b, nil); v.Clean || v.Unchecked < 5 {
			t.Errorf("with one digest: %+v", v.Findings)
		}
	})
}

// An outage in the middle is waited for once, not once a document.
func TestReadersShareAnOutage(t *testing.T) {
	s := publishTrail(t, 9, func(o *Options) { o.MaxRecords = 1 })
	synctest.Test(t, func(t *testing.T) {
		b, _ := s.library(nil).(*bucket)
		n := 0
		b.fault = func(op, _ string) error {
			if n++; op == "GET" && n > 10 {
				return errBroken
			}
			return nil
		}
		v := s.verify(t, b, nil)
		if v.Unchecked < 8 {
			t.Errorf("%d unchecked: %+v", v.Unchecked, v.Findings)
		}
		if n > 1000 {
			t.Errorf("%d requests were made", n)
		}
	})
}

func history(t *testing.T, l trail.Library, key string) (ids, faults []string) {
	t.Helper()
	err := trail.NewTrail(l, "p/").History(t.Context(), trail.HistoryQuery{
		Match:    func(r *archive.Record) bool { return r.S3Key == key },
		Distrust: func(key string, err error) error { faults = append(faults, key+": "+err.Error()); return nil },
	}, func(it trail.HistoryItem) error { ids = append(ids, it.Record.SHA256); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return ids, faults
}

func TestHistoryReadsOnBehindWhatItCannotRead(t *testing.T) {
	l := newLibrary()
	m, _ := l.add(t, "app-01", "0a1b2c3d", 1, true, nil, rec(archive.StatusUploaded, "a", atTen, content("one", "")))
	l.add(t, "app-01", "0a1b2c3d", 2, true, nil, rec(archive.StatusUploaded, "a", atEleven, content("two", "")))
	_, last := l.add(t, "app-01", "0a1b2c3d", 3, true, nil, rec(archive.StatusUploaded, "a", atEleven, content("three", "")))
	synctest.Test(t, func(t *testing.T) {
		l.body = breaking(2, everyKey)
		ids, faults := history(t, l, "p/a")
		wantLines(t, ids, "one", "two", "three")
		wantLines(t, faults)
		l.body = breaking(-1, func(k string) bool { return k == m || k == last })
		ids, faults = history(t, l, "p/a")
		wantLines(t, ids, "two")
		if len(faults) != 2 || !strings.HasPrefix(faults[0], m+": ") || !strings.HasPrefix(faults[1], last+": ") {
			t.Errorf("faults %q", faults)
		}
	})
}
