package uploader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// A file of nothing but holes costs no reading, the pool's end is not held up by
// it, and what is larger than any object fails by itself.
func TestHugeFilesOfHoles(t *testing.T) {
	r := newRig(t, proven)
	path := filepath.Join(r.dir, "huge")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(6 << 40); err != nil {
		t.Skipf("no file of 6 TiB on this file system: %v", err)
	}
	if err := f.Truncate(10_000*(5<<30) + 1); err == nil {
		r.start()
		r.check(archive.TriggerEvent, "huge")
		r.wantTrail("failed/file")
		r.halt()
	}
	if err := f.Truncate(6 << 40); err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.offer(archive.TriggerEvent, "huge")
	r.until("the progress of the hashing is seen", func() bool {
		l := r.p.InFlight()
		return len(l) == 1 && l[0].Phase == PhaseHash && l[0].Hashed > 0
	})
	ended := make(chan struct{})
	go func() { r.halt(); close(ended) }()
	r.until("the pool has ended", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
}
