package s3test

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"strings"
)

// checkBody compares a body with the checksums that came with it.
func (f *Fake) checkBody(c *call) *failure {
	h := c.r.Header
	sum, sha := md5.Sum(c.body), sha256.Sum256(c.body)
	if want := h.Get("Content-Md5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) && !f.b.IgnoreMD5 {
		return &failure{http.StatusBadRequest, "BadDigest"}
	}
	if want := h.Get("X-Amz-Checksum-Sha256"); want != "" && want != base64.StdEncoding.EncodeToString(sha[:]) {
		return &failure{http.StatusBadRequest, "BadDigest"}
	}
	if want := h.Get("X-Amz-Checksum-Crc32"); want != "" && want != encodedCRC(c.body) {
		return &failure{http.StatusBadRequest, "BadDigest"}
	}
	return nil
}

func encodedSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func encodedCRC(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)))
}

// checkConditions compares If-Match and If-None-Match with what is there.
func (f *Fake) checkConditions(c *call) *failure {
	match, none := c.r.Header.Get("If-Match"), c.r.Header.Get("If-None-Match")
	if f.b.IgnoreConditions || match == "" && none == "" {
		return nil
	}
	o := f.current(c.Bucket, c.Key)
	switch {
	case none != "" && o != nil:
		return &failure{http.StatusPreconditionFailed, "PreconditionFailed"}
	case match != "" && o == nil:
		return &failure{http.StatusNotFound, "NoSuchKey"}
	case match != "" && strings.Trim(match, `"`) != o.ETag:
		return &failure{http.StatusPreconditionFailed, "PreconditionFailed"}
	}
	return nil
}

// encrypted returns a new object with the encryption that the request asked
// for, and what the answer says of it.
func (f *Fake) encrypted(c *call) (*FakeObject, func(http.Header), *failure) {
	h := c.r.Header
	const prefix = "X-Amz-Server-Side-Encryption"
	o := &FakeObject{Key: c.Key, ETag: opaque(), Header: h.Clone(), Tags: h.Get("X-Amz-Tagging"), Metadata: map[string]string{}}
	for name, v := range h {
		if m, ok := strings.CutPrefix(name, "X-Amz-Meta-"); ok && !f.b.DropMetadata {
			o.Metadata[strings.ToLower(m)] = strings.Join(v, ",")
		}
	}
	sse, key, bucketKey := h.Get(prefix), h.Get(prefix+"-Aws-Kms-Key-Id"), h.Get(prefix+"-Bucket-Key-Enabled") == "true"
	if f.b.IgnoreEncryption {
		if f.b.EchoEncryption {
			return o, func(h http.Header) { setEncryption(h, sse, f.resolve(key), bucketKey) }, nil
		}
		return o, func(http.Header) {}, nil
	}
	switch {
	case f.b.KMSError != "":
		return nil, nil, &failure{http.StatusBadRequest, f.b.KMSError}
	case sse == "":
		o.SSE = "AES256" // What AWS does with a bucket's default.
	case f.resolve(key) == "":
		return nil, nil, &failure{http.StatusBadRequest, "KMS.NotFoundException"}
	default:
		o.SSE, o.KMSKeyID, o.BucketKey, o.Context = sse, f.resolve(key), bucketKey, h.Get(prefix+"-Context")
	}
	if f.b.UseKey != "" {
		o.KMSKeyID = f.b.UseKey
	}
	return o, func(h http.Header) { setEncryption(h, o.SSE, o.KMSKeyID, o.BucketKey) }, nil
}

// resolve returns the ARN of a key as a request names it, "" for an unknown
// one.
func (f *Fake) resolve(key string) string {
	if arn := f.aliases[key]; arn != "" {
		return arn
	}
	for _, arn := range []string{FakeKeyARN, FakeOtherARN} {
		if key == arn || key != "" && strings.HasSuffix(arn, ":key/"+key) {
			return arn
		}
	}
	return ""
}

func setEncryption(h http.Header, sse, key string, bucketKey bool) {
	const prefix = "X-Amz-Server-Side-Encryption"
	if sse == "" {
		return
	}
	h.Set(prefix, sse)
	if key != "" {
		h.Set(prefix+"-Aws-Kms-Key-Id", key)
	}
	if bucketKey {
		h.Set(prefix+"-Bucket-Key-Enabled", "true")
	}
}
