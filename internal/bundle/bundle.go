// Package bundle makes one document that proves one record, and checks it: the
// record's manifest, the digests from there to one that is known elsewhere, their
// signatures, and what S3 says of the object.
package bundle

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/strictjson"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Version is the form of bundles that this release writes.
const Version = 1

// maxBundleBytes bounds a bundle that is checked.
const maxBundleBytes = 1 << 30

// bundles is the format of bundles.
var bundles = strictjson.Of(archive.MaxNumber, Bundle{}, archive.Record{}, trail.Digest{}, trail.Signature{}) //nolint:gochecknoglobals // It is computed once.

// Bundle is everything that proves one record, in one document. The order of
// the fields is the order of the keys.
type Bundle struct {
	Version   int               `json:"s3syncd_bundle"`
	CreatedAt string            `json:"created_at"`
	Bucket    string            `json:"bucket"`
	S3Key     string            `json:"s3_key"`
	Record    json.RawMessage   `json:"record"` // as it is in the manifest
	Manifest  Document          `json:"manifest"`
	Digests   []Digest          `json:"digests"`     // from the one that names the manifest to the head
	Keys      map[string]string `json:"public_keys"` // PEM, by fingerprint
	Object    Object            `json:"object"`
}

// Document is one document of the trail.
type Document struct {
	S3Key   string `json:"s3_key"`
	SHA256  string `json:"sha256"`
	Content []byte `json:"content"` // base64 of the stored bytes
}

// Digest is one digest and its signature, where it has one.
type Digest struct {
	Document

	Signature []byte `json:"signature,omitempty"` // base64 of the stored bytes
}

// Object is what S3 said of the object when the bundle was made. Nothing
// proves it but the maker of the bundle.
type Object struct {
	Error        string            `json:"error,omitempty"`
	VersionID    string            `json:"version_id,omitempty"`
	SizeBytes    *int64            `json:"size_bytes,omitempty"`
	ETag         string            `json:"etag,omitempty"`
	SSE          string            `json:"sse,omitempty"`
	KMSKeyID     string            `json:"kms_key_id,omitempty"`
	LastModified string            `json:"last_modified,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	ServerTime   string            `json:"s3_time,omitempty"`
	RequestID    string            `json:"request_id,omitempty"`
}

// Header asks S3 for one object, or for one version of it.
type Header interface {
	HeadVersion(ctx context.Context, key, version string) (archive.Object, error)
}

// New returns what proves a record: its manifest, and the digests from the one that
// names that up to head, the SHA-256 of a digest that is known elsewhere; without
// one, up to the first that is signed, else to the newest. It fails where no
// digest names the manifest yet, or head is no digest from there on.
func New(ctx context.Context, t *trail.Trail, objects Header, it trail.HistoryItem, head string, now time.Time) (*Bundle, error) {
	if it.Digest.Key == "" {
		return nil, errors.New("no digest names the manifest of this record yet: nothing proves it")
	}
	b := &Bundle{
		Version: Version, CreatedAt: archive.FormatTime(now), S3Key: it.Record.S3Key,
		Record: json.RawMessage(it.Raw), Keys: map[string]string{},
	}
	var err error
	if b.Manifest, err = document(ctx, t, it.Manifest.S3Key, maxBundleBytes); err != nil {
		return nil, err
	}
	if err := b.addDigests(ctx, t, it, head); err != nil {
		return nil, err
	}
	first, err := trail.ParseDigest(bytes.NewReader(b.Digests[0].Content))
	if err != nil {
		return nil, err
	}
	b.Bucket, b.Object = first.Bucket, headOf(ctx, objects, &it.Record)
	return b, ctx.Err()
}

// addDigests adds the digests, their signatures and keys.
func (b *Bundle) addDigests(ctx context.Context, t *trail.Trail, it trail.HistoryItem, head string) error {
	signed := false
	for _, e := range it.Chain.Digests[it.Index:] {
		if len(b.Digests) > 0 && e.Name.Sequence == it.Chain.Digests[it.Index].Name.Sequence {
			continue // A fork of the first one.
		}
		doc, err := document(ctx, t, e.Key, trail.MaxDigestBytes)
		if err != nil {
			return err
		}
		d := Digest{Document: doc}
		if s, ok := it.Chain.Signatures[e.Key]; ok {
			if d.Signature, err = t.Small(ctx, s.Key); err != nil {
				return err
			}
			if err := b.addKey(ctx, t, d.Signature); err != nil {
				return err
			}
			signed = true
		}
		b.Digests = append(b.Digests, d)
		if doc.SHA256 == head || (head == "" && signed) {
			return nil
		}
	}
	if head != "" {
		return fmt.Errorf("no digest of chain %s from number %d on has the SHA-256 %s", it.Chain.ID, it.Digest.Name.Sequence, head)
	}
	return nil
}

// addKey adds the public key of a signature, where it is in the bucket.
func (b *Bundle) addKey(ctx context.Context, t *trail.Trail, signature []byte) error {
	s, err := trail.ParseSignature(signature)
	if err != nil || b.Keys[s.PublicKeyFingerprint] != "" || !trail.ShaPattern.MatchString(s.PublicKeyFingerprint) {
		return nil //nolint:nilerr // The bundle has it as it is; who checks it will say so.
	}
	key, err := t.Small(ctx, t.Root()+trail.KeysDir+"/"+s.PublicKeyFingerprint+".pem")
	if err != nil {
		return err
	}
	b.Keys[s.PublicKeyFingerprint] = string(key)
	return nil
}

// document reads one document of the trail whole.
func document(ctx context.Context, t *trail.Trail, key string, limit int64) (d Document, err error) {
	d.Content, err = t.Read(ctx, key, limit)
	if err == nil && int64(len(d.Content)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", key, limit)
	}
	d.S3Key, d.SHA256 = key, trail.SumOf(d.Content)
	return d, err
}

// headOf asks S3 for the object of a record.
func headOf(ctx context.Context, objects Header, r *archive.Record) Object {
	o, err := objects.HeadVersion(ctx, r.S3Key, r.VersionID)
	if err != nil {
		return Object{Error: err.Error()}
	}
	b := Object{
		VersionID: o.VersionID, SizeBytes: &o.Size, ETag: o.ETag, SSE: o.SSE, KMSKeyID: o.KMSKeyID, Metadata: o.Metadata, RequestID: o.RequestID,
	}
	if !o.LastModified.IsZero() {
		b.LastModified = archive.FormatTime(o.LastModified)
	}
	if !o.ServerTime.IsZero() {
		b.ServerTime = archive.FormatTime(o.ServerTime)
	}
	return b
}

// Check is what a bundle is checked against. Without anything, a bundle
// proves that its parts belong together, and no more.
type Check struct {
	ExpectHead string             // the SHA-256 of a digest that is known elsewhere
	Trusted    []*trail.PublicKey // whose signatures count
}

// Report is what a bundle proves.
type Report struct {
	Record   archive.Record
	Instance string
	Chain    string
	Digests  int
	Head     string   // the SHA-256 of the last digest
	SignedBy string   // the fingerprint of the key that signed the last digest; "": none did
	Anchored bool     // the last digest is the expected one, or signed by a trusted key
	Faults   []string // claims that do not hold
	Notes    []string // what is no fault and good to know
}

func (r *Report) fault(format string, args ...any) {
	r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
}

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Verify checks that a bundle's record is in its manifest, that the
// first digest names the manifest by its hash, that each digest names the one
// before it, and that the last one is the expected one or signed by a trusted
// key. It needs nothing but the bundle. What does not hold is in the report; the
// error is one of reading, or ErrFormat for what is no bundle.
func Verify(r io.Reader, c Check) (Report, error) {
	var report Report
	b, err := Read(r)
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(b.Record, &report.Record); err != nil {
		return report, fmt.Errorf("%w: record: %w", trail.ErrFormat, err)
	}
	digests := report.checkDigests(b)
	if len(digests) > 0 {
		report.Instance, report.Chain, report.Digests = digests[0].Instance, digests[0].Chain, len(digests)
		report.checkManifest(b, &digests[0])
		report.checkHead(b, c)
	}
	report.checkRecord(b)
	report.checkObject(&b.Object)
	return report, nil
}

// Read reads a bundle without checking what it claims.
func Read(r io.Reader) (*Bundle, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBundleBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	if len(data) > maxBundleBytes {
		return nil, fmt.Errorf("%w: a bundle larger than %d bytes", trail.ErrFormat, maxBundleBytes)
	}
	b := new(Bundle)
	if err := json.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("%w: bundle: %w", trail.ErrFormat, err)
	}
	switch {
	case b.Version > Version:
		return nil, fmt.Errorf("%w: a bundle of version %d", trail.ErrNewerFormat, b.Version)
	case b.Version != Version:
		return nil, fmt.Errorf("%w: no bundle", trail.ErrFormat)
	}
	if err := bundles.Check(data); err != nil {
		return nil, fmt.Errorf("%w: bundle: %w", trail.ErrFormat, err)
	}
	return b, nil
}

// checkDigests checks each digest by itself and against the one before it.
func (r *Report) checkDigests(b *Bundle) []trail.Digest {
	digests := make([]trail.Digest, 0, len(b.Digests))
	for i, doc := range b.Digests {
		if trail.SumOf(doc.Content) != doc.SHA256 {
			r.fault("digest %s: its SHA-256 is %s, the bundle says %s", doc.S3Key, trail.SumOf(doc.Content), doc.SHA256)
		}
		d, err := trail.ParseDigest(bytes.NewReader(doc.Content))
		if err == nil {
			name, ok := trail.ParseName(doc.S3Key)
			if !ok {
				err = fmt.Errorf("%w: not the name of a digest", trail.ErrFormat)
			} else {
				err = name.Says(&d)
			}
		}
		if err != nil {
			r.fault("digest %s: %v", doc.S3Key, err)
			return nil
		}
		if i > 0 {
			r.checkLink(b, i, &digests[i-1], &d)
		}
		digests = append(digests, d)
	}
	if len(digests) == 0 {
		r.fault("the bundle has no digest")
	}
	return digests
}

// checkLink checks that digest i, d, follows the one before it.
func (r *Report) checkLink(b *Bundle, i int, before, d *trail.Digest) {
	switch {
	case d.Chain != before.Chain || d.Instance != before.Instance || d.Sequence != before.Sequence+1:
		r.fault("digest %s does not follow %s", b.Digests[i].S3Key, b.Digests[i-1].S3Key)
	case d.PreviousDigestSHA256 == nil || *d.PreviousDigestSHA256 != trail.SumOf(b.Digests[i-1].Content):
		r.fault("digest %s does not name the SHA-256 of %s", b.Digests[i].S3Key, b.Digests[i-1].S3Key)
	case d.PreviousDigestS3Key == nil || *d.PreviousDigestS3Key != b.Digests[i-1].S3Key:
		r.fault("digest %s names another key than %s before it", b.Digests[i].S3Key, b.Digests[i-1].S3Key)
	}
}

// checkManifest checks that the first digest names the manifest.
func (r *Report) checkManifest(b *Bundle, d *trail.Digest) {
	sha := trail.SumOf(b.Manifest.Content)
	if sha != b.Manifest.SHA256 {
		r.fault("manifest %s: its SHA-256 is %s, the bundle says %s", b.Manifest.S3Key, sha, b.Manifest.SHA256)
	}
	if b.Bucket != d.Bucket {
		r.fault("the bundle is about bucket %s, its digest about %s", b.Bucket, d.Bucket)
	}
	for _, m := range d.Manifests {
		if m.S3Key != b.Manifest.S3Key {
			continue
		}
		if m.SHA256 != sha || m.SizeBytes != int64(len(b.Manifest.Content)) {
			r.fault("manifest %s is not the one that its digest names: %d bytes, SHA-256 %s", m.S3Key, len(b.Manifest.Content), sha)
		}
		return
	}
	r.fault("digest %s does not name the manifest %s", b.Digests[0].S3Key, b.Manifest.S3Key)
}

// checkRecord checks that the record is in the manifest, byte for byte.
func (r *Report) checkRecord(b *Bundle) {
	var want bytes.Buffer
	if err := json.Compact(&want, b.Record); err != nil {
		r.fault("the record: %v", err)
		return
	}
	if r.Record.S3Key != b.S3Key {
		r.fault("the record is one of %s, the bundle is about %s", r.Record.S3Key, b.S3Key)
	}
	found := false
	err := trail.ReadRecords(bytes.NewReader(b.Manifest.Content), func(_ *archive.Record, raw []byte) error {
		var line bytes.Buffer
		if err := json.Compact(&line, raw); err != nil {
			return err
		}
		found = found || bytes.Equal(line.Bytes(), want.Bytes())
		return nil
	})
	switch {
	case err != nil:
		r.fault("manifest %s: %v", b.Manifest.S3Key, err)
	case !found:
		r.fault("the record %s does not stand in the manifest %s", r.Record.ID, b.Manifest.S3Key)
	}
}

// checkHead checks the signatures, and whether the last digest is anchored.
func (r *Report) checkHead(b *Bundle, c Check) {
	last := len(b.Digests) - 1
	r.Head = trail.SumOf(b.Digests[last].Content)
	for i := range b.Digests {
		key, err := signerOf(b, &b.Digests[i])
		switch {
		case err != nil:
			r.fault("the signature of %s: %v", b.Digests[i].S3Key, err)
		case key != "" && i == last:
			r.SignedBy = key
		}
	}
	r.checkAnchor(c)
	switch {
	case r.Anchored:
	case r.SignedBy != "":
		r.note("signed by the key %s: compare this fingerprint with what you know, or give the key", r.SignedBy)
	default:
		r.note("unanchored: nothing outside the bundle vouches for its last digest, SHA-256 %s", r.Head)
	}
}

// checkAnchor compares the last digest with what is known elsewhere.
func (r *Report) checkAnchor(c Check) {
	for _, k := range c.Trusted {
		r.Anchored = r.Anchored || r.SignedBy == k.Fingerprint()
	}
	switch {
	case c.ExpectHead != "" && r.Head != strings.ToLower(c.ExpectHead):
		r.Anchored = false
		r.fault("the last digest has the SHA-256 %s, expected is %s", r.Head, c.ExpectHead)
	case c.ExpectHead != "":
		r.Anchored = true
	case len(c.Trusted) > 0 && !r.Anchored:
		r.fault("the last digest is not signed by the given key")
	}
}

// signerOf returns the fingerprint of the key that signed a digest, "" for none.
func signerOf(b *Bundle, d *Digest) (string, error) {
	if len(d.Signature) == 0 {
		return "", nil
	}
	s, err := trail.ParseSignature(d.Signature)
	if err != nil {
		return "", err
	}
	pem, ok := b.Keys[s.PublicKeyFingerprint]
	if !ok {
		return "", fmt.Errorf("the bundle does not have the key %s", s.PublicKeyFingerprint)
	}
	key, err := trail.ParsePublicKey([]byte(pem))
	if err != nil {
		return "", err
	}
	return key.Fingerprint(), key.Verify(s, d.Content)
}

// checkObject compares what S3 said with the record.
func (r *Report) checkObject(o *Object) {
	rec := &r.Record
	differs := func(what, got, want string) {
		if want != "" && got != want {
			r.note("S3 had another %s than the record when the bundle was made: %s instead of %s", what, cmp.Or(got, "unknown"), want)
		}
	}
	switch {
	case rec.Status == archive.StatusDeleted:
		return
	case o.Error != "":
		r.note("S3 said of the object when the bundle was made: %s", o.Error)
		return
	}
	if rec.SizeBytes != nil && o.SizeBytes != nil && *rec.SizeBytes != *o.SizeBytes {
		r.note("S3 had another size than the record when the bundle was made: %d instead of %d", *o.SizeBytes, *rec.SizeBytes)
	}
	differs("version", o.VersionID, rec.VersionID)
	differs("ETag", o.ETag, rec.ETag)
	differs("encryption", o.SSE, rec.SSE)
	differs("key", o.KMSKeyID, rec.KMSKeyID)
	if own := o.Metadata[archive.MetaSHA256]; own != "" {
		differs("SHA-256 in its metadata", own, rec.SHA256)
	}
}
