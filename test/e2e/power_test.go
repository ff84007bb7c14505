package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/crashfs"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// What a power cut leaves of a whole run: the state opens, and every document
// that it says is sealed stands beside it with the bytes that were sealed. They
// could not be made again once their names are taken.
func TestAPowerCutLeavesNoSealedDocumentBehind(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed: no power cut is played")
	}
	cuts := 30
	if thorough {
		cuts = 1000
	}
	s := newSite(t, "", "manifest: {max_records: 5}")
	for i := range 12 {
		write(t, s.path(fmt.Sprintf("f%d", i)), fmt.Sprintf("content %d", i))
	}
	base := t.TempDir()
	file := filepath.Join(base, "log")
	cmd := exec.CommandContext(t.Context(), "strace", append(crashfs.Args(), "-o", file, binary, "sync", "-c", s.file)...)
	cmd.Env = append(environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sync under strace: %v\n%s", err, tail(string(out), 3000))
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	log, err := crashfs.Parse(in, s.state)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed(t), 3))
	documents := 0
	for range cuts {
		moment := rng.IntN(log.Moments())
		left := filepath.Join(base, "left")
		if err := os.Mkdir(left, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := log.Cut(moment, rng, left); err != nil {
			t.Fatal(err)
		}
		documents += s.wantSealed(t, left, moment)
		remove(t, left)
	}
	t.Logf("%d cuts at %d moments, %d sealed documents", cuts, log.Moments(), documents)
	if documents == 0 {
		t.Error("no cut came between the sealing of a document and its acknowledgment")
	}
}

// wantSealed checks the sealed documents of the state directory in left, where
// it stands now, and returns how many there are.
func (s *site) wantSealed(t *testing.T, left string, moment int) (documents int) {
	t.Helper()
	db, err := state.Open(left, state.Options{})
	if err != nil {
		t.Fatalf("cut at %d: %v", moment, err)
	}
	defer func() { _ = db.Close() }()
	if r := db.Report(); r.SetAside != "" {
		t.Fatalf("cut at %d: the state was set aside: %+v", moment, r)
	}
	keys, err := db.Sources()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		src, err := db.Source(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		box, err := src.Outbox()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range box {
			documents++
			body, err := os.ReadFile(filepath.Join(left, strings.TrimPrefix(d.File, s.state)))
			if sum := sha256.Sum256(body); err != nil || hex.EncodeToString(sum[:]) != d.SHA256 {
				t.Errorf("cut at %d: %s was sealed with %d bytes, %d are left (%d of them zero): %v",
					moment, filepath.Base(d.File), d.Size, len(body), bytes.Count(body, []byte{0}), err)
			}
		}
	}
	return documents
}
