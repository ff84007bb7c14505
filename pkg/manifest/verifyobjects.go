package manifest

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// ObjectStore is the bucket whose objects a trail tells of.
type ObjectStore interface {
	Library
	// Head asks for one object; an absent one is io/fs.ErrNotExist.
	Head(ctx context.Context, key string) (state.Object, error)
	// ListVersions calls fn for all versions and delete markers under prefix,
	// behind those of the key after.
	ListVersions(ctx context.Context, prefix, after string, fn func(state.ObjectVersion) error) error
}

// ObjectOptions say how objects are compared with the trail.
type ObjectOptions struct {
	Instance string
	Deep     float64 // percent of the objects to download and hash, 0 to 100
	Seed     uint64  // chooses them
	Workers  int     // requests at once
	TempDir  string
	Memory   int64 // of the sort
	// Progress is told how many objects were compared; nil: nobody.
	Progress func(done int64)
}

// ObjectSummary is what was compared.
type ObjectSummary struct {
	Records    int64   `json:"records"`    // keys that the trail tells of
	Compared   int64   `json:"compared"`   // with a HEAD
	Deleted    int64   `json:"deleted"`    // the trail says that they are gone
	Downloaded int64   `json:"downloaded"` // and hashed
	Bytes      int64   `json:"downloaded_bytes"`
	Deep       float64 `json:"deep_percent"`
	Seed       uint64  `json:"seed"`
	Foreign    int64   `json:"foreign"` // under the prefix, and in no record
}

// objectCheck compares objects with a trail.
type objectCheck struct {
	v       *Verification
	t       *Trail
	objects ObjectStore
	o       ObjectOptions
	chains  map[chainKey]time.Time // those that are there, and when their newest document was named

	mu           sync.Mutex
	found, noted findings
	sum          ObjectSummary
	err          error
}

// CheckObjects compares the newest record of each key with what S3 says of the
// object, downloads and hashes o.Deep percent of them, and lists what stands
// under the prefix without a record, and what was deleted or replaced under the
// trail. Findings and a summary are added to v. Like Newest it takes little
// memory for any number of records. An error says that it did not get to its
// end.
func (v *Verification) CheckObjects(ctx context.Context, t *Trail, objects ObjectStore, o ObjectOptions) error {
	c := &objectCheck{v: v, t: t, objects: objects, o: o, chains: map[chainKey]time.Time{}}
	c.sum.Deep, c.sum.Seed = o.Deep, o.Seed
	x, err := t.Index(ctx)
	if err != nil {
		return err
	}
	for i := range x.Chains {
		ch := &x.Chains[i]
		newest := ch.first()
		for _, list := range [][]Entry{ch.Digests, ch.Manifests} {
			if n := len(list); n > 0 && list[n-1].Name.Time.After(newest) {
				newest = list[n-1].Name.Time
			}
		}
		c.chains[chainKey{ch.Instance, ch.ID}] = newest
	}
	if err := c.versions(ctx); err != nil {
		return err
	}
	if err := c.compareAll(ctx); err != nil {
		return err
	}
	byKey := func(a, b Finding) int { return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(a.Kind, b.Kind)) }
	slices.SortFunc(c.found.list, byKey)
	slices.SortFunc(c.noted.list, byKey)
	v.Objects = &c.sum
	v.conclude(&c.found, &c.noted)
	return nil
}

// versions looks for delete markers and noncurrent versions under the trail.
func (c *objectCheck) versions(ctx context.Context) error {
	after := ""
	err := again(ctx, func() error {
		return c.objects.ListVersions(ctx, c.t.root(), after, func(v state.ObjectVersion) error {
			if v.Key != after {
				after = v.Key
			}
			f := Finding{Key: v.Key}
			switch {
			case strings.HasPrefix(v.Key, c.t.root()+canaryDir):
				return nil
			case v.DeleteMarker:
				f.Kind, f.Detail = FindingDeleted, fmt.Sprintf("it was deleted at %s (version %s)", state.FormatTime(v.LastModified), v.VersionID)
			case !v.Current:
				f.Kind, f.Detail = FindingReplaced, fmt.Sprintf("version %s of %s is not the current one", v.VersionID, state.FormatTime(v.LastModified))
			default:
				return nil
			}
			c.found.add(f)
			return nil
		})
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, state.ErrUnsupported) {
		c.noted.add(Finding{Kind: NoteUnchecked, Detail: "versions under the trail were not listed: " + err.Error()})
		return nil
	}
	return err
}

// objectJob is one key to compare.
type objectJob struct {
	key string
	rec *state.Record // nil: the trail does not tell of it
}

// compareAll merges the newest records with a listing of the prefix.
func (c *objectCheck) compareAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := make(chan objectJob)
	var wg sync.WaitGroup
	for range max(1, c.o.Workers) {
		wg.Go(func() {
			for j := range jobs {
				if err := c.compare(ctx, j); err != nil {
					c.fail(err)
					cancel()
				}
			}
		})
	}
	send := func(j objectJob) error {
		select {
		case jobs <- j:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := c.merge(ctx, send)
	close(jobs)
	wg.Wait()
	if c.err != nil {
		return c.err
	}
	return err
}

func (c *objectCheck) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// merge sends every key of the trail or of the listing once.
func (c *objectCheck) merge(ctx context.Context, send func(objectJob) error) error {
	l := c.list(ctx)
	err := c.t.Newest(ctx, c.query(), func(r state.Record) error {
		if err := l.before(r.S3Key, send); err != nil {
			return err
		}
		l.skip(r.S3Key)
		return send(objectJob{key: r.S3Key, rec: &r})
	})
	if err == nil {
		err = l.before("", send)
	}
	return errors.Join(err, l.stop())
}

// listing is the keys under a prefix, one at a time.
type listing struct {
	root   string // of the trail, which is left out
	keys   chan string
	next   string
	more   bool
	cancel context.CancelFunc
	done   chan error
}

// list begins to list the prefix.
func (c *objectCheck) list(ctx context.Context) *listing {
	ctx, cancel := context.WithCancel(ctx)
	l := &listing{root: c.t.root(), keys: make(chan string, 1024), cancel: cancel, done: make(chan error, 1)}
	go func() {
		defer close(l.keys)
		l.done <- listAll(ctx, c.objects, c.t.prefix, "", func(o state.Object) error {
			if strings.HasPrefix(o.Key, l.root) {
				return nil
			}
			select {
			case l.keys <- o.Key:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	l.advance()
	return l
}

func (l *listing) advance() { l.next, l.more = <-l.keys }

// before sends the listed keys before key, all that are left for "".
func (l *listing) before(key string, send func(objectJob) error) error {
	for ; l.more && (key == "" || l.next < key); l.advance() {
		if err := send(objectJob{key: l.next}); err != nil {
			return err
		}
	}
	return nil
}

// skip passes key, where it is the next.
func (l *listing) skip(key string) {
	if l.more && l.next == key {
		l.advance()
	}
}

// stop ends the listing and returns its error, once; one that was cut short is
// none.
func (l *listing) stop() error {
	ended := !l.more
	l.cancel()
	for range l.keys { // Until the listing has ended.
	}
	l.more = false
	select {
	case err := <-l.done:
		if !ended && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	default:
		return nil
	}
}

// query asks for the newest records; documents that cannot be believed were
// found when the trail was checked.
func (c *objectCheck) query() Query {
	return Query{
		Instance: c.o.Instance, TempDir: c.o.TempDir, Memory: c.o.Memory,
		Distrust: func(_ string, err error) error {
			if errors.Is(err, ErrHash) || errors.Is(err, ErrFormat) || errors.Is(err, ErrNewerFormat) || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		},
	}
}

// compare checks one key.
func (c *objectCheck) compare(ctx context.Context, j objectJob) error {
	gone := j.rec != nil && j.rec.Status == state.StatusDeleted
	if gone {
		c.count(func(s *ObjectSummary) { s.Records++; s.Deleted++ })
		if j.rec.Attempt == 0 {
			return nil // The object may stay.
		}
	}
	var o state.Object
	err := again(ctx, func() (err error) {
		o, err = c.objects.Head(ctx, j.key)
		return err
	})
	absent := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !absent:
		return err
	case gone && !absent:
		c.differ(j.rec, &o, FindingObjectContent, "the trail says that it was deleted in S3, and it is there")
	case j.rec == nil && !absent:
		c.unlisted(&o)
	case j.rec != nil && !gone:
		return c.present(ctx, j.rec, &o, absent)
	}
	return nil
}

// present checks an object that the trail says is there.
func (c *objectCheck) present(ctx context.Context, r *state.Record, o *state.Object, absent bool) error {
	c.count(func(s *ObjectSummary) { s.Records++; s.Compared++ })
	if absent {
		c.object(FindingObjectMissing, r, "the trail says that it is there")
		return nil
	}
	if c.head(r, o) && c.chosen(r.S3Key) {
		return c.download(ctx, r)
	}
	return nil
}

// count changes the summary, and tells how far it is.
func (c *objectCheck) count(change func(s *ObjectSummary)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.sum)
	if c.o.Progress != nil {
		c.o.Progress(c.sum.Records)
	}
}

func (c *objectCheck) object(kind FindingKind, r *state.Record, detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := Finding{Kind: kind, Instance: r.Instance, Chain: r.Chain, Key: r.S3Key, Detail: detail + " (record " + r.ID + ")"}
	if kind == NoteChangedSince || kind == NoteUnchecked {
		c.noted.add(f)
		return
	}
	c.found.add(f)
}

// head compares what S3 says of an object with its record, and reports whether
// its content should be what the record says.
func (c *objectCheck) head(r *state.Record, o *state.Object) bool {
	if id, ok := state.ParseObjectID(o.Metadata[state.MetaID]); ok {
		if _, known := c.chains[chainKey{id.Instance, id.Chain}]; !known {
			c.object(FindingObjectChain, r, fmt.Sprintf("it was written by %s, and that chain is not there", id))
			return false
		}
	}
	if kind, text := objectDiffers(r, o); text != "" {
		c.differ(r, o, kind, text)
		return false
	}
	if r.SSE != "" && o.SSE != r.SSE || r.KMSKeyID != "" && o.KMSKeyID != r.KMSKeyID {
		c.differ(r, o, FindingObjectKey, fmt.Sprintf("it is encrypted with %q under %q, the record says %q under %q", o.SSE, o.KMSKeyID, r.SSE, r.KMSKeyID))
	}
	return true
}

// objectDiffers says why an object is not the one of its record, "" for the
// same.
func objectDiffers(r *state.Record, o *state.Object) (FindingKind, string) {
	if text := contentDiffers(r, o); text != "" {
		return FindingObjectContent, text
	}
	if r.VersionID != "" && o.VersionID != "" && r.VersionID != o.VersionID {
		return FindingObjectVersion, fmt.Sprintf("the current version is %s, the record says %s", o.VersionID, r.VersionID)
	}
	if text := writerDiffers(r, o); text != "" {
		return FindingObjectContent, text
	}
	if r.ETag != "" && o.ETag != r.ETag {
		return FindingObjectContent, fmt.Sprintf("its ETag is %s, the record says %s", o.ETag, r.ETag)
	}
	return "", ""
}

// contentDiffers says what of the content is another, "" for nothing.
func contentDiffers(r *state.Record, o *state.Object) string {
	if r.SizeBytes != nil && o.Size != *r.SizeBytes {
		return fmt.Sprintf("it has %d bytes, the record says %d", o.Size, *r.SizeBytes)
	}
	for _, m := range [][3]string{
		{state.MetaSHA256, r.SHA256, o.Metadata[state.MetaSHA256]}, {state.MetaMD5, r.MD5, o.Metadata[state.MetaMD5]},
	} {
		if m[1] != "" && m[2] != "" && m[1] != m[2] {
			return fmt.Sprintf("its metadata %s is %q, the record says %q", m[0], m[2], m[1])
		}
	}
	return ""
}

// writerDiffers says who else has written an object, "" for the record's
// attempt. A record that moved to another chain keeps the number, not the chain.
func writerDiffers(r *state.Record, o *state.Object) string {
	if r.Attempt == 0 || r.Status == state.StatusRekeyed {
		return ""
	}
	got := o.Metadata[state.MetaID]
	if id, ok := state.ParseObjectID(got); ok && id.Instance == r.Instance && id.Attempt == r.Attempt {
		return ""
	}
	want := state.ObjectID{Instance: r.Instance, Chain: r.Chain, Attempt: r.Attempt}
	return fmt.Sprintf("its metadata %s is %q, the record says %q", state.MetaID, got, want)
}

// differ adds a finding, unless a later attempt of a chain that is there has
// written the object since the trail's last word.
func (c *objectCheck) differ(r *state.Record, o *state.Object, kind FindingKind, detail string) {
	id, ok := state.ParseObjectID(o.Metadata[state.MetaID])
	newest := c.chains[chainKey{id.Instance, id.Chain}]
	if ok && id.Instance == r.Instance && id.Attempt > r.Attempt && !newest.IsZero() && !o.LastModified.Before(newest.Add(-time.Second)) {
		c.object(NoteChangedSince, r, "it was written since the newest record that is published: "+detail)
		return
	}
	c.object(kind, r, detail)
}

// unlisted looks at an object that no record tells of.
func (c *objectCheck) unlisted(o *state.Object) {
	id, ok := state.ParseObjectID(o.Metadata[state.MetaID])
	newest, known := c.chains[chainKey{id.Instance, id.Chain}]
	r := &state.Record{S3Key: o.Key, Instance: id.Instance, Chain: id.Chain, ID: "none"}
	switch {
	case !ok:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sum.Foreign++
		c.noted.add(Finding{Kind: NoteForeignData, Key: o.Key, Detail: "no record tells of it, and s3syncd did not write it"})
	case c.o.Instance != "" && id.Instance != c.o.Instance:
	case !known:
		c.object(FindingObjectChain, r, fmt.Sprintf("it was written by %s, and that chain is not there", id))
	case !o.LastModified.Before(newest.Add(-time.Second)):
		c.object(NoteChangedSince, r, "it was written since the newest record that is published")
	default:
		c.object(FindingObjectUnlisted, r, fmt.Sprintf("it was written by %s, and no record tells of it", id))
	}
}

// chosen reports whether the object under key is one to download.
func (c *objectCheck) chosen(key string) bool {
	if c.o.Deep <= 0 {
		return false
	}
	h := sha256.New()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, c.o.Seed)) // It cannot fail.
	_, _ = io.WriteString(h, key)                                // It cannot fail.
	const parts = 1_000_000
	return binary.BigEndian.Uint64(h.Sum(nil))%parts < uint64(c.o.Deep/100*parts)
}

// download hashes an object's content.
func (c *objectCheck) download(ctx context.Context, r *state.Record) error {
	var sum [2]string
	var size int64
	err := again(ctx, func() (err error) {
		body, _, err := c.objects.Get(ctx, r.S3Key)
		if err != nil {
			return err
		}
		sum, size, err = hashBoth(body)
		return errors.Join(err, body.Close())
	})
	if errors.Is(err, fs.ErrNotExist) {
		c.object(FindingObjectMissing, r, "it was there, and could not be downloaded")
		return nil
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", r.S3Key, err)
	}
	c.count(func(s *ObjectSummary) { s.Downloaded++; s.Bytes += size })
	if text := bytesDiffer(r, sum); text != "" {
		c.object(FindingObjectContent, r, text)
	} else if r.SHA256 == "" && r.MD5 == "" {
		c.object(NoteUnchecked, r, "its content was read, and no record has a hash of it")
	}
	return nil
}

// hashBoth returns SHA-256 and MD5, in hex, of what r holds.
func hashBoth(r io.Reader) (sum [2]string, size int64, err error) {
	s, m := sha256.New(), md5.New()
	size, err = io.Copy(io.MultiWriter(s, m), r)
	return [2]string{hex.EncodeToString(s.Sum(nil)), hex.EncodeToString(m.Sum(nil))}, size, err
}

// bytesDiffer compares hashes of content with a record, "" for the same.
func bytesDiffer(r *state.Record, sum [2]string) string {
	switch {
	case r.SHA256 != "" && r.SHA256 != sum[0]:
		return fmt.Sprintf("its content has the SHA-256 %s, the record says %s", sum[0], r.SHA256)
	case r.MD5 != "" && r.MD5 != sum[1]:
		return fmt.Sprintf("its content has the MD5 %s, the record says %s", sum[1], r.MD5)
	}
	return ""
}
