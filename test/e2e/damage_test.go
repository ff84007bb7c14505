package e2e_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// damages are what can become of a state file while no daemon runs.
func damages() map[string]func(t *testing.T, file string) {
	garble := func(from, size int64) func(t *testing.T, file string) {
		return func(t *testing.T, file string) {
			t.Helper()
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			rng := rand.NewChaCha8([32]byte{1})
			b := make([]byte, size)
			_, _ = rng.Read(b)
			if _, err := f.WriteAt(b, from); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(size int64) func(t *testing.T, file string) {
		return func(t *testing.T, file string) { t.Helper(); truncate(t, file, size) }
	}
	return map[string]func(t *testing.T, file string){
		"torn":                  cut(3*4096 + 100),
		"empty":                 cut(0),
		"garbage at the start":  garble(0, 2*4096),
		"garbage in the middle": garble(3*4096, 64<<10),
		"zeroed": func(t *testing.T, file string) {
			t.Helper()
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			truncate(t, file, 0)
			truncate(t, file, info.Size())
		},
		"a directory": func(t *testing.T, file string) {
			t.Helper()
			remove(t, file)
			write(t, filepath.Join(file, "inside"), "something")
		},
		"another program's": func(t *testing.T, file string) {
			t.Helper()
			writeSynced(t, file, strings.Repeat("SQLite format 3\x00", 4096))
		},
	}
}

// contentOf is what stands at path: a file's bytes, or a directory's names.
func contentOf(t *testing.T, path string) string {
	t.Helper()
	if list, err := os.ReadDir(path); err == nil {
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestADamagedStateIsKeptAndRebuiltWithoutUploads(t *testing.T) {
	for name, damage := range damages() {
		if !thorough && name != "torn" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "settle: 20ms", smallParts)
			for _, f := range []string{"a", "b", "d/c", "d/e/f"} {
				write(t, s.path(f), "content of "+f)
			}
			random(t, s.path("big"), partSize+1, 3)
			s.mustSync(t, 5, 0, 0)
			before := s.bucket.readTrail(t)
			file := filepath.Join(s.state, "state.db")
			damage(t, file)
			damaged := contentOf(t, file)
			s.proxy.Forget()

			d := s.finishes(t)
			kept, err := filepath.Glob(file + ".damaged-*")
			if err != nil || len(kept) != 1 {
				t.Fatalf("kept files: %q, %v, want one", kept, err)
			}
			if got := contentOf(t, kept[0]); got != damaged {
				t.Errorf("what was set aside was changed: %d bytes, want %d", len(got), len(damaged))
			}
			if !strings.Contains(d.stderr.String(), filepath.Base(kept[0])) {
				t.Errorf("the log does not name %s:\n%s", kept[0], tail(d.stderr.String(), 2000))
			}
			if n := s.data("PutObject") + s.data("CreateMultipartUpload"); n != 0 {
				t.Errorf("%d uploads, want none: everything was in the bucket", n)
			}
			s.wantStateLost(t, before)
			s.mustBeInSync(t)
		})
	}
}

// wantStateLost checks that another chain goes on where that of before ended,
// and says why.
func (s *site) wantStateLost(t *testing.T, before trail) {
	t.Helper()
	after := s.bucket.readTrail(t)
	old := before.digests[len(before.digests)-1]
	var first *digest
	for i := range after.digests {
		if d := &after.digests[i]; d.Chain != old.Chain && d.Sequence == 1 {
			first = d
		}
	}
	if first == nil {
		t.Fatalf("no other chain begins in %+v", after.digests)
	}
	if first.Begins != "state-lost" || first.Abandons != old.Chain || first.LeftAt != old.sum {
		t.Errorf("the chain begins %q and leaves %s at %s, want state-lost, %s, %s", first.Begins, first.Abandons, first.LeftAt, old.Chain, old.sum)
	}
	s.bucket.wantTree(t, s.dir, &after)
}

func TestAStateOfANewerReleaseIsLeftAlone(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	s.mustSync(t, 1, 0, 0)
	file := filepath.Join(s.state, "state.db")
	db, err := bolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		return errors.Join(meta.Put([]byte("format"), []byte("99")), meta.Delete([]byte("sum"))) // Its own would be another.
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before := contentOf(t, file)
	s.proxy.Forget()
	for _, command := range []string{"run", "sync"} {
		code, out, errs := commandAs(t, s.uid, s.env, command, "-c", s.file)
		if code != 1 || !strings.Contains(errs, "install that release again or use another state_dir") {
			t.Errorf("%s = %d, want 1 with advice:\n%s", command, code, out+errs)
		}
	}
	if n := len(s.proxy.Ledger()); n != 0 {
		t.Errorf("%d requests, want none", n)
	}
	if after := contentOf(t, file); !bytes.Equal([]byte(after), []byte(before)) {
		t.Error("the file was changed")
	}
	if kept, _ := filepath.Glob(file + ".damaged-*"); len(kept) != 0 {
		t.Errorf("it was set aside as %q", kept)
	}
}
