package archive

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// Status is the outcome that a record reports.
type Status string

// The statuses of spec section 5.
const (
	StatusUploaded Status = "uploaded"
	StatusSkipped  Status = "skipped"
	StatusFailed   Status = "failed"
	StatusDeleted  Status = "deleted"
	StatusRekeyed  Status = "rekeyed"
)

// Statuses lists every status once, for metrics and counts that exist at zero.
func Statuses() []Status {
	return []Status{StatusUploaded, StatusSkipped, StatusFailed, StatusDeleted, StatusRekeyed}
}

// Basis says what decided a skip, or found a change that no event reported.
type Basis string

// The bases of spec sections 5 and 8.
const (
	BasisIndex      Basis = "index"
	BasisMetadata   Basis = "metadata"
	BasisETag       Basis = "etag"
	BasisAttributes Basis = "attributes" // content known, only mode, owner or times changed
	BasisReread     Basis = "reread"     // the content was read again although the times did not change
)

// MaxNumber is the highest number in a document: other programs read numbers as
// floating point, which has no other above it than even ones.
const MaxNumber = 1 << 53

// Record is one line of a manifest. The order of the fields is the order of
// the keys: those of the first tool's manifests come first, so that its readers
// keep working. Commit fills in Chain, ID and, when it is empty, Timestamp.
type Record struct {
	LocalPath    string  `json:"local_path"`
	S3Key        string  `json:"s3_key"`
	S3URI        string  `json:"s3_uri"`
	SizeBytes    *int64  `json:"size_bytes,omitempty"`
	Status       Status  `json:"status"`
	Timestamp    string  `json:"timestamp"`
	Error        string  `json:"error,omitempty"`
	ErrorClass   Class   `json:"error_class,omitempty"`
	MD5          string  `json:"md5,omitempty"`
	SHA256       string  `json:"sha256,omitempty"`
	ETag         string  `json:"etag,omitempty"`
	VersionID    string  `json:"version_id,omitempty"`
	KMSKeyID     string  `json:"kms_key_id,omitempty"`
	SSE          string  `json:"sse,omitempty"`
	Basis        Basis   `json:"basis,omitempty"`
	Trigger      Trigger `json:"trigger"`
	Source       string  `json:"source"`
	Instance     string  `json:"instance"`
	MTime        string  `json:"mtime,omitempty"` // RFC 3339, nanoseconds, UTC
	Mode         string  `json:"mode,omitempty"`  // octal permission bits, "0644"
	UID          *uint32 `json:"uid,omitempty"`
	GID          *uint32 `json:"gid,omitempty"`
	Chain        string  `json:"chain"`
	Attempt      uint64  `json:"attempt,omitempty"`
	Recovered    bool    `json:"recovered,omitempty"`
	ReplacedVID  string  `json:"replaced_version_id,omitempty"`
	ReplacedETag string  `json:"replaced_etag,omitempty"`
	S3Time       string  `json:"s3_time,omitempty"` // the answer's Date header, RFC 3339
	RequestID    string  `json:"request_id,omitempty"`
	DetectedAt   string  `json:"detected_at,omitempty"` // when the change was first seen, RFC 3339
	LocalPathB64 string  `json:"local_path_b64,omitempty"`
	ID           string  `json:"id"`
}

// SetPath fills in local_path and, for a name that is not UTF-8,
// local_path_b64.
func (r *Record) SetPath(raw string) {
	r.LocalPath = raw
	if !utf8.ValidString(raw) {
		r.LocalPathB64 = base64.StdEncoding.EncodeToString([]byte(raw))
	}
}

// SetAttributes fills in the file's size and attributes from f.
func (r *Record) SetAttributes(f Fence, a Attributes) {
	size := f.Size
	uid, gid := a.UID, a.GID
	r.SizeBytes = &size
	r.MTime = FormatTime(f.Mtime())
	r.Mode = fmt.Sprintf("%04o", a.Mode&0o7777)
	r.UID, r.GID = &uid, &gid
}

// FormatTime renders t as every time in the trail is rendered: RFC 3339, UTC,
// up to nanoseconds, ending in Z.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// RecordID renders the id of record number n of chain.
func RecordID(chain string, n uint64) string {
	return chain + "-" + strconv.FormatUint(n, 10)
}
