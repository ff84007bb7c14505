package s3test

import (
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// keptHeaders are those of a write that an object keeps and answers with.
func keptHeaders() []string {
	return []string{
		"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires",
		"X-Amz-Website-Redirect-Location", "X-Amz-Storage-Class",
		"X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold",
	}
}

// dress shows what o keeps of the request that wrote it.
func (o *FakeObject) dress(h http.Header) {
	h.Set("Content-Type", "application/octet-stream")
	for _, name := range keptHeaders() {
		if v := o.Header.Get(name); v != "" && v != "STANDARD" {
			h.Set(name, v)
		}
	}
	if tags, err := url.ParseQuery(o.Tags); err == nil && len(tags) > 0 {
		h.Set("X-Amz-Tagging-Count", strconv.Itoa(len(tags)))
	}
}

// source finds the object that a copy reads, and checks the conditions on it.
func (f *Fake) source(c *call) (*FakeObject, *failure) {
	name, err := url.PathUnescape(strings.TrimPrefix(c.r.Header.Get("X-Amz-Copy-Source"), "/"))
	if err != nil {
		return nil, &failure{http.StatusBadRequest, "InvalidArgument"}
	}
	bucket, key, _ := strings.Cut(name, "/")
	o := f.current(bucket, key)
	if o == nil {
		return nil, &failure{http.StatusNotFound, "NoSuchKey"}
	}
	if want := c.r.Header.Get("X-Amz-Copy-Source-If-Match"); want != "" && strings.Trim(want, `"`) != o.ETag && !f.b.IgnoreConditions {
		return nil, &failure{http.StatusPreconditionFailed, "PreconditionFailed"}
	}
	if slices.Contains([]string{"GLACIER", "DEEP_ARCHIVE"}, o.Header.Get("X-Amz-Storage-Class")) {
		return nil, &failure{http.StatusForbidden, "InvalidObjectState"}
	}
	return o, nil
}

type copyResult struct {
	ETag           string
	LastModified   string
	ChecksumSHA256 string `xml:",omitempty"`
}

func (f *Fake) copyObject(c *call) *failure {
	src, fail := f.source(c)
	if fail != nil {
		return fail
	}
	if fail := f.checkConditions(c); fail != nil {
		return fail
	}
	o, said, fail := f.encrypted(c)
	if fail != nil {
		return fail
	}
	h := c.r.Header
	if src.Key == c.Key && h.Get("X-Amz-Metadata-Directive") != "REPLACE" && h.Get("X-Amz-Server-Side-Encryption") == "" {
		return &failure{http.StatusBadRequest, "InvalidRequest"} // Onto itself without a change.
	}
	o.Body, o.Tags = slices.Clone(src.Body), src.Tags
	if h.Get("X-Amz-Tagging-Directive") == "REPLACE" {
		o.Tags = h.Get("X-Amz-Tagging")
	}
	if h.Get("X-Amz-Metadata-Directive") != "REPLACE" {
		o.Metadata = maps.Clone(src.Metadata)
		for _, name := range keptHeaders()[:6] {
			o.Header.Del(name)
			if v := src.Header.Get(name); v != "" {
				o.Header.Set(name, v)
			}
		}
	}
	f.finish(c, o)
	said(c.w.Header())
	c.w.Header().Del("Etag") // It is in the body.
	out := struct {
		XMLName xml.Name `xml:"CopyObjectResult"`
		copyResult
	}{copyResult: copyResult{ETag: `"` + o.ETag + `"`, LastModified: o.Modified.Format(time.RFC3339)}}
	if h.Get("X-Amz-Checksum-Algorithm") == "SHA256" {
		out.ChecksumSHA256 = encodedSHA256(o.Body)
	}
	writeXML(c.w, http.StatusOK, out)
	return nil
}

func (f *Fake) partCopy(c *call) *failure {
	u, fail := f.upload(c)
	if fail != nil {
		return fail
	}
	src, fail := f.source(c)
	if fail != nil {
		return fail
	}
	n, err := strconv.Atoi(c.Query.Get("partNumber"))
	var first, last int
	_, rerr := fmt.Sscanf(c.r.Header.Get("X-Amz-Copy-Source-Range"), "bytes=%d-%d", &first, &last)
	if err != nil || rerr != nil || n < 1 || n > 10000 || first < 0 || last < first || last >= len(src.Body) {
		return &failure{http.StatusBadRequest, "InvalidArgument"}
	}
	p := &part{body: slices.Clone(src.Body[first : last+1]), etag: opaque()}
	u.parts[n] = p
	u.said(c.w.Header())
	writeXML(c.w, http.StatusOK, struct {
		XMLName xml.Name `xml:"CopyPartResult"`
		copyResult
	}{copyResult: copyResult{ETag: `"` + p.etag + `"`, LastModified: time.Now().UTC().Format(time.RFC3339)}})
	return nil
}

func (f *Fake) tagging(c *call) *failure {
	o := f.current(c.Bucket, c.Key)
	if o == nil {
		return &failure{http.StatusNotFound, "NoSuchKey"}
	}
	type tag struct{ Key, Value string }
	out := struct {
		XMLName xml.Name `xml:"Tagging"`
		TagSet  []tag    `xml:"TagSet>Tag"`
	}{}
	tags, err := url.ParseQuery(o.Tags)
	if err != nil {
		return &failure{http.StatusBadRequest, "InvalidTag"}
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out.TagSet = append(out.TagSet, tag{k, tags.Get(k)})
	}
	writeXML(c.w, http.StatusOK, out)
	return nil
}

type listedUpload struct {
	Key      string
	UploadID string `xml:"UploadId"`
}

func (f *Fake) listUploads(c *call) *failure {
	if f.b.ListDenied {
		return &failure{http.StatusForbidden, "AccessDenied"}
	}
	out := struct {
		XMLName xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket  string
		Upload  []listedUpload
	}{Bucket: c.Bucket}
	for _, id := range slices.Sorted(maps.Keys(f.uploads)) {
		if k := f.uploads[id].object.Key; strings.HasPrefix(k, c.Query.Get("prefix")) {
			out.Upload = append(out.Upload, listedUpload{Key: k, UploadID: id})
		}
	}
	writeXML(c.w, http.StatusOK, out)
	return nil
}

type listedVersion struct {
	Key       string
	VersionID string `xml:"VersionId"`
	IsLatest  bool
	ETag      string
	Size      int
}

func (f *Fake) listVersions(c *call) *failure {
	if f.b.ListDenied {
		return &failure{http.StatusForbidden, "AccessDenied"}
	}
	out := struct {
		XMLName xml.Name `xml:"ListVersionsResult"`
		Name    string
		Version []listedVersion
	}{Name: c.Bucket}
	for _, k := range f.keys(c.Bucket, c.Query.Get("prefix")) {
		all := f.buckets[c.Bucket][k]
		for i, v := range slices.Backward(all) {
			if !v.Deleted {
				out.Version = append(out.Version, listedVersion{k, v.VersionID, i == len(all)-1, `"` + v.ETag + `"`, len(v.Body)})
			}
		}
	}
	writeXML(c.w, http.StatusOK, out)
	return nil
}
