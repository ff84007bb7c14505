package uploader

import (
	"context"
	"crypto/sha256"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// forgeCRC changes b at from and makes good for it in the four bytes at to, so
// that the CRC-32 of b is what it was.
func forgeCRC(t *testing.T, b []byte, from, to int) {
	t.Helper()
	want := crc32.ChecksumIEEE(b)
	b[from] ^= 0xff
	// The checksum is linear: what each bit of the four bytes does to it.
	clear(b[to : to+4])
	base := crc32.ChecksumIEEE(b)
	var rows [32]uint64 // the effect in the upper half, the bit in the lower
	for i := range rows {
		b[to+i/8] = 1 << (i % 8)
		rows[i] = uint64(crc32.ChecksumIEEE(b)^base)<<32 | 1<<i
		b[to+i/8] = 0
	}
	goal := uint64(want^base) << 32
	for bit := 63; bit >= 32; bit-- {
		i := slices.IndexFunc(rows[:], func(r uint64) bool { return r>>bit == 1 })
		if i < 0 {
			continue
		}
		pivot := rows[i]
		for j := range rows {
			if j != i && rows[j]>>bit&1 == 1 {
				rows[j] ^= pivot
			}
		}
		if goal>>bit&1 == 1 {
			goal ^= pivot
		}
		rows[i] = 0
	}
	for i := range 32 {
		b[to+i/8] |= byte(goal>>i&1) << (i % 8)
	}
	if crc32.ChecksumIEEE(b) != want {
		t.Fatal("the CRC-32 is not what it was")
	}
}

// A page that is mapped and dirty changes without a new time, and whoever writes
// it makes the CRC-32 what it was. The parts that are sent are not what was read
// first: there is no object of them.
func TestBytesThatChangeUnderTheSameCRCAreNeverStored(t *testing.T) {
	const part = 64 << 10
	for name, at := range map[string]int{"in the first part": 100, "in the middle": 5*part + 7, "in the last part": 10*part + 3} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(s *Source, o *Options) { proven(s, o); o.GiveUp = time.Hour })
			was := pattern(10*part+part/2, 3)
			is := slices.Clone(was)
			forgeCRC(t, is[at/part*part:min(len(is), (at/part+1)*part)], at%part, at%part+50)
			if crc32.ChecksumIEEE(is) != crc32.ChecksumIEEE(was) || sha256.Sum256(is) == sha256.Sum256(was) {
				t.Fatal("the forgery shows")
			}
			r.write("big", was)
			opened, err := r.src.Root.Open("big")
			if err != nil {
				t.Fatal(err)
			}
			a := newAttempt(r.p, r.p.dests["data"], nil, queue.Job{Source: "data", Path: "big"})
			a.file.Take(opened)
			_ = opened.File.Close()
			path := filepath.Join(r.dir, "big")
			w := localfile.Watch{Cut: t.Context().Err}
			if a.file.Reading, err = localfile.ReadLarge(w, openFile(t, path), a.file.Fence, part, make([]byte, localfile.ChunkSize)); err != nil {
				t.Fatal(err)
			}
			// The file behind the descriptor is another one with the same fence, as a
			// test cannot hold a page dirty.
			if err := os.WriteFile(path, is, 0o600); err != nil {
				t.Fatal(err)
			}
			changed := &safefs.Opened{File: openFile(t, path)}
			if changed.Stat, err = safefs.Fstat(changed.File); err != nil {
				t.Fatal(err)
			}
			a.file.Take(changed)
			_, _, err = a.write(t.Context(), remote.Decision{Cond: archive.Condition{Absent: true}})
			if archive.ClassOf(err) != archive.ClassChanged {
				t.Errorf("write = %v, want class changed", err)
			}
			if n := r.store.count("Complete"); n != 0 {
				t.Errorf("Complete was called %d times", n)
			}
			if _, _, ok := r.store.object("pre/big"); ok {
				t.Error("an object was made of two readings")
			}
			if in, err := r.src.State.Intents(); err != nil || len(in) != 0 {
				t.Errorf("Intents = %+v, %v, want none", in, err)
			}
		})
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A file that moves after its last part was sent, with the same bytes in each, is
// not completed: the fence is looked at once more.
func TestAFileThatMovesBeforeCompleteIsNotCompleted(t *testing.T) {
	r := newRig(t, proven)
	requeued := make(chan string, 10)
	r.p.dests["data"].src.Requeue = func(p string) { requeued <- p }
	data := pattern(300<<10, 3)
	r.write("big", data)
	var left atomic.Int32
	left.Store(5)
	r.p.dests["data"].store.Multipart = &lastPart{store: r.store, after: func() {
		if left.Add(-1) == 0 {
			r.age("big", time.Minute)
		}
	}}
	r.start()
	r.look(archive.TriggerEvent, "big")
	if got := <-requeued; got != "big" {
		t.Errorf("requeued %q, want big", got)
	}
	if n := r.store.count("Complete"); n != 0 {
		t.Errorf("Complete was called %d times for a file that moved before", n)
	}
	r.wantTrail()
	r.look(archive.TriggerEvent, "big")
	r.wantObject("big", data)
}

// lastPart calls after when a part has been stored.
type lastPart struct {
	*store
	after func()
}

func (s *lastPart) UploadPart(ctx context.Context, key, id string, n int32, body io.ReadSeeker, size int64, crc uint32) (archive.Part, error) {
	p, err := s.store.UploadPart(ctx, key, id, n, body, size, crc)
	s.after()
	return p, err
}

// An entry whose file was read right after it was written proves nothing by its
// fence: it is read again, once.
func TestARacyEntryIsReadAgain(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("content"))
	r.look(archive.TriggerStartup, "a")
	e := r.entry("a")
	e.Racy = true
	e.MD5, e.SHA256 = [16]byte{1}, [32]byte{} // What stood there in the same tick of the clock.
	if _, err := r.src.State.Commit(t.Context(), archive.Outcome{Path: "a", Entry: &e}); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded", "uploaded")
	if e := r.entry("a"); e.Racy || e.MD5 == [16]byte{1} {
		t.Errorf("entry %+v, want one of a reading that is not racy", e)
	}
}

// The source is looked at before and after the file is: one that is swapped in
// between has deleted nothing.
func TestASourceThatIsSwappedDuringTheLookHasDeletedNothing(t *testing.T) {
	for _, deletes := range []string{archive.DeletesKeep, archive.DeletesMirror} {
		for swapped := range 3 { // Before the look, during it, after it.
			r := newRig(t, func(s *Source, o *Options) {
				proven(s, o)
				s.Deletes = deletes
			})
			var looks atomic.Int32
			looks.Store(100)
			r.p.dests["data"].src.Intact = func(safefs.Identity, string) bool { return looks.Add(-1) >= 0 }
			r.start()
			r.write("a", []byte("x"))
			r.look(archive.TriggerStartup, "a")
			r.remove("a")
			looks.Store(int32(swapped))
			r.confirmGone("a")
			r.idle()
			if swapped == 2 {
				r.wantTrail("uploaded", "deleted")
				continue
			}
			r.wantTrail("uploaded")
			r.wantObject("a", []byte("x"))
		}
	}
}
