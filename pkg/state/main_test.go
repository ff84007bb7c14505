package state

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// TestMain also plays the other process of the tests that need one.
func TestMain(m *testing.M) {
	if role := os.Getenv("STATE_TEST_ROLE"); role != "" {
		os.Exit(playRole(role))
	}
	goleak.VerifyTestMain(m)
}

var testKey = SourceKey{Bucket: "bucket", Prefix: "backups/app", RealPath: "/srv/app"}

const testChain = "0011aabb"

// clock is a settable Options.Now.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func testOptions() Options {
	return Options{Instance: "app-01", MachineID: "0123456789abcdef"}
}

// openDB opens dir and closes it at the end of the test if the test has not.
func openDB(tb testing.TB, dir string, o Options) *DB {
	tb.Helper()
	db, err := Open(dir, o)
	if err != nil {
		tb.Fatalf("Open(%s) = %v, want nil", dir, err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// openSourceWith opens dir and the test source in it, with a chain begun.
func openTestSource(tb testing.TB, dir string) (*DB, *Source) {
	tb.Helper()
	db := openDB(tb, dir, testOptions())
	s := must(db.Source(tb.Context(), testKey))(tb)
	if c := must(s.Chain())(tb); c.ID == "" {
		check(tb, s.BeginChain(tb.Context(), testChain, archive.BeginsNew, "", ""))
	}
	return db, s
}

// must returns v unless err says otherwise.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatalf("unexpected error: %v", err)
		}
		return v
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("unexpected error: %v", err)
	}
}

// closeDB closes db and fails the test if that fails.
func closeDB(tb testing.TB, db *DB) {
	tb.Helper()
	if err := db.Close(); err != nil {
		tb.Fatalf("Close() = %v, want nil", err)
	}
}

// testEntry returns a plausible entry that differs for each n.
func testEntry(n int) archive.Entry {
	return archive.Entry{
		Fence:      archive.Fence{Dev: 7, Ino: uint64(1000 + n), Size: int64(n), MtimeNs: 1_700_000_000_000_000_000 + int64(n), CtimeNs: 1_700_000_000_000_000_500},
		Attributes: archive.Attributes{Mode: 0o644, UID: 1000, GID: 100},
		Stored:     true, MD5: [16]byte{1, byte(n)}, SHA256: [32]byte{2, byte(n)},
		ETag: "d41d8cd98f00b204e9800998ecf8427e", VersionID: "v-" + string(rune('a'+n%26)),
		SSE: "aws:kms", KMSKeyID: "arn:aws:kms:us-east-1:123456789012:key/00000000-1111-2222-3333-444444444444",
		Attempt: uint64(n + 1),
	}
}

// uploaded returns the outcome of an upload of path.
func uploaded(path string, n int) archive.Outcome {
	e := testEntry(n)
	r := &archive.Record{S3Key: "backups/app/" + path, Status: archive.StatusUploaded, Trigger: archive.TriggerEvent, Source: "app", Instance: "app-01"}
	r.SetPath(path)
	r.SetAttributes(e.Fence, e.Attributes)
	return archive.Outcome{Path: path, Entry: &e, Record: r, Key: r.S3Key}
}
