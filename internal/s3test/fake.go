package s3test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// The fake's keys: FakeKeyARN is behind FakeAlias, FakeOtherARN is another key
// that the fake knows.
const (
	FakeKeyID    = "11111111-2222-3333-4444-555555555555"
	FakeKeyARN   = "arn:aws:kms:" + Region + ":123456789012:key/" + FakeKeyID
	FakeOtherARN = "arn:aws:kms:" + Region + ":123456789012:key/99999999-8888-7777-6666-555555555555"
	FakeAlias    = "alias/s3syncd-test"
)

// Behavior is what a Fake does unlike AWS with all rights granted. The zero
// value is AWS.
type Behavior struct {
	ListDenied       bool          // without s3:ListBucket: a missing key answers 403
	IgnoreEncryption bool          // 200, and nothing is encrypted or said
	EchoEncryption   bool          // with IgnoreEncryption: answers to writes repeat what was asked for, a HEAD tells the truth
	UseKey           string        // writes are encrypted under this ARN whatever was asked for
	IgnoreConditions bool          // If-Match and If-None-Match have no effect
	IgnoreMD5        bool          // Content-MD5 has no effect
	DropMetadata     bool          // user metadata is not kept
	Unkeyed          bool          // the answer to CompleteMultipartUpload does not name the key (as MinIO)
	KMSError         string        // writes answer 400 with this code, KMS.DisabledException for one
	Clock            time.Duration // ahead of this host
	PageSize         int           // of listings; 0: 1,000
	Versioned        bool          // versions are kept
}

// FakeObject is one version of an object in a Fake.
type FakeObject struct {
	Key       string
	Body      []byte
	ETag      string
	VersionID string
	SSE       string
	KMSKeyID  string
	BucketKey bool
	Context   string // the encryption context as it was sent
	Metadata  map[string]string
	Header    http.Header // of the request that wrote it; what S3 keeps of it is answered with
	Tags      string      // as a query
	Modified  time.Time
	Deleted   bool // a delete marker
}

// Fake is an S3 server in memory, for answers that MinIO cannot give. Its
// answers are those of AWS: ARNs for keys, opaque ETags, KMS codes. It speaks
// path-style plain HTTP, checks no signatures, and forgets nothing.
type Fake struct {
	*Faults

	URL string

	mu       sync.Mutex
	b        Behavior
	aliases  map[string]string
	buckets  map[string]map[string][]*FakeObject
	uploads  map[string]*upload
	sequence int
}

// NewFake starts a Fake with the given buckets until the end of the test.
func NewFake(tb testing.TB, buckets ...string) *Fake {
	tb.Helper()
	f := &Fake{
		aliases: map[string]string{FakeAlias: FakeKeyARN},
		buckets: map[string]map[string][]*FakeObject{},
		uploads: map[string]*upload{},
	}
	for _, b := range buckets {
		f.buckets[b] = map[string][]*FakeObject{}
	}
	f.Faults = newFaults(tb, http.HandlerFunc(f.serve))
	srv := httptest.NewServer(f.Faults)
	f.URL = srv.URL
	tb.Cleanup(func() {
		f.releaseAll()
		srv.CloseClientConnections()
		srv.Close()
	})
	return f
}

// Setenv makes invented credentials the AWS environment of the test.
func (f *Fake) Setenv(t *testing.T) {
	t.Helper()
	f.Credentials().Setenv(t)
	t.Setenv("AWS_CA_BUNDLE", "")
}

// Credentials returns invented credentials; the fake takes any.
func (*Fake) Credentials() Credentials {
	return Credentials{AccessKeyID: "fake", SecretAccessKey: "fake"}
}

// Client returns a client of the fake.
func (f *Fake) Client() *s3.Client {
	c := f.Credentials()
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(f.URL), UsePathStyle: true, Region: Region,
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, ""),
	})
}

// Behave changes what the fake does from the next request on.
func (f *Fake) Behave(change func(b *Behavior)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.b)
}

// Alias moves an alias to another key.
func (f *Fake) Alias(alias, arn string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aliases[alias] = arn
}

// Object returns the current version of an object; ok is false for none.
func (f *Fake) Object(bucket, key string) (o FakeObject, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.current(bucket, key); p != nil {
		return *p, true
	}
	return FakeObject{}, false
}

// Versions returns all versions of an object, oldest first.
func (f *Fake) Versions(bucket, key string) []FakeObject {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []FakeObject
	for _, v := range f.buckets[bucket][key] {
		out = append(out, *v)
	}
	return out
}

// Keys returns the keys of all current objects below prefix, in order.
func (f *Fake) Keys(bucket, prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys(bucket, prefix)
}

// Uploads returns how many multipart uploads are open.
func (f *Fake) Uploads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.uploads)
}

// UploadKeys returns the keys of the open multipart uploads.
func (f *Fake) UploadKeys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for _, u := range f.uploads {
		keys = append(keys, u.object.Key)
	}
	return keys
}

// Store puts an object there, as another program would have.
func (f *Fake) Store(bucket string, o FakeObject) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.ETag == "" {
		o.ETag = opaque()
	}
	f.store(bucket, &o)
}

func (f *Fake) keys(bucket, prefix string) []string {
	var keys []string
	for k := range f.buckets[bucket] {
		if strings.HasPrefix(k, prefix) && f.current(bucket, k) != nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (f *Fake) current(bucket, key string) *FakeObject {
	v := f.buckets[bucket][key]
	if len(v) == 0 || v[len(v)-1].Deleted {
		return nil
	}
	return v[len(v)-1]
}

func (f *Fake) store(bucket string, o *FakeObject) {
	o.Modified = time.Now().Add(f.b.Clock).UTC()
	if !f.b.Versioned {
		f.buckets[bucket][o.Key] = []*FakeObject{o}
		return
	}
	f.sequence++
	o.VersionID = fmt.Sprintf("v%08d", f.sequence)
	f.buckets[bucket][o.Key] = append(f.buckets[bucket][o.Key], o)
}

// failure is an S3 error answer.
type failure struct {
	status int
	code   string
}

// call is one request under way. Its handlers run with Fake.mu held.
type call struct {
	*Request

	w    http.ResponseWriter
	r    *http.Request
	body []byte
}

// serve reads the body before it takes the lock, so that slow clients do not
// hold each other up.
func (f *Fake) serve(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		writeError(w, r, http.StatusBadRequest, "IncompleteBody", err.Error())
		return
	}
	c := &call{Request: requestOf(r), w: w, r: r, body: body.Bytes()}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Date", time.Now().Add(f.b.Clock).UTC().Format(http.TimeFormat))
	w.Header().Set("X-Amz-Request-Id", rand.Text()[:16])
	if fail := f.handle(c); fail != nil {
		writeError(w, r, fail.status, fail.code, "the fake says so")
	}
}

func (f *Fake) handle(c *call) *failure {
	if f.buckets[c.Bucket] == nil {
		return &failure{http.StatusNotFound, "NoSuchBucket"}
	}
	if c.r.Header.Get("Authorization") == "" {
		return &failure{http.StatusForbidden, "AccessDenied"}
	}
	if strings.HasPrefix(c.r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return &failure{http.StatusNotImplemented, "NotImplemented"}
	}
	h := map[string]func(*call) *failure{
		"HeadObject": f.get, "GetObject": f.get, "PutObject": f.put, "DeleteObject": f.remove, "ListObjectsV2": f.list,
		"CreateMultipartUpload": f.create, "UploadPart": f.part, "CompleteMultipartUpload": f.complete,
		"AbortMultipartUpload": f.abort, "ListParts": f.parts, "CopyObject": f.copyObject, "UploadPartCopy": f.partCopy,
		"GetObjectTagging": f.tagging, "ListMultipartUploads": f.listUploads, "ListObjectVersions": f.listVersions,
	}[c.Op]
	if h == nil {
		return &failure{http.StatusNotImplemented, "NotImplemented"}
	}
	return h(c)
}

func (f *Fake) get(c *call) *failure {
	o := f.current(c.Bucket, c.Key)
	switch {
	case o == nil && f.b.ListDenied:
		return &failure{http.StatusForbidden, "AccessDenied"}
	case o == nil:
		return &failure{http.StatusNotFound, "NoSuchKey"}
	}
	h := c.w.Header()
	h.Set("Etag", `"`+o.ETag+`"`)
	o.dress(h)
	setEncryption(h, o.SSE, o.KMSKeyID, o.BucketKey)
	if o.VersionID != "" {
		h.Set("X-Amz-Version-Id", o.VersionID)
	}
	for k, v := range o.Metadata {
		h.Set("X-Amz-Meta-"+k, v)
	}
	http.ServeContent(c.w, c.r, "", o.Modified, bytes.NewReader(o.Body))
	return nil
}

func (f *Fake) put(c *call) *failure {
	if fail := f.checkBody(c); fail != nil {
		return fail
	}
	if fail := f.checkConditions(c); fail != nil {
		return fail
	}
	o, said, fail := f.encrypted(c)
	if fail != nil {
		return fail
	}
	o.Body = c.body
	f.finish(c, o)
	said(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	return nil
}

// finish stores o and says what a write's answer says of it.
func (f *Fake) finish(c *call, o *FakeObject) {
	f.store(c.Bucket, o)
	h := c.w.Header()
	h.Set("Etag", `"`+o.ETag+`"`)
	if o.VersionID != "" {
		h.Set("X-Amz-Version-Id", o.VersionID)
	}
}

func (f *Fake) remove(c *call) *failure {
	o := f.current(c.Bucket, c.Key)
	if want := c.r.Header.Get("If-Match"); want != "" && !f.b.IgnoreConditions {
		switch {
		case o == nil:
			return &failure{http.StatusNotFound, "NoSuchKey"}
		case strings.Trim(want, `"`) != o.ETag:
			return &failure{http.StatusPreconditionFailed, "PreconditionFailed"}
		}
	}
	if f.b.Versioned {
		marker := &FakeObject{Key: c.Key, Deleted: true}
		f.store(c.Bucket, marker)
		c.w.Header().Set("X-Amz-Version-Id", marker.VersionID)
		c.w.Header().Set("X-Amz-Delete-Marker", "true")
	} else {
		delete(f.buckets[c.Bucket], c.Key)
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// writeError answers as S3 does: HEAD has no body.
func writeError(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	writeXML(w, status, struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
	}{Code: code, Message: message, RequestID: w.Header().Get("X-Amz-Request-Id")})
}

func writeXML(w http.ResponseWriter, status int, v any) {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err) // A mistake in this package.
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(xml.Header), b...)) // The client may be gone.
}

// opaque returns an ETag as SSE-KMS has them: no hash of the content.
func opaque() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // Never fails.
	return hex.EncodeToString(b[:])
}
