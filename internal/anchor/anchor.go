// Package anchor keeps what is known of a trail outside it: digests that a
// clean verification has seen, in an anchor file, and those that a host has copies
// of. A trail that was written again does not have them.
package anchor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/strictjson"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// anchorVersion is the version of an anchor file.
const anchorVersion = 1

// anchorFiles is the format of anchor files.
var anchorFiles = strictjson.Of(archive.MaxNumber, File{}) //nolint:gochecknoglobals // It is computed once.

// File keeps the heads that were seen by clean verifications, so that a
// later one notices an end that was taken away or written again.
type File struct {
	Version int     `json:"version"`
	Trails  []Heads `json:"trails"`
}

// Heads are the heads of one trail.
type Heads struct {
	Bucket string   `json:"bucket"`
	Prefix string   `json:"prefix"`
	SeenAt string   `json:"seen_at"`
	Heads  []Anchor `json:"heads"`
}

// Read reads an anchor file; one that is not there yet is empty.
func Read(path string) (*File, error) {
	f := &File{Version: anchorVersion, Trails: []Heads{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, trail.ErrFormat, err)
	}
	switch {
	case f.Version > anchorVersion:
		return nil, fmt.Errorf("%s: %w: version %d", path, trail.ErrNewerFormat, f.Version)
	case f.Version != anchorVersion:
		return nil, fmt.Errorf("%s: %w: it keeps no heads", path, trail.ErrFormat)
	}
	if err := anchorFiles.Check(data); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, trail.ErrFormat, err)
	}
	return f, nil
}

// Of returns what is known of a trail.
func (f *File) Of(bucket, prefix string) []Anchor {
	for i := range f.Trails {
		if t := &f.Trails[i]; t.Bucket == bucket && t.Prefix == prefix {
			heads := slices.Clone(t.Heads)
			for i := range heads {
				heads[i].From = "seen at " + t.SeenAt
			}
			return heads
		}
	}
	return nil
}

// Note records the heads of a clean verification. Heads of chains that it did
// not look at stay. The first time that a trail is seen its heads are taken for
// what they are; later on, a chain that nothing vouches for does not come to
// vouch for others by having been seen.
func (f *File) Note(bucket, prefix string, heads []Anchor, now time.Time) {
	i := slices.IndexFunc(f.Trails, func(t Heads) bool { return t.Bucket == bucket && t.Prefix == prefix })
	first := i < 0
	if first {
		i = len(f.Trails)
		f.Trails = append(f.Trails, Heads{Bucket: bucket, Prefix: prefix})
	}
	t := &f.Trails[i]
	t.SeenAt = archive.FormatTime(now)
	for _, h := range heads {
		h.Unvouched = h.Unvouched && !first
		t.Heads = slices.DeleteFunc(t.Heads, func(o Anchor) bool { return o.Instance == h.Instance && o.Chain == h.Chain })
		t.Heads = append(t.Heads, h)
	}
}

// Write replaces the file at path, or leaves it as it was.
func (f *File) Write(path string) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return safefs.WriteFile(path, append(data, '\n'), 0o600)
}

// Local returns the digests that a host has copies of, and the ones that
// these say are before them, of the trail in the bucket: a source that had another
// destination before has copies of that trail as well. The keys of all manifests
// and digests, in the order in which they were written, go to waits, which returns
// those that may not be published yet.
func Local(ctx context.Context, local *trail.Trail, bucket string, waits func(keys []string) map[string]bool) ([]Anchor, error) {
	chains, err := local.Chains(ctx)
	if err != nil {
		return nil, err
	}
	waiting := waits(written(chains))
	var anchors []Anchor
	for i := range chains {
		list := chains[i].Digests
		fetch := func(ctx context.Context, i int) (c copiedDigest, err error) {
			c.d, c.sha, err = local.Digest(ctx, list[i].Key)
			if errors.Is(err, trail.ErrFormat) || errors.Is(err, trail.ErrNewerFormat) {
				err = nil // Its hash alone is compared.
			}
			return c, err
		}
		err := trail.InOrder(ctx, len(list), fetch, func(copiedDigest) {}, func(i int, c copiedDigest, err error) error {
			if errors.Is(err, fs.ErrNotExist) || c.elsewhere(bucket, local.Prefix) {
				return nil // Swept by now, or of another trail.
			}
			anchors = append(anchors, c.anchors(list[i], i == 0, waiting)...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return anchors, nil
}

// copiedDigest is a host's copy of a digest; d is empty where the file is not a digest.
type copiedDigest struct {
	d   trail.Digest
	sha string
}

// elsewhere reports whether the digest says that it is of another trail.
func (c *copiedDigest) elsewhere(bucket, prefix string) bool {
	return c.d.Version > 0 && (c.d.Bucket != bucket || c.d.Prefix != prefix)
}

// anchors returns the digest, and of the first copy of a chain also the one that it
// says is before it.
func (c *copiedDigest) anchors(e trail.Entry, first bool, waiting map[string]bool) (list []Anchor) {
	n := e.Name
	a := Anchor{Instance: n.Instance, Chain: n.Chain, Local: true, From: "the host's copy", Written: n.Time}
	if first && c.d.PreviousDigestSHA256 != nil && n.Says(&c.d) == nil {
		before := a
		before.Sequence, before.SHA256 = n.Sequence-1, *c.d.PreviousDigestSHA256
		before.Waiting = waiting[*c.d.PreviousDigestS3Key]
		list = append(list, before)
	}
	a.Sequence, a.SHA256, a.Waiting = n.Sequence, c.sha, waiting[e.Key]
	return append(list, a)
}

// written lists the documents of some chains in the order in which a host wrote
// them.
func written(chains []trail.ChainIndex) []string {
	var all []trail.Entry
	for i := range chains {
		all = append(append(all, chains[i].Digests...), chains[i].Manifests...)
	}
	slices.SortFunc(all, func(a, b trail.Entry) int {
		if order := cmp.Or(a.Name.Time.Compare(b.Name.Time), strings.Compare(a.Name.Chain, b.Name.Chain)); order != 0 {
			return order
		}
		if a.Name.Before(b.Name) {
			return -1
		}
		return 1
	})
	keys := make([]string, len(all))
	for i := range all {
		keys[i] = all[i].Key
	}
	return keys
}

// Copies is a directory of copies, and where it says that it was copied from.
type Copies struct {
	Trail  *trail.Trail
	Bucket string
	Prefix string // as in Digest.Prefix
	Dir    string
}

// OpenCopies looks for the trails in a directory: the copies of one trail, with
// or without their _manifests/, or of several in directories of their own, as
// manifest.local_dir has them.
func OpenCopies(ctx context.Context, dir string) ([]Copies, error) {
	candidates := []string{dir, dir + "/" + archive.ReservedDir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != archive.ReservedDir {
			candidates = append(candidates, dir+"/"+e.Name(), dir+"/"+e.Name()+"/"+archive.ReservedDir)
		}
	}
	var found []Copies
	for i, c := range candidates {
		if info, err := os.Lstat(c); err != nil || !info.IsDir() {
			continue
		}
		one, err := openCopy(ctx, c)
		if err != nil {
			return nil, err
		}
		if one != nil {
			found = append(found, *one)
			if i < 2 {
				return found, nil
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s holds no digest of an audit trail: %w", dir, fs.ErrNotExist)
	}
	return found, nil
}

// openCopy opens the copies of one trail, nil where dir holds no digest.
func openCopy(ctx context.Context, dir string) (*Copies, error) {
	lib, err := trail.DirLibrary(dir, archive.ReservedDir+"/")
	if err != nil {
		return nil, err
	}
	t := trail.NewTrail(lib, "")
	chains, err := t.Chains(ctx)
	if err != nil {
		return nil, err
	}
	for i := range chains {
		for _, e := range chains[i].Digests {
			d, _, err := t.Digest(ctx, e.Key)
			if err != nil {
				continue // Another one may tell; this one is found when the trail is checked.
			}
			lib, err := trail.DirLibrary(dir, d.Prefix+archive.ReservedDir+"/")
			if err != nil {
				return nil, err
			}
			return &Copies{Trail: trail.NewTrail(lib, d.Prefix), Bucket: d.Bucket, Prefix: d.Prefix, Dir: strings.TrimSuffix(dir, "/"+archive.ReservedDir)}, nil
		}
	}
	return nil, nil //nolint:nilnil // No trail is not an error here.
}

// Anchor is a digest that something outside the trail knows.
type Anchor struct {
	Instance string `json:"instance,omitempty"` // "": of whatever chain has it
	Chain    string `json:"chain,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"` // 0: not known
	SHA256   string `json:"sha256"`
	// Unvouched: it was there, and nothing vouched for its chain. It has to be
	// there still, and vouches for nothing.
	Unvouched bool `json:"unvouched,omitempty"`
	// Waiting: it may not be published yet.
	Waiting bool `json:"-"`
	// Local: it is what the host knows, which for a chain that was left may be a
	// digest that was never published.
	Local bool `json:"-"`
	// Current: it is of the chain that the host continues.
	Current bool `json:"-"`
	// Written is when the host wrote it, zero: not known.
	Written time.Time `json:"-"`
	// From says who knows it, for people.
	From string `json:"-"`
}
