package verify

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// ObjectStore is the bucket whose objects a trail tells of.
type ObjectStore interface {
	trail.Library
	// Head asks for one object; an absent one is io/fs.ErrNotExist.
	Head(ctx context.Context, key string) (archive.Object, error)
	// ListVersions calls fn for all versions and delete markers under prefix,
	// behind those of the key after.
	ListVersions(ctx context.Context, prefix, after string, fn func(archive.ObjectVersion) error) error
}

// ObjectOptions say how objects are compared with the trail.
type ObjectOptions struct {
	Instance string
	Deep     float64 // percent of the objects to download and hash, 0 to 100
	Seed     uint64  // chooses them
	Workers  int     // requests at once
	TempDir  string
	Memory   int64 // of the sort
	// Progress receives how many objects were compared; nil: it is not reported.
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
	// Unproven: only the object's own metadata says what its content is, and it
	// was not hashed.
	Unproven int64 `json:"unproven"`
	// ChangedSince were written after what is published, as far as can be told.
	ChangedSince int64  `json:"changed_since"`
	OldestChange string `json:"oldest_changed_since,omitempty"`
	Unchecked    int64  `json:"unchecked"` // could not be asked or read
}

// objectCheck compares objects with a trail.
type objectCheck struct {
	v       *Result
	t       *trail.Trail
	objects ObjectStore
	o       ObjectOptions
	claims  *claims
	blind   bool // a document that may tell of an object could not be read

	mu           sync.Mutex
	found, noted Findings
	sum          ObjectSummary
}

// CheckObjects compares the newest record of each key with what S3 says of the
// object, downloads and hashes o.Deep percent of them, and lists what stands
// under the prefix without a record, and what was deleted or replaced under the
// trail. Findings and a summary are added to v, and so is what could not be
// asked. Like Newest it takes little memory for any number of records. An error
// says that it did not get to its end; v has what was found until then.
func (v *Result) CheckObjects(ctx context.Context, t *trail.Trail, objects ObjectStore, o ObjectOptions) error {
	c := &objectCheck{v: v, t: t, objects: objects, o: o, blind: v.Unchecked > 0}
	c.sum.Deep, c.sum.Seed = o.Deep, o.Seed
	err := c.run(ctx)
	byKey := func(a, b Finding) int { return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(a.Kind, b.Kind)) }
	slices.SortFunc(c.found.List, byKey)
	slices.SortFunc(c.noted.List, byKey)
	v.Objects = &c.sum
	v.conclude(&c.found, &c.noted)
	return err
}

func (c *objectCheck) run(ctx context.Context) error {
	x, err := c.t.Index(ctx)
	if err != nil {
		return err
	}
	if c.claims, err = c.v.claims(ctx, c.t, &x); err != nil {
		return err
	}
	if err := c.versions(ctx); err != nil {
		return err
	}
	return c.compareAll(ctx)
}

// versions looks for delete markers and noncurrent versions under the trail.
func (c *objectCheck) versions(ctx context.Context) error {
	after := ""
	err := c.t.Retrier.Do(ctx, func() error {
		return c.objects.ListVersions(ctx, c.t.Root(), after, func(v archive.ObjectVersion) error {
			if v.Key != after {
				after = v.Key
			}
			f := Finding{Key: v.Key}
			switch {
			case strings.HasPrefix(v.Key, c.t.Root()+trail.CanaryDir):
				return nil
			case v.DeleteMarker:
				f.Kind, f.Detail = FindingDeleted, fmt.Sprintf("it was deleted at %s (version %s)", archive.FormatTime(v.LastModified), v.VersionID)
			case !v.Current:
				f.Kind, f.Detail = FindingReplaced, fmt.Sprintf("version %s of %s is not the current one", v.VersionID, archive.FormatTime(v.LastModified))
			default:
				return nil
			}
			c.found.Add(f)
			return nil
		})
	})
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, archive.ErrUnsupported) {
		c.noted.Add(Finding{Kind: NoteUnchecked, Detail: "versions under the trail were not listed: " + err.Error()})
		return nil
	}
	if err != nil && ctx.Err() == nil {
		c.unchecked(c.t.Root(), "its versions were not listed to the end", err)
		return nil
	}
	return err
}

// objectJob is one key to compare.
type objectJob struct {
	key string
	rec *archive.Record // nil: the trail does not tell of it
	may bool            // the object may be absent
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
				c.compare(ctx, j)
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
	return err
}

// merge sends every key of the trail or of the listing once.
func (c *objectCheck) merge(ctx context.Context, send func(objectJob) error) error {
	l := c.list(ctx)
	err := c.t.Newest(ctx, c.query(), func(h trail.Held) error {
		key := h.Record.S3Key
		if err := l.before(key, send); err != nil {
			return err
		}
		listed := l.skip(key)
		if h.Kept == nil {
			return send(objectJob{key: key, rec: &h.Record})
		}
		c.count(func(s *ObjectSummary) { s.Records++; s.Deleted++ })
		if !listed {
			return nil // It was left there, and may have been removed since.
		}
		return send(objectJob{key: key, rec: h.Kept, may: true})
	})
	if err == nil {
		err = l.before("", send)
	}
	ended := l.stop()
	if ended != nil && ctx.Err() == nil {
		c.unchecked(c.t.Prefix, "the objects under the prefix were not listed to the end", ended)
		ended = nil
	}
	return errors.Join(err, ended)
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
	l := &listing{root: c.t.Root(), keys: make(chan string, 1024), cancel: cancel, done: make(chan error, 1)}
	go func() {
		defer close(l.keys)
		l.done <- c.t.Retrier.List(ctx, c.objects, c.t.Prefix, "", func(o archive.Object) error {
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

// skip passes key, where it is the next, and reports whether it was.
func (l *listing) skip(key string) bool {
	if !l.more || l.next != key {
		return false
	}
	l.advance()
	return true
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

// query asks for the newest records. Documents that cannot be believed were
// found when the trail was checked; one that cannot be read now may tell of any
// object.
func (c *objectCheck) query() trail.Query {
	return trail.Query{
		Instance: c.o.Instance, TempDir: c.o.TempDir, Memory: c.o.Memory, Each: c.claims.record, Pending: c.claims.pending,
		Distrust: func(key string, err error) error {
			if !Unbelieved(err) {
				c.blind = true
				c.unchecked(key, "it could not be read", err)
			}
			return nil
		},
	}
}

// Unbelieved reports whether err says that a document is missing or not what it
// should be, as opposed to one that could not be read.
func Unbelieved(err error) bool {
	return errors.Is(err, trail.ErrHash) || errors.Is(err, trail.ErrFormat) || errors.Is(err, trail.ErrNewerFormat) || errors.Is(err, fs.ErrNotExist)
}

// compare checks one key.
func (c *objectCheck) compare(ctx context.Context, j objectJob) {
	gone := j.rec != nil && j.rec.Status == archive.StatusDeleted
	if gone {
		c.count(func(s *ObjectSummary) { s.Records++; s.Deleted++ })
		if j.rec.Attempt == 0 {
			return // The object may stay.
		}
	}
	o, absent, err := c.ask(ctx, j.key)
	switch {
	case err != nil:
		c.unchecked(j.key, "the object could not be asked for", err)
	case gone && !absent:
		c.differ(j.rec, &o, FindingObjectContent, "the trail says that it was deleted in S3, and it is there")
	case j.rec == nil && !absent:
		c.unlisted(&o)
	case j.rec != nil && !gone:
		c.present(ctx, j, &o, absent)
	}
}

// ask asks for one object.
func (c *objectCheck) ask(ctx context.Context, key string) (o archive.Object, absent bool, err error) {
	err = c.t.Retrier.Do(ctx, func() (err error) {
		o, err = c.objects.Head(ctx, key)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return o, true, nil
	}
	return o, false, err
}

// present checks an object that the trail says is there.
func (c *objectCheck) present(ctx context.Context, j objectJob, o *archive.Object, absent bool) {
	r := j.rec
	if absent && j.may {
		return
	}
	c.count(func(s *ObjectSummary) {
		s.Compared++
		if !j.may {
			s.Records++
		}
	})
	if absent {
		c.object(FindingObjectMissing, r, "the trail says that it is there")
		return
	}
	if !c.head(r, o) {
		return
	}
	hashed := c.chosen(r.S3Key) && c.download(ctx, r)
	if !hashed && r.Basis == archive.BasisMetadata {
		c.count(func(s *ObjectSummary) { s.Unproven++ })
	}
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

// unchecked adds what could not be asked or read.
func (c *objectCheck) unchecked(key, what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Unchecked++
	c.found.Add(Finding{Kind: FindingUnchecked, Key: key, Detail: what + ": " + strings.TrimPrefix(err.Error(), "get "+key+": ")})
}

// changed adds an object that was written after what is published.
func (c *objectCheck) changed(r *archive.Record, o *archive.Object, detail string) {
	at := archive.FormatTime(o.LastModified)
	c.count(func(s *ObjectSummary) {
		s.ChangedSince++
		if s.OldestChange == "" || at < s.OldestChange {
			s.OldestChange = at
		}
	})
	age := c.claims.now.Sub(o.LastModified).Round(time.Second)
	c.object(NoteChangedSince, r, fmt.Sprintf("it was written at %s, %v ago, after the newest record that is published%s", at, max(age, 0), detail))
}

func (c *objectCheck) object(kind FindingKind, r *archive.Record, detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := Finding{Kind: kind, Instance: r.Instance, Chain: r.Chain, Key: r.S3Key, Detail: detail}
	if r.ID != "" {
		f.Detail += " (record " + r.ID + ")"
	}
	switch {
	case kind == NoteChangedSince || kind == NoteUnchecked:
		c.noted.Add(f)
		return
	case c.blind:
		f.Kind, f.Detail = FindingUnchecked, f.Detail+"; a document that could not be read may tell of it"
		c.sum.Unchecked++
	}
	c.found.Add(f)
}

// unlisted judges an object that no record tells of.
func (c *objectCheck) unlisted(o *archive.Object) {
	id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID])
	r := &archive.Record{S3Key: o.Key, Instance: id.Instance, Chain: id.Chain}
	switch {
	case !ok:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sum.Foreign++
		c.noted.Add(Finding{Kind: NoteForeignData, Key: o.Key, Detail: "no record tells of it, and s3syncd did not write it"})
	case c.o.Instance != "" && id.Instance != c.o.Instance:
	case !c.claims.known(id):
		c.object(FindingObjectChain, r, fmt.Sprintf("it was written by %s, and that chain is not there", id))
	default:
		if why := c.claims.refuted(id, o); why != "" {
			c.object(FindingObjectUnlisted, r, fmt.Sprintf("it claims to be written by %s, and no record tells of it: %s", id, why))
			return
		}
		c.changed(r, o, "")
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
