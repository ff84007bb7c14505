package trail

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// ErrHash says that a document's bytes are not those that the trail names.
var ErrHash = errors.New("not the bytes that the trail names")

// spoolInMemory is how much of a manifest is kept in memory until its hash is
// known; a larger one waits in an unnamed temporary file.
const spoolInMemory = 1 << 20

// fetchWidth is how many documents are fetched ahead of the one in use.
const fetchWidth = 8

// Trail reads what is under one prefix's _manifests/. It is safe for
// concurrent use and keeps no document. A request that fails, or whose body breaks
// off, is made again for about a minute.
type Trail struct {
	lib     Library
	Prefix  string
	Retrier retrier
}

// NewTrail returns the trail of prefix: as in Digest.Prefix, with a trailing
// slash or "". It makes no request.
func NewTrail(lib Library, prefix string) *Trail { return &Trail{lib: lib, Prefix: prefix} }

// Root returns where the trail is, with a trailing slash.
func (t *Trail) Root() string { return t.Prefix + archive.ReservedDir + "/" }

// Entry is one document by its name.
type Entry struct {
	Name         Name
	Key          string
	Size         int64
	LastModified time.Time
}

// Since returns since when a server has it, or what its name says where no
// server does.
func (e *Entry) Since() time.Time {
	if e.LastModified.IsZero() {
		return e.Name.Time
	}
	return e.LastModified
}

// ChainIndex is one chain by the names of its documents. Digests and manifests
// are sorted by sequence, then number, then key; two digests of one sequence are
// a fork. An instance and an id together are one chain.
type ChainIndex struct {
	Instance, ID string
	Digests      []Entry
	Manifests    []Entry
	Signatures   map[string]Entry // by the digest's key
}

// Index lists every document of a trail, by name.
type Index struct {
	Chains     []ChainIndex // sorted by instance, then by the first name's time, then id
	Configs    []Entry      // configuration objects; Name is empty, as for the ones below
	Keys       []Entry      // public keys and their announcements
	Signatures []Entry      // signatures without a digest
	Others     []Entry      // what no release of this format has written
	// Omitted counts what is under the trail beyond what is kept of each kind.
	Omitted map[string]int64
}

// ErrTooMany says that more documents are under a trail than can be read.
var ErrTooMany = errors.New("there are more documents than can be read")

// Chains lists the chains. It makes one LIST and keeps names only.
func (t *Trail) Chains(ctx context.Context) ([]ChainIndex, error) {
	x, err := t.Index(ctx)
	if n := x.Omitted[OmittedDocuments]; err == nil && n > 0 {
		err = fmt.Errorf("%s: %w: %d, and %d more", t.Root(), ErrTooMany, MaxDocuments, n)
	}
	return x.Chains, err
}

// first returns the time in the first name of c.
func (c *ChainIndex) first() time.Time {
	var at time.Time
	for _, list := range [][]Entry{c.Digests, c.Manifests} {
		if len(list) > 0 && (at.IsZero() || list[0].Name.Time.Before(at)) {
			at = list[0].Name.Time
		}
	}
	return at
}

// Head returns the last digest of c, and false where it has none.
func (c *ChainIndex) Head() (Entry, bool) {
	if len(c.Digests) == 0 {
		return Entry{}, false
	}
	return c.Digests[len(c.Digests)-1], true
}

// Tail returns the manifests behind the last digest of c, which no digest names
// yet: nothing proves them.
func (c *ChainIndex) Tail() []Entry {
	var after uint64
	if h, ok := c.Head(); ok {
		after = h.Name.Sequence
	}
	i, _ := slices.BinarySearchFunc(c.Manifests, after+1, func(e Entry, seq uint64) int { return cmp.Compare(e.Name.Sequence, seq) })
	return c.Manifests[i:]
}

// Digest returns the digest under key and the SHA-256 of its bytes, in hex. A
// document that is no digest is ErrFormat or ErrNewerFormat, and still has its
// hash.
func (t *Trail) Digest(ctx context.Context, key string) (d Digest, sha string, err error) {
	var parse error
	err = t.Get(ctx, key, func(body io.Reader, o archive.Object) error {
		s := NewSum()
		r := io.TeeReader(body, s)
		data, err := readUpTo(r, o.Size, MaxDigestBytes)
		if err != nil {
			return err
		}
		d, parse = DecodeDigest(data)
		_, err = io.Copy(io.Discard, r) // What is too large to parse.
		sha = s.Hex()
		return err
	})
	if err != nil {
		return Digest{}, "", err
	}
	if parse != nil {
		return d, sha, fmt.Errorf("%s: %w", key, parse)
	}
	return d, sha, nil
}

// Get has fn read the document under key, from its start again where its body
// breaks off.
func (t *Trail) Get(ctx context.Context, key string, fn func(body io.Reader, o archive.Object) error) error {
	return t.Retrier.Do(ctx, func() error {
		body, o, err := t.lib.Get(ctx, key)
		if err == nil {
			err = errors.Join(fn(body, o), body.Close())
		}
		if err != nil {
			return fmt.Errorf("get %s: %w", key, err)
		}
		return nil
	})
}

// Records calls fn for each record of a manifest that a digest names, in order.
// The whole of its bytes is read and hashed before fn is called for the first
// time: of a manifest with another hash (ErrHash) fn sees nothing. Up to 1 MiB
// waits in memory until then, more in an unnamed file in the directory for
// temporary files. An error of fn is returned as it is.
func (t *Trail) Records(ctx context.Context, ref archive.ManifestRef, fn func(archive.Record) error) error {
	s, err := t.fetch(ctx, ref.S3Key, ref.SHA256, "")
	if err != nil {
		return err
	}
	defer s.close()
	return s.records(func(r *archive.Record, _ []byte) error { return fn(*r) })
}

// Unproven calls fn for each record of a manifest that no digest names yet, of
// which nothing can be believed but that someone with the right to write put it
// there. The whole is read and checked for its form before fn is called.
func (t *Trail) Unproven(ctx context.Context, key string, fn func(archive.Record) error) error {
	s, err := t.fetch(ctx, key, "", "")
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.records(func(*archive.Record, []byte) error { return nil }); err != nil {
		return err
	}
	return s.records(func(r *archive.Record, _ []byte) error { return fn(*r) })
}

// spooled is a manifest whose hash is known.
type spooled struct {
	key  string
	data []byte   // all of it, or
	file *os.File // unnamed
}

// A hash of "" is not checked, and tempDir may be "".
func (t *Trail) fetch(ctx context.Context, key, sha, tempDir string) (*spooled, error) {
	s := &spooled{key: key}
	var sum *Sum
	err := t.Get(ctx, key, func(body io.Reader, _ archive.Object) error {
		s.close()
		s.data, s.file, sum = nil, nil, NewSum()
		return s.fill(io.TeeReader(body, sum), tempDir)
	})
	if err == nil && sha != "" && sum.Hex() != sha {
		err = fmt.Errorf("%s: %w: its SHA-256 is %s, its digest says %s", key, ErrHash, sum.Hex(), sha)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *spooled) fill(r io.Reader, tempDir string) (err error) {
	var b bytes.Buffer
	n, err := io.CopyN(&b, r, spoolInMemory)
	if errors.Is(err, io.EOF) {
		s.data = b.Bytes()
		return nil
	}
	if err != nil {
		return err
	}
	if s.file, err = safefs.Unnamed(tempDir); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if _, err = s.file.Write(b.Bytes()); err != nil {
		return err
	}
	_, err = io.Copy(s.file, r)
	return err
}

// records calls fn for each record, and for its bytes, which are valid during
// the call.
func (s *spooled) records(fn func(r *archive.Record, raw []byte) error) error {
	var r io.Reader = bytes.NewReader(s.data)
	if s.file != nil {
		if _, err := s.file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		r = s.file
	}
	if err := ReadRecords(r, fn); err != nil {
		return fmt.Errorf("%s: %w", s.key, err)
	}
	return nil
}

func (s *spooled) close() {
	if s.file != nil {
		_ = s.file.Close() // Nothing of it is kept.
	}
}

// fetched is the result of one fetch.
type fetched[T any] struct {
	value T
	err   error
}

// InOrder calls use with the result of fetch for 0 to n-1, in order, while the
// next ones are fetched already: at most fetchWidth at once. It ends with the
// first error of use; what was fetched in vain is dropped.
func InOrder[T any](ctx context.Context, n int, fetch func(ctx context.Context, i int) (T, error), drop func(T), use func(i int, v T, err error) error) error {
	return inOrderBut(ctx, n, func(int) bool { return false }, fetch, drop, use)
}

// EachEntry is inOrder for documents of the trail: a large one is fetched when
// its turn comes, so that only one is in memory.
func EachEntry[T any](ctx context.Context, list []Entry, fetch func(ctx context.Context, i int) (T, error), drop func(T), use func(i int, v T, err error) error) error {
	return inOrderBut(ctx, len(list), func(i int) bool { return list[i].Size >= LargeDocument }, fetch, drop, use)
}

// inOrderBut is inOrder, and fetches those for which late reports true when
// their turn comes.
func inOrderBut[T any](ctx context.Context, n int, late func(i int) bool, fetch func(ctx context.Context, i int) (T, error), drop func(T), use func(i int, v T, err error) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ahead := make([]chan fetched[T], 0, min(n, fetchWidth))
	next := 0
	more := func() {
		if next == n {
			return
		}
		i := next
		next++
		if late(i) {
			ahead = append(ahead, nil)
			return
		}
		c := make(chan fetched[T], 1)
		go func() {
			v, err := fetch(ctx, i)
			c <- fetched[T]{v, err}
		}()
		ahead = append(ahead, c)
	}
	for range min(n, fetchWidth) {
		more()
	}
	var err error
	for i := 0; len(ahead) > 0; i++ {
		c := ahead[0]
		ahead = ahead[1:]
		var f fetched[T]
		switch {
		case c != nil:
			f = <-c
		case err == nil:
			f.value, f.err = fetch(ctx, i)
		}
		if err != nil {
			if c != nil && f.err == nil {
				drop(f.value)
			}
			continue
		}
		more()
		if err = use(i, f.value, f.err); err != nil {
			cancel()
		}
	}
	return err
}
