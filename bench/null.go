package main

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	listPage    = 1000
	checkedBody = 1 << 10 // Bodies up to this size are checked against Content-MD5: the canary asks for it.
	copyBuffer  = 256 << 10
)

// nullServer answers S3 requests at once and keeps no content: of an object it
// knows what HEAD and a listing say, so that a second run finds the first. It
// checks no signatures. It is safe for concurrent use.
type nullServer struct {
	url     string
	latency time.Duration // before each answer
	srv     *http.Server
	buffers sync.Pool
	uploads atomic.Int64

	mu       sync.Mutex
	requests map[string]int64
	arrived  map[string]time.Time // first complete write of a key; nil: not noted
	objects  map[string]*nullObject
	keys     []string // of objects in order, unless stale
	stale    bool
	pending  map[string]*nullObject // open multipart uploads by id
}

// nullObject is what is kept of an object: headers of its HEAD in pairs.
type nullObject struct {
	size     int64
	etag     string
	modified time.Time
	header   []string
}

// newNullServer listens on a free loopback port until close.
func newNullServer(latency time.Duration) (*nullServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // Bound at once.
	if err != nil {
		return nil, fmt.Errorf("null server: %w", err)
	}
	n := &nullServer{
		url: "http://" + l.Addr().String(), latency: latency,
		requests: map[string]int64{}, objects: map[string]*nullObject{}, pending: map[string]*nullObject{},
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }},
	}
	n.srv = &http.Server{Handler: n, ReadHeaderTimeout: time.Minute}
	go func() { _ = n.srv.Serve(l) }() // Ends with close, and says nothing else.
	return n, nil
}

func (n *nullServer) close() error { return n.srv.Close() }

// count takes the requests by kind since the last call.
func (n *nullServer) count() map[string]int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.requests
	n.requests = map[string]int64{}
	return c
}

// watch notes from now on when each key was first written.
func (n *nullServer) watch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.arrived = map[string]time.Time{}
}

// arrival returns when a key was first written; ok is false while it is not.
func (n *nullServer) arrival(key string) (at time.Time, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok = n.arrived[key]
	return at, ok
}

// kindOf names a request as the tables do.
func kindOf(r *http.Request, key string) string {
	q := r.URL.Query()
	switch {
	case strings.Contains(key, "/_manifests/"):
		return "trail"
	case key == "" && r.Method == http.MethodGet && listing(q):
		return "LIST"
	case key == "":
		return "bucket"
	case q.Has("uploadId") && r.Method == http.MethodPut:
		return "part"
	case q.Has("uploads"), q.Has("uploadId") && r.Method == http.MethodPost:
		return "multipart"
	default:
		return r.Method
	}
}

// listing reports whether a GET of a bucket asks for its objects.
func listing(q url.Values) bool {
	return slices.ContainsFunc([]string{"list-type", "prefix", "marker", "delimiter"}, q.Has)
}

// ServeHTTP answers one request.
func (n *nullServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	kind := kindOf(r, key)
	size, small, err := n.drain(r)
	if err != nil || !n.wait(r) {
		return // The client is gone.
	}
	n.mu.Lock()
	n.requests[kind]++
	n.mu.Unlock()
	w.Header().Set("X-Amz-Request-Id", "NULL")
	switch {
	case key == "":
		n.serveBucket(w, r, bucket)
	case kind == "multipart", r.URL.Query().Has("uploadId"):
		n.multipart(w, r, key, size)
	case r.Method == http.MethodPut:
		n.put(w, r, key, size, small)
	case r.Method == http.MethodHead, r.Method == http.MethodGet:
		n.head(w, r, key)
	case r.Method == http.MethodDelete:
		n.remove(key)
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, r, http.StatusNotImplemented, "NotImplemented")
	}
}

// wait lets the latency pass. It reports false when the client has gone.
func (n *nullServer) wait(r *http.Request) bool {
	if n.latency <= 0 {
		return true
	}
	t := time.NewTimer(n.latency)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// drain reads the body. Small is the body itself where it is small.
func (n *nullServer) drain(r *http.Request) (size int64, small []byte, err error) {
	if r.ContentLength >= 0 && r.ContentLength <= checkedBody {
		small, err = io.ReadAll(r.Body)
		return int64(len(small)), small, err
	}
	b, _ := n.buffers.Get().(*[]byte) // Nothing else is put there.
	defer n.buffers.Put(b)
	for {
		var k int
		k, err = r.Body.Read(*b)
		size += int64(k)
		switch {
		case errors.Is(err, io.EOF):
			if d, perr := strconv.ParseInt(r.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64); perr == nil {
				size = d // The body is framed by aws-chunked.
			}
			return size, nil, nil
		case err != nil:
			return size, nil, err
		}
	}
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, r *http.Request, status int, code string) {
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code) // The client may be gone.
}

// put takes in an object unless a condition or a digest does not hold.
func (n *nullServer) put(w http.ResponseWriter, r *http.Request, key string, size int64, small []byte) {
	o := objectOf(r, size)
	sum, err := base64.StdEncoding.DecodeString(r.Header.Get("Content-Md5"))
	if err == nil && len(sum) == md5.Size {
		if small != nil && md5.Sum(small) != [md5.Size]byte(sum) {
			refuse(w, r, http.StatusBadRequest, "BadDigest")
			return
		}
		o.etag = hex.EncodeToString(sum)
	}
	if !n.store(r, key, o) {
		refuse(w, r, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	o.answer(w.Header())
	for k, v := range r.Header {
		if strings.HasPrefix(k, "X-Amz-Checksum-") {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(http.StatusOK)
}

// store adds o under key if the conditions of r hold.
func (n *nullServer) store(r *http.Request, key string, o *nullObject) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.objects[key]
	if r.Header.Get("If-None-Match") == "*" && old != nil {
		return false
	}
	if want := strings.Trim(r.Header.Get("If-Match"), `"`); want != "" && (old == nil || old.etag != want) {
		return false
	}
	if old == nil {
		n.stale = true
	}
	n.objects[key] = o
	if n.arrived != nil {
		if _, ok := n.arrived[key]; !ok {
			n.arrived[key] = time.Now()
		}
	}
	return true
}

func (n *nullServer) remove(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.objects[key] != nil {
		delete(n.objects, key)
		n.stale = true
	}
}

// objectOf is the object that r writes.
func objectOf(r *http.Request, size int64) *nullObject {
	now := time.Now().UTC()
	o := &nullObject{size: size, modified: now, etag: fmt.Sprintf("%032x", now.UnixNano())}
	for k, v := range r.Header {
		if strings.HasPrefix(k, "X-Amz-Meta-") {
			o.header = append(o.header, k, v[0])
		}
	}
	if sse := r.Header.Get("X-Amz-Server-Side-Encryption"); sse != "" {
		key := r.Header.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")
		if !strings.HasPrefix(key, "arn:") {
			key = "arn:aws:kms:" + key
		}
		o.header = append(o.header, "X-Amz-Server-Side-Encryption", sse, "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", key)
		if b := r.Header.Get("X-Amz-Server-Side-Encryption-Bucket-Key-Enabled"); b != "" {
			o.header = append(o.header, "X-Amz-Server-Side-Encryption-Bucket-Key-Enabled", b)
		}
	}
	return o
}

// answer says in h what an answer to a write says.
func (o *nullObject) answer(h http.Header) {
	h.Set("Etag", `"`+o.etag+`"`)
	for i := 0; i < len(o.header); i += 2 {
		if strings.HasPrefix(o.header[i], "X-Amz-Server-Side-") {
			h.Set(o.header[i], o.header[i+1])
		}
	}
}

// head answers HEAD, and GET with zeros: the content is not there.
func (n *nullServer) head(w http.ResponseWriter, r *http.Request, key string) {
	n.mu.Lock()
	o := n.objects[key]
	n.mu.Unlock()
	if o == nil || r.Method == http.MethodGet && strings.Contains(key, "/_manifests/") {
		refuse(w, r, http.StatusNotFound, "NoSuchKey")
		return
	}
	o.answer(w.Header())
	for i := 0; i < len(o.header); i += 2 {
		w.Header().Set(o.header[i], o.header[i+1])
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(o.size, 10))
	w.Header().Set("Last-Modified", o.modified.Format(http.TimeFormat))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = io.CopyN(w, zeros{}, o.size) // The client may be gone.
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// multipart answers the requests of a multipart upload.
func (n *nullServer) multipart(w http.ResponseWriter, r *http.Request, key string, size int64) {
	q := r.URL.Query()
	id := q.Get("uploadId")
	n.mu.Lock()
	o := n.pending[id]
	n.mu.Unlock()
	switch {
	case q.Has("uploads") && r.Method == http.MethodPost:
		n.create(w, r, key)
	case o == nil:
		refuse(w, r, http.StatusNotFound, "NoSuchUpload")
	case r.Method == http.MethodPut:
		atomic.AddInt64(&o.size, size)
		o.answer(w.Header())
		w.Header().Set("Etag", `"`+hex.EncodeToString([]byte(id+q.Get("partNumber")))+`"`)
		for k, v := range r.Header {
			if strings.HasPrefix(k, "X-Amz-Checksum-") {
				w.Header()[k] = v
			}
		}
		w.WriteHeader(http.StatusOK)
	case r.Method == http.MethodPost:
		n.complete(w, r, key, id, o)
	case r.Method == http.MethodDelete:
		n.mu.Lock()
		delete(n.pending, id)
		n.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, r, http.StatusNotImplemented, "NotImplemented")
	}
}

func (n *nullServer) create(w http.ResponseWriter, r *http.Request, key string) {
	id := strconv.FormatInt(n.uploads.Add(1), 10)
	o := objectOf(r, 0)
	n.mu.Lock()
	n.pending[id] = o
	n.mu.Unlock()
	o.answer(w.Header())
	w.Header().Del("Etag")
	writeXML(w, fmt.Appendf(nil, "<InitiateMultipartUploadResult><Bucket>"+benchBucket+"</Bucket><Key>%s</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>", escaped(key), id))
}

func (n *nullServer) complete(w http.ResponseWriter, r *http.Request, key, id string, o *nullObject) {
	n.mu.Lock()
	delete(n.pending, id)
	n.mu.Unlock()
	o.etag += "-2"
	if !n.store(r, key, o) {
		refuse(w, r, http.StatusPreconditionFailed, "PreconditionFailed")
		return
	}
	o.answer(w.Header())
	w.Header().Del("Etag")
	writeXML(w, fmt.Appendf(nil, "<CompleteMultipartUploadResult><Location>/</Location><Bucket>"+benchBucket+"</Bucket><Key>%s</Key><ETag>&#34;%s&#34;</ETag></CompleteMultipartUploadResult>", escaped(key), o.etag))
}

// serveBucket answers what is asked of a bucket.
func (n *nullServer) serveBucket(w http.ResponseWriter, r *http.Request, bucket string) {
	q := r.URL.Query()
	switch {
	case bucket == "":
		writeXML(w, []byte("<ListAllMyBucketsResult><Owner><ID>null</ID></Owner><Buckets><Bucket><Name>"+benchBucket+"</Name><CreationDate>2020-01-01T00:00:00Z</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>"))
	case r.Method == http.MethodHead, r.Method == http.MethodPut:
		w.WriteHeader(http.StatusOK)
	case q.Has("location"):
		writeXML(w, []byte("<LocationConstraint></LocationConstraint>"))
	case q.Has("versioning"):
		writeXML(w, []byte("<VersioningConfiguration></VersioningConfiguration>"))
	case q.Has("uploads"):
		writeXML(w, []byte("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"))
	case q.Has("object-lock"):
		refuse(w, r, http.StatusNotFound, "ObjectLockConfigurationNotFoundError")
	case r.Method == http.MethodGet:
		n.list(w, bucket, q)
	default:
		refuse(w, r, http.StatusNotImplemented, "NotImplemented")
	}
}

// list answers a listing of version 1 or 2.
func (n *nullServer) list(w http.ResponseWriter, bucket string, q url.Values) {
	after := cmp.Or(q.Get("continuation-token"), q.Get("start-after"), q.Get("marker"))
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	var b, commons bytes.Buffer
	name := escaped
	if q.Get("encoding-type") == "url" {
		name = func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "%2F", "/") }
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	keys := n.sorted()
	i, _ := slices.BinarySearch(keys, max(prefix, after))
	count, last, truncated := 0, "", false
	for i < len(keys) && strings.HasPrefix(keys[i], prefix) {
		k := keys[i]
		if k <= after || delimiter != "" && strings.HasSuffix(after, delimiter) && strings.HasPrefix(k, after) {
			i++
			continue
		}
		if count == listPage {
			truncated = true
			break
		}
		count++
		if at := strings.Index(k[len(prefix):], cmp.Or(delimiter, "\x00")); at >= 0 {
			common := k[:len(prefix)+at+len(delimiter)]
			last = common
			fmt.Fprintf(&commons, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", name(common))
			i, _ = slices.BinarySearch(keys, common+"\xff")
			continue
		}
		o := n.objects[k]
		last = k
		fmt.Fprintf(&b, "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&#34;%s&#34;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>",
			name(k), o.modified.Format("2006-01-02T15:04:05.000Z"), o.etag, o.size)
		i++
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "<ListBucketResult><Name>%s</Name><Prefix>%s</Prefix><Delimiter>%s</Delimiter><MaxKeys>%d</MaxKeys><KeyCount>%d</KeyCount><IsTruncated>%t</IsTruncated>",
		bucket, name(prefix), name(delimiter), listPage, count, truncated)
	if q.Get("encoding-type") == "url" {
		head.WriteString("<EncodingType>url</EncodingType>")
	}
	if truncated {
		fmt.Fprintf(&head, "<NextContinuationToken>%s</NextContinuationToken><NextMarker>%s</NextMarker>", escaped(last), name(last))
	}
	writeXML(w, slices.Concat(head.Bytes(), b.Bytes(), commons.Bytes(), []byte("</ListBucketResult>")))
}

// sorted returns the keys in order. The caller holds n.mu.
func (n *nullServer) sorted() []string {
	if n.stale {
		n.keys, n.stale = slices.Sorted(maps.Keys(n.objects)), false
	}
	return n.keys
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // A builder takes all.
	return b.String()
}

func writeXML(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+len(xml.Header)))
	_, _ = io.WriteString(w, xml.Header)
	_, _ = w.Write(body) // The client may be gone.
}
