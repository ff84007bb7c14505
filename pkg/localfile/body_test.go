package localfile

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// What is sent again is no progress, and a wait for the bandwidth limit is not
// the lack of it.
func TestABodyTellsItsProgress(t *testing.T) {
	b := NewBody(t.Context(), strings.NewReader("content"), 7, nil, new(atomic.Int64))
	now := time.Now()
	if at := b.LastMoved(now); !at.IsZero() {
		t.Errorf("LastMoved = %v before anything was read", at)
	}
	if _, err := io.ReadAll(b); err != nil {
		t.Fatal(err)
	}
	at := b.LastMoved(now)
	if at.Sub(now).Abs() > time.Minute {
		t.Errorf("LastMoved = %v after the content was read at %v", at, now)
	}
	if _, err := b.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(b); err != nil || !b.LastMoved(now).Equal(at) {
		t.Errorf("sending the same bytes again counts as progress (%v)", err)
	}
	b.paced.Store(true)
	if later := now.Add(time.Hour); !b.LastMoved(later).Equal(later) {
		t.Error("a body that waits for the bandwidth limit has not moved")
	}
}

func TestABodyThatIsComparedMayBeReadAgain(t *testing.T) {
	data := pattern(1000, 1)
	path := filepath.Join(t.TempDir(), "f")
	rewrite(t, path, data)
	var sent atomic.Int64
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := NewBody(t.Context(), io.NewSectionReader(f, 0, 1000), 1000, nil, &sent).Comparing(sha256.Sum256(data))
	for range 3 { // As a client does that computes a checksum, or tries again.
		if _, err := io.CopyN(io.Discard, b, 300); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, b); n != 1000 || err != nil || b.Err() != nil {
			t.Fatalf("read %d bytes, %v, %v", n, err, b.Err())
		}
		if _, err := b.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
	for name, spoil := range map[string]func(){
		"another byte": func() { rewrite(t, path, append(data[:999:999], data[999]^1)) },
		"a gap":        func() { rewrite(t, path, data); _, _ = b.Seek(500, io.SeekStart) },
	} {
		_, _ = b.Seek(0, io.SeekStart)
		spoil()
		if n, err := io.Copy(io.Discard, b); n >= 1000 || archive.ClassOf(err) != archive.ClassChanged || !errors.Is(b.Err(), ErrChanged) {
			t.Errorf("%s: read %d bytes, %v; want fewer than the body has, and class changed", name, n, err)
		}
	}
	if errors.Is(b.Err(), fs.ErrNotExist) {
		t.Error("the error is another one")
	}
}
