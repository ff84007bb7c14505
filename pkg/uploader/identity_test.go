package uploader

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

// Where inodes and ctimes mean nothing, size and mtime decide: what has the same
// is not read again, and a ctime that moves during a reading is none of its
// business.
func TestIdentityBySizeAndMtime(t *testing.T) {
	for _, loose := range []bool{true, false} {
		r := newRig(t, func(s *Source, _ *Options) {
			s.Proven = true
			s.Root = safefs.NewRoot(s.RealPath, safefs.RootOptions{SizeMtime: loose})
		})
		r.start()
		r.write("a", []byte("one"))
		old := time.Now().Add(-time.Hour)
		path := filepath.Join(r.dir, "a")
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		r.check(archive.TriggerRescan, "a")
		// Another inode and another ctime, with the same size, mtime and content.
		if err := os.WriteFile(path+".new", []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chtimes(path+".new", old, old), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		hashed := testutil.ToFloat64(r.o.Metrics.hashed.WithLabelValues("data"))
		r.check(archive.TriggerRescan, "a")
		if again := testutil.ToFloat64(r.o.Metrics.hashed.WithLabelValues("data")) > hashed; again == loose {
			t.Errorf("identity by size and mtime: %v; the file was read again: %v", loose, again)
		}
		file, err := r.src.Root.Open("a")
		if err != nil {
			t.Fatal(err)
		}
		fence := localfile.FenceOf(file.Stat)
		if err := os.Chmod(path, 0o640); err != nil { // Moves ctime.
			t.Fatal(err)
		}
		err = localfile.SameFence(file.File, fence)
		if (err == nil) != loose {
			t.Errorf("identity by size and mtime: %v; sameFence = %v", loose, err)
		}
		if !loose && !strings.Contains(err.Error(), "inode or ctime changed") {
			t.Errorf("sameFence = %v, want it to say that only inode or ctime changed", err)
		}
		if err := errors.Join(os.WriteFile(path, []byte("two"), 0o600), localfile.SameFence(file.File, fence)); err == nil {
			t.Error("sameFence = nil for a file with another mtime")
		}
		_ = file.File.Close()
	}
}
