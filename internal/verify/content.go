package verify

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// head compares what S3 says of an object with its record, and reports whether
// its content should be what the record says.
func (c *objectCheck) head(r *archive.Record, o *archive.Object) bool {
	if id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID]); ok {
		if !c.claims.known(id) {
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
func objectDiffers(r *archive.Record, o *archive.Object) (FindingKind, string) {
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
func contentDiffers(r *archive.Record, o *archive.Object) string {
	if r.SizeBytes != nil && o.Size != *r.SizeBytes {
		return fmt.Sprintf("it has %d bytes, the record says %d", o.Size, *r.SizeBytes)
	}
	for _, m := range [][3]string{
		{archive.MetaSHA256, r.SHA256, o.Metadata[archive.MetaSHA256]}, {archive.MetaMD5, r.MD5, o.Metadata[archive.MetaMD5]},
	} {
		if m[1] != "" && m[2] != "" && m[1] != m[2] {
			return fmt.Sprintf("its metadata %s is %q, the record says %q", m[0], m[2], m[1])
		}
	}
	return ""
}

// writerDiffers says who else has written an object, "" for the record's
// attempt. A record that moved to another chain keeps the number, not the chain.
func writerDiffers(r *archive.Record, o *archive.Object) string {
	if r.Attempt == 0 || r.Status == archive.StatusRekeyed {
		return ""
	}
	got := o.Metadata[archive.MetaID]
	if id, ok := archive.ParseObjectID(got); ok && id.Instance == r.Instance && id.Attempt == r.Attempt {
		return ""
	}
	want := archive.ObjectID{Instance: r.Instance, Chain: r.Chain, Attempt: r.Attempt}
	return fmt.Sprintf("its metadata %s is %q, the record says %q", archive.MetaID, got, want)
}

// differ adds a finding, unless a later attempt of a chain that continues can have
// written the object since its newest digest.
func (c *objectCheck) differ(r *archive.Record, o *archive.Object, kind FindingKind, detail string) {
	id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID])
	if !ok || id.Instance != r.Instance || id.Chain == r.Chain && id.Attempt <= r.Attempt {
		c.object(kind, r, detail)
		return
	}
	if why := c.claims.refuted(id, o); why != "" {
		c.object(kind, r, fmt.Sprintf("%s; it claims to be written by %s, and cannot be: %s", detail, id, why))
		return
	}
	c.changed(r, o, ": "+detail)
}

// download hashes an object's content, and reports whether a hash of the record
// was compared with it.
func (c *objectCheck) download(ctx context.Context, r *archive.Record) bool {
	var sum [2]string
	var size int64
	err := c.t.Retrier.Do(ctx, func() error {
		body, _, err := c.objects.Get(ctx, r.S3Key)
		if err != nil {
			return err
		}
		sum, size, err = hashBoth(body)
		return errors.Join(err, body.Close())
	})
	if errors.Is(err, fs.ErrNotExist) {
		c.object(FindingObjectMissing, r, "it was there, and could not be downloaded")
		return false
	}
	if err != nil {
		c.unchecked(r.S3Key, "its content could not be read", err)
		return false
	}
	c.count(func(s *ObjectSummary) { s.Downloaded++; s.Bytes += size })
	switch text := bytesDiffer(r, sum); {
	case text != "":
		c.object(FindingObjectContent, r, text)
	case r.SHA256 == "" && r.MD5 == "":
		c.object(NoteUnchecked, r, "its content was read, and no record has a hash of it")
		return false
	}
	return true
}

// hashBoth returns SHA-256 and MD5, in hex, of what r holds.
func hashBoth(r io.Reader) (sum [2]string, size int64, err error) {
	s, m := sha256.New(), md5.New()
	size, err = io.Copy(io.MultiWriter(s, m), r)
	return [2]string{hex.EncodeToString(s.Sum(nil)), hex.EncodeToString(m.Sum(nil))}, size, err
}

// bytesDiffer compares hashes of content with a record, "" for the same.
func bytesDiffer(r *archive.Record, sum [2]string) string {
	switch {
	case r.SHA256 != "" && r.SHA256 != sum[0]:
		return fmt.Sprintf("its content has the SHA-256 %s, the record says %s", sum[0], r.SHA256)
	case r.MD5 != "" && r.MD5 != sum[1]:
		return fmt.Sprintf("its content has the MD5 %s, the record says %s", sum[1], r.MD5)
	}
	return ""
}
