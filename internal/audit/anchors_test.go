package audit

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	ownChain   = "aaaaaaaa"
	otherChain = "bbbbbbbb"
)

// ownState makes a state whose chain has sealed n digests, of which the last
// waits, and returns what the host knows by it.
func ownState(t *testing.T, n int) *hostTrail {
	t.Helper()
	dir := t.TempDir()
	h := &hostTrail{
		cfg: &config.Config{
			Instance: "app-01", StateDir: dir, Manifest: config.Manifest{LocalDir: filepath.Join(dir, "manifests")},
			Admin: config.Admin{Socket: filepath.Join(dir, "none.sock")},
		},
		source: &config.Source{Name: "data", Bucket: "b", Prefix: "p", Path: "/data"},
	}
	db, err := state.Open(dir, state.Options{Instance: "app-01", MachineID: "0123456789abcdef"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	s, err := db.Source(t.Context(), state.SourceKey{Bucket: "b", Prefix: "p", RealPath: fscheck.RealPath("/data")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.BeginChain(t.Context(), ownChain, archive.BeginsNew, "", ""); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 5, 6, 7, 0, 0, 0, time.UTC)
	for i := range n {
		ch, err := s.Chain()
		if err != nil {
			t.Fatal(err)
		}
		name := trail.Name{Digest: true, Time: at, Instance: "app-01", Chain: ownChain, Sequence: uint64(i + 1)}
		doc := archive.Doc{Kind: archive.KindDigest, Key: "p/_manifests/" + name.Path(), SHA256: strings.Repeat("a", 64)}
		if err := s.SealDigest(t.Context(), doc, ch, at, at); err != nil {
			t.Fatal(err)
		}
		box, err := s.Outbox()
		if err != nil {
			t.Fatal(err)
		}
		if i < n-1 {
			if err := s.Published(t.Context(), box[0].Number); err != nil {
				t.Fatal(err)
			}
		}
	}
	return h
}

// The head that the state knows is an anchor also where the copies are gone, and
// may be missing from the bucket only where it waits.
func TestTheStateIsAnAnchor(t *testing.T) {
	for _, n := range []int{0, 1, 3} {
		list, err := ownState(t, n).anchors(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			if len(list) != 0 {
				t.Errorf("no digest: %+v", list)
			}
			continue
		}
		want := anchor.Anchor{
			Instance: "app-01", Chain: ownChain, Sequence: uint64(n), SHA256: strings.Repeat("a", 64),
			Waiting: true, Local: true, Current: true, From: "the host's state",
		}
		if len(list) != 1 || list[0] != want {
			t.Errorf("%d digests: %+v, want %+v", n, list, want)
		}
	}
}

// Where only the number of waiting documents is known, they are the newest.
func TestOnlyTheNewestDocumentsWait(t *testing.T) {
	key := func(age time.Duration) string {
		return "p/_manifests/" + trail.Name{Digest: true, Time: time.Now().Add(-age).UTC().Truncate(time.Second), Instance: "app-01", Chain: ownChain, Sequence: 1}.Path()
	}
	keys := []string{key(48 * time.Hour), key(23 * time.Hour), key(time.Hour)}
	for _, row := range []struct {
		s    hostState
		want []string
	}{
		{hostState{known: true, outbox: map[string]bool{keys[0]: true}}, keys[:1]},
		{hostState{known: true, outbox: map[string]bool{}}, nil},
		{hostState{known: true}, nil},
		{hostState{known: true, waiting: 2}, keys[1:]},
		{hostState{known: true, waiting: 9}, keys},
		{hostState{}, keys[1:]}, // Nothing is known.
	} {
		var got []string
		for k, waits := range row.s.waits(keys) {
			if waits {
				got = append(got, k)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, row.want) {
			t.Errorf("%+v: %v wait, want %v", row.s, got, row.want)
		}
	}
}

// The chain that the host goes on with is the one of its state, or the one that
// was written last.
func TestTheCurrentChainIsMarked(t *testing.T) {
	at := time.Date(2026, 5, 6, 7, 0, 0, 0, time.UTC)
	copies := func() []anchor.Anchor {
		return []anchor.Anchor{
			{Instance: "app-01", Chain: ownChain, Sequence: 1, SHA256: "a", Written: at},
			{Instance: "app-01", Chain: otherChain, Sequence: 7, SHA256: "b", Written: at.Add(time.Hour)},
		}
	}
	for chain, s := range map[string]hostState{ownChain: {known: true, chain: ownChain, sequence: 1, sha: "a"}, otherChain: {}} {
		for _, a := range s.add(copies(), "app-01") {
			if a.Current != (a.Chain == chain) {
				t.Errorf("%+v: %+v", s, a)
			}
		}
	}
	// What was sealed behind the state's head, once it was asked, may wait.
	s := hostState{known: true, chain: otherChain, sequence: 6, sha: "c"}
	for _, a := range s.add(copies(), "app-01") {
		if a.Waiting != (a.Sequence == 7) {
			t.Errorf("sealed since: %+v", a)
		}
	}
	if list := (&hostState{}).add(nil, "app-01"); len(list) != 0 {
		t.Errorf("nothing known: %+v", list)
	}
}

// Beside no daemon nothing is published, and nobody waits for it.
func TestNoDaemonIsNoReason(t *testing.T) {
	if why := ownState(t, 1).flush(t.Context()); why != "" {
		t.Errorf("flush = %q", why)
	}
}
