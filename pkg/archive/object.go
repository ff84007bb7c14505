package archive

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"
)

// Names of the user metadata that every object carries. An earlier boto3 script
// wrote md5checksum; the file-… names are those of AWS DataSync.
const (
	MetaMD5         = "md5checksum"
	MetaSHA256      = "sha256"
	MetaMtime       = "file-mtime"
	MetaPermissions = "file-permissions"
	MetaOwner       = "file-owner"
	MetaGroup       = "file-group"
	MetaID          = "s3syncd-id"
	// MetaHost tells hosts with one instance name apart. It is no secret and does
	// not name the machine.
	MetaHost = "s3syncd-host"
)

// Fence identifies one reading of a file. Two equal fences taken from one
// descriptor before and after a read mean that the content did not change in
// between: ctime cannot be set by a user.
type Fence struct {
	Dev, Ino         uint64
	Size             int64
	MtimeNs, CtimeNs int64 // since the epoch; before 1678 and behind 2261 they wrap around
	MtimeSec         int64 // whole seconds where MtimeNs wraps around, else 0
}

// The first and last second of the trail: RFC 3339 has years of four digits, and
// this is that of the years 1 to 9999.
const (
	firstSecond = -62_135_596_800
	lastSecond  = 253_402_300_799
)

// Mtime returns the time of the last modification, or the nearest one that the
// trail can hold.
func (f Fence) Mtime() time.Time {
	switch {
	case f.MtimeSec == 0:
		return time.Unix(0, f.MtimeNs)
	case f.MtimeSec < firstSecond:
		return time.Unix(firstSecond, 0)
	case f.MtimeSec > lastSecond:
		return time.Unix(lastSecond, 999_999_999)
	}
	return time.Unix(f.MtimeSec, f.MtimeNs-f.MtimeSec*int64(time.Second)) // Both wrap around alike.
}

// WithMtime returns f with another time of the last modification.
func (f Fence) WithMtime(t time.Time) Fence {
	f.MtimeNs, f.MtimeSec = t.UnixNano(), 0
	if !time.Unix(0, f.MtimeNs).Equal(t) {
		f.MtimeSec = t.Unix()
	}
	return f
}

// SameContent reports whether two fences describe the same content of the same
// inode. The device number is left out: it changes over a reboot or remount.
func (f Fence) SameContent(g Fence) bool {
	return f.Size == g.Size && f.MtimeNs == g.MtimeNs && f.MtimeSec == g.MtimeSec && f.CtimeNs == g.CtimeNs && f.Ino == g.Ino
}

// Attributes are a file's attributes beside its content.
type Attributes struct {
	Mode     uint32 // permission, setuid, setgid and sticky bits
	UID, GID uint32
}

// Object is what a server said of one object, from a HEAD, a LIST or the
// response to a write. Fields that the answer did not carry are zero.
type Object struct {
	Key          string
	Size         int64
	ETag         string // without quotes; opaque under SSE-KMS
	VersionID    string
	SSE          string // aws:kms, aws:kms:dsse, AES256 or ""
	KMSKeyID     string // as the server named it, an ARN on AWS
	BucketKey    bool
	Metadata     map[string]string // user metadata, lower-case names without the prefix
	LastModified time.Time
	// Dressed: the object carries what a new upload of its content would not:
	// tags, a content type, headers or metadata of another program, a retention
	// of its own, another storage class. Only a HEAD tells.
	Dressed    bool
	ServerTime time.Time // the answer's Date header
	RequestID  string
}

// ObjectVersion is one version of an object, or a delete marker.
type ObjectVersion struct {
	Key          string
	VersionID    string
	Current      bool
	DeleteMarker bool
	LastModified time.Time
}

// Condition makes a write conditional on what is under its key. The zero
// value is no condition.
type Condition struct {
	Absent bool   // If-None-Match: *
	ETag   string // If-Match: this ETag
}

// Put is one PutObject. Encryption is not part of it: the store that sends it
// adds the configured key to every write.
type Put struct {
	Key      string
	Body     io.ReadSeeker // exactly Size bytes from its start; read again for a retry
	Size     int64
	MD5      [16]byte // sent as Content-MD5
	SHA256   [32]byte // sent as x-amz-checksum-sha256
	Metadata map[string]string
	If       Condition
}

// Copy is one copy of an object onto itself, to bring it under the configured
// key. Its content, headers, tags, storage class and retention stay.
type Copy struct {
	Key      string
	Size     int64
	ETag     string            // what must be there when the copy is made
	Metadata map[string]string // of the copy, in place of the object's
	SHA256   [32]byte          // of the content; zero: not known, and not compared
	// Opened, optional, is called once the server has opened a multipart copy, and
	// before its first part. An error of it ends the copy, and aborts the upload.
	Opened func(uploadID string) error
}

// Part is one part of a multipart upload.
type Part struct {
	Number int32 // from 1, without gaps
	Size   int64
	ETag   string // as the server answered
	CRC32  uint32
}

// Complete ends a multipart upload. The server compares CRC32, the checksum of
// the whole object, with what it received, and refuses when they differ.
type Complete struct {
	Key      string
	UploadID string
	Parts    []Part
	Size     int64
	CRC32    uint32
	If       Condition
}

// ObjectID is the value of the metadata s3syncd-id: who wrote an object, and
// under which number drawn before the request.
type ObjectID struct {
	Instance string
	Chain    string
	Attempt  uint64
}

var objectIDPattern = regexp.MustCompile(`^([A-Za-z0-9._-]+)/([0-9a-f]{8})/([0-9]{1,20})$`)

// String renders id in the form of the metadata.
func (id ObjectID) String() string {
	return fmt.Sprintf("%s/%s/%d", id.Instance, id.Chain, id.Attempt)
}

// ParseObjectID reads what String wrote, and returns false for anything else.
func ParseObjectID(s string) (id ObjectID, ok bool) {
	m := objectIDPattern.FindStringSubmatch(s)
	if m == nil {
		return ObjectID{}, false
	}
	n, err := strconv.ParseUint(m[3], 10, 64)
	if err != nil {
		return ObjectID{}, false
	}
	return ObjectID{Instance: m[1], Chain: m[2], Attempt: n}, true
}
