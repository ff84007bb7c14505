package uploader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// picky is a store whose puts may be refused by key, or hang.
type picky struct {
	*store
	put func(ctx context.Context, p archive.Put) error
}

func (s *picky) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	if err := s.put(ctx, p); err != nil {
		return archive.Object{}, err
	}
	return s.store.Put(ctx, p)
}

// pickyRig is a rig whose puts put decides about.
func pickyRig(t *testing.T, giveUp time.Duration, put func(context.Context, archive.Put) error) *rig {
	t.Helper()
	r := newRig(t, func(s *Source, o *Options) { proven(s, o); o.GiveUp = giveUp })
	r.src.Objects = &picky{r.store, put}
	var err error
	r.q = queue.New(1000)
	if r.p, err = New(r.q, []Source{r.src}, r.o); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOneRefusedFileDoesNotFailARun(t *testing.T) {
	r := pickyRig(t, 10*time.Minute, func(_ context.Context, p archive.Put) error {
		if strings.HasSuffix(p.Key, "f0100") {
			return remoteError(archive.ClassConfiguration, "AccessDenied", 403, errors.New("denied"))
		}
		return nil
	})
	r.start()
	var paths []string
	for i := range 300 {
		paths = append(paths, fmt.Sprintf("f%04d", i))
		r.write(paths[i], []byte("x"))
	}
	r.look(archive.TriggerSync, paths...)
	n := map[archive.Status]int{}
	for _, o := range r.outcomesSoFar() {
		n[o.Status]++
	}
	if n[archive.StatusFailed] != 1 || n[archive.StatusUploaded] != 299 {
		t.Errorf("outcomes = %v, want 1 failed and 299 uploaded", n)
	}
}

func TestAServerThatAnswersButTakesNothingIsGivenUp(t *testing.T) {
	var sent atomic.Int64
	r := pickyRig(t, 2*time.Second, func(context.Context, archive.Put) error {
		sent.Add(1)
		return remoteError(archive.ClassTransient, "InternalError", 500, errors.New("no space"))
	})
	r.start()
	const files = 20
	for i := range files {
		path := fmt.Sprintf("f%02d", i)
		r.write(path, []byte("x"))
		r.offer(archive.TriggerSync, path)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.q.Source("data").Wait(ctx); err != nil {
		t.Fatalf("Wait = %v, want the files to be given up; destination %+v", err, r.p.Destination("data"))
	}
	in, err := r.src.State.Intents()
	if err != nil {
		t.Fatal(err)
	}
	if len(in) > files {
		t.Errorf("%d announcements for %d files after %d requests, want one a file", len(in), files, sent.Load())
	}
}

func TestADestinationThatHangsLeavesAWorkerToTheOthers(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { proven(s, o); o.Drain = time.Millisecond })
	dir := t.TempDir()
	other := r.src
	other.Name, other.Root, other.RealPath = "other", safefs.NewRoot(dir, safefs.RootOptions{}), dir
	var err error
	if other.State, err = r.db.Source(t.Context(), state.SourceKey{Bucket: "b", Prefix: "x", RealPath: dir}); err != nil {
		t.Fatal(err)
	}
	if err := other.State.BeginChain(t.Context(), "0a1b2c3e", archive.BeginsNew, "", ""); err != nil {
		t.Fatal(err)
	}
	hangs := r.src
	hangs.Objects = &picky{r.store, func(ctx context.Context, _ archive.Put) error { <-ctx.Done(); return ctx.Err() }}
	r.q = queue.New(1000)
	if r.p, err = New(r.q, []Source{hangs, other}, r.o); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * r.o.Workers {
		path := fmt.Sprintf("f%d", i)
		r.write(path, []byte("x"))
		r.offer(archive.TriggerEvent, path)
	}
	r.start()
	r.until("the first source hangs", func() bool { _, in, _ := r.q.Source("data").Depth(); return in >= r.o.Workers-1 })
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("y"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.offerJob(queue.Job{Source: "other", Path: "x", Trigger: archive.TriggerEvent})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.q.Source("other").Wait(ctx); err != nil {
		t.Errorf("the other source waits: %v", err)
	}
}

func TestAFileThatBecameSomethingElseIsGone(t *testing.T) {
	for _, kind := range []string{"symlink", "fifo"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, proven)
			r.start()
			r.write("a", []byte("x"))
			r.look(archive.TriggerEvent, "a")
			p := filepath.Join(r.dir, "a")
			err := os.Remove(p)
			if kind == "fifo" {
				err = errors.Join(err, syscall.Mkfifo(p, 0o644))
			} else {
				err = errors.Join(err, os.Symlink("/etc/hostname", p))
			}
			if err != nil {
				t.Fatal(err)
			}
			r.look(archive.TriggerEvent, "a")
			r.wantTrail("uploaded", "deleted")
			if _, known, err := r.src.State.Get("a"); known || err != nil {
				t.Errorf("the index still has it: %v, %v", known, err)
			}
		})
	}
}
