package manifest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/crashfs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sealerRole makes the test binary a process that seals documents in its working
// directory and prints each one, with its hash, once it is sealed.
const sealerRole = "S3SYNCD_TEST_SEALER"

func playSealer() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	ctx := context.Background()
	db, err := state.Open(filepath.Join(dir, "state"), state.Options{Instance: "app-01"})
	if err != nil {
		return err
	}
	st, err := db.Source(ctx, state.SourceKey{Bucket: "b", Prefix: "p", RealPath: "/data"})
	if err != nil {
		return err
	}
	f, err := New(st, newBucket(), Options{
		Source: "data", Instance: "app-01", Bucket: "b", Mapper: archive.NewMapper("p"),
		FlushInterval: time.Hour, DigestInterval: time.Hour, StopTimeout: time.Hour, MaxRecords: 3, Layout: trail.LayoutHive,
		LocalDir: filepath.Join(dir, "copies", "data"), Version: "test",
		Now: time.Now, Pending: func() (int64, time.Time) { return 0, time.Time{} },
		Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewPedanticRegistry()),
	})
	if err != nil {
		return err
	}
	if err := f.Begin(ctx, state.Report{}); err != nil {
		return err
	}
	told := map[string]bool{}
	for i := range 5 {
		rec := archive.Record{LocalPath: fmt.Sprintf("/data/%d", i), S3Key: fmt.Sprintf("p/%d", i), Status: archive.StatusUploaded, Trigger: archive.TriggerEvent}
		if _, err := st.Commit(ctx, archive.Outcome{Record: &rec}); err != nil {
			return err
		}
		if _, err := f.sealAll(ctx, trail.ReasonFlush); err != nil {
			return err
		}
		box, err := st.Outbox()
		if err != nil {
			return err
		}
		for _, d := range box {
			if rel, err := filepath.Rel(dir, d.File); err == nil && !told[rel] {
				told[rel] = true
				fmt.Println(rel, d.SHA256)
			}
		}
	}
	return errors.Join(f.Close(), db.Close())
}

// Whatever a power cut leaves, a document that is sealed stands under its name with
// the bytes that were sealed.
func TestASealedDocumentOutlivesAPowerCut(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: no power cut is played")
	}
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, file := filepath.Join(base, "host"), filepath.Join(base, "log")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	program, err := os.Executable()
	must(err)
	cmd := exec.CommandContext(t.Context(), strace, append(crashfs.Args(), "-o", file, program)...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), sealerRole+"=1")
	_, err = cmd.Output()
	must(err)
	in, err := os.Open(file)
	must(err)
	defer in.Close()
	log, err := crashfs.Parse(in, dir)
	must(err)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	sealed := 0
	for range 60 {
		moment := rng.IntN(log.Moments())
		left := filepath.Join(base, "left")
		must(os.Mkdir(left, 0o700))
		must(log.Cut(moment, rng, left))
		for line := range strings.Lines(log.Acknowledged(moment)) {
			name, want, _ := strings.Cut(strings.TrimSpace(line), " ")
			sealed++
			if got, err := copies.FileSHA(filepath.Join(left, name)); err != nil || got != want {
				t.Fatalf("cut at %d of %d: %s has the hash %q, want %s: %v", moment, log.Moments(), name, got, want, err)
			}
		}
		must(os.RemoveAll(left))
	}
	if sealed == 0 {
		t.Error("no cut came after a seal")
	}
}
