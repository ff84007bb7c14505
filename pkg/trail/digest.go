package trail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/s3syncd/s3syncd/internal/strictjson"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// DigestVersion is the format that this release writes.
const DigestVersion = 1

// Counts are the records of a digest's manifests by status.
type Counts struct {
	Uploaded int64 `json:"uploaded"`
	Skipped  int64 `json:"skipped"`
	Failed   int64 `json:"failed"`
	Deleted  int64 `json:"deleted"`
	Rekeyed  int64 `json:"rekeyed"`
}

// Total returns the sum, which equals the sum of the manifests' records.
func (c *Counts) Total() int64 {
	return c.Uploaded + c.Skipped + c.Failed + c.Deleted + c.Rekeyed
}

// Add counts one record of a status. A status of a later release counts nowhere.
func (c *Counts) Add(s archive.Status) {
	switch s {
	case archive.StatusUploaded:
		c.Uploaded++
	case archive.StatusSkipped:
		c.Skipped++
	case archive.StatusFailed:
		c.Failed++
	case archive.StatusDeleted:
		c.Deleted++
	case archive.StatusRekeyed:
		c.Rekeyed++
	}
}

// Plus adds o.
func (c *Counts) Plus(o Counts) {
	c.Uploaded += o.Uploaded
	c.Skipped += o.Skipped
	c.Failed += o.Failed
	c.Deleted += o.Deleted
	c.Rekeyed += o.Rekeyed
}

// Digest names the manifests since its predecessor, and the predecessor, by
// SHA-256. The order of the fields is the order of the keys.
type Digest struct {
	Version   int                   `json:"version"`
	Instance  string                `json:"instance"`
	Source    string                `json:"source"`
	Bucket    string                `json:"bucket"`
	Prefix    string                `json:"prefix"` // with a trailing slash, or ""
	Chain     string                `json:"chain"`
	Sequence  uint64                `json:"sequence"` // from 1
	StartTime string                `json:"start_time"`
	EndTime   string                `json:"end_time"`
	Manifests []archive.ManifestRef `json:"manifests"`
	Counts    Counts                `json:"counts"`
	// UnchangedByIndex are the skips that the index alone decided and that no
	// record lists.
	UnchangedByIndex int64 `json:"unchanged_by_index"`
	// What the last scan of this digest left out; null without a scan.
	Excluded   *int64             `json:"excluded"`
	Unreadable *int64             `json:"unreadable"`
	Special    *int64             `json:"special"`
	Hardlinks  int64              `json:"hardlinks,omitempty"`
	Scans      []archive.ScanNote `json:"scans"`
	Events     []archive.Note     `json:"events"`

	ConfigSHA256   string `json:"config_sha256"`
	S3syncdVersion string `json:"s3syncd_version"`

	PreviousDigestS3Key  *string `json:"previous_digest_s3_key"` // null for the first
	PreviousDigestSHA256 *string `json:"previous_digest_sha256"`

	Begins               archive.Begins `json:"begins,omitempty"` // the first of a chain only
	AbandonsChain        string         `json:"abandons_chain,omitempty"`
	AbandonsDigestSHA256 string         `json:"abandons_digest_sha256,omitempty"`

	Reason             string  `json:"reason"`
	NextDigestDue      *string `json:"next_digest_due"` // null for stop and final
	Pending            int64   `json:"pending"`
	OldestPendingSince *string `json:"oldest_pending_since"` // null when nothing is pending
}

// Encode returns the digest's bytes: indented JSON with a final newline. Equal
// digests have equal bytes.
func (d *Digest) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(d); err != nil {
		return nil, fmt.Errorf("encode digest %d of chain %s: %w", d.Sequence, d.Chain, err)
	}
	return b.Bytes(), nil
}

// The forms of a chain id and of a SHA-256.
var (
	ChainPattern = regexp.MustCompile(`^[0-9a-f]{8}$`)
	ShaPattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ParseDigest reads one digest. Keys that it does not know are passed over: a
// release may add some without a new version.
func ParseDigest(r io.Reader) (Digest, error) {
	var d Digest
	data, err := io.ReadAll(io.LimitReader(r, MaxDigestBytes+1))
	if err != nil {
		return d, fmt.Errorf("read digest: %w", err)
	}
	return DecodeDigest(data)
}

// DecodeDigest is ParseDigest of bytes that were read.
func DecodeDigest(data []byte) (d Digest, err error) {
	if len(data) > MaxDigestBytes {
		return d, fmt.Errorf("%w: a digest larger than %d bytes", ErrFormat, MaxDigestBytes)
	}
	if n := strictjson.Elements(data, maxDigestElements); n > maxDigestElements {
		return d, fmt.Errorf("%w: a digest whose lists have more than %d elements", ErrFormat, maxDigestElements)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return d, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if head.Version > DigestVersion {
		return d, fmt.Errorf("%w: digest version %d, this release reads up to %d", ErrNewerFormat, head.Version, DigestVersion)
	}
	if err := errors.Join(json.Unmarshal(data, &d), Unambiguous(data)); err != nil {
		return d, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := d.check(); err != nil {
		return d, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return d, nil
}

// check tells a digest from other JSON. It does not judge the chain.
func (d *Digest) check() error {
	first := d.PreviousDigestS3Key == nil && d.PreviousDigestSHA256 == nil
	switch {
	case d.longest() > maxTextBytes:
		return fmt.Errorf("a text of %d bytes", d.longest())
	case d.Version < 1:
		return fmt.Errorf("version %d", d.Version)
	case !ChainPattern.MatchString(d.Chain):
		return fmt.Errorf("chain %q", d.Chain)
	case d.Sequence == 0:
		return fmt.Errorf("sequence %d", d.Sequence)
	case first:
		return checkRefs(d.Manifests)
	case d.PreviousDigestS3Key == nil || d.PreviousDigestSHA256 == nil:
		return fmt.Errorf("digest %d has half a predecessor", d.Sequence)
	case !ShaPattern.MatchString(*d.PreviousDigestSHA256):
		return fmt.Errorf("previous_digest_sha256 %q", *d.PreviousDigestSHA256)
	}
	return checkRefs(d.Manifests)
}

// longest returns the length of the longest text that is no list's.
func (d *Digest) longest() (n int) {
	for _, s := range []string{
		d.Instance, d.Source, d.Bucket, d.Prefix, d.Chain, d.StartTime, d.EndTime, d.ConfigSHA256, d.S3syncdVersion,
		string(d.Begins), d.AbandonsChain, d.AbandonsDigestSHA256, d.Reason,
	} {
		n = max(n, len(s))
	}
	for _, s := range []*string{d.PreviousDigestS3Key, d.PreviousDigestSHA256, d.NextDigestDue, d.OldestPendingSince} {
		if s != nil {
			n = max(n, len(*s))
		}
	}
	return n
}

func checkRefs(refs []archive.ManifestRef) error {
	for _, m := range refs {
		if len(m.S3Key) > maxTextBytes {
			return fmt.Errorf("a manifest with a key of %d bytes", len(m.S3Key))
		}
		if m.S3Key == "" || !ShaPattern.MatchString(m.SHA256) || m.SizeBytes < 0 || m.Records < 0 {
			return fmt.Errorf("manifest %q", m.S3Key)
		}
	}
	return nil
}

// Says reports as ErrFormat that a digest is not what its name says.
func (n Name) Says(d *Digest) error {
	if d.Instance != n.Instance || d.Chain != n.Chain || d.Sequence != n.Sequence {
		return fmt.Errorf("%w: %s is digest %d of chain %s of %s", ErrFormat, n, d.Sequence, d.Chain, d.Instance)
	}
	return nil
}
