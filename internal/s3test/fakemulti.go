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

// upload is an open multipart upload.
type upload struct {
	object *FakeObject
	said   func(http.Header)
	parts  map[int]*part
}

type part struct {
	body []byte
	etag string
}

func (f *Fake) upload(c *call) (*upload, *failure) {
	u := f.uploads[c.Query.Get("uploadId")]
	if u == nil || u.object.Key != c.Key {
		return nil, &failure{http.StatusNotFound, "NoSuchUpload"}
	}
	return u, nil
}

func (f *Fake) create(c *call) *failure {
	o, said, fail := f.encrypted(c)
	if fail != nil {
		return fail
	}
	f.sequence++
	id := fmt.Sprintf("upload-%d", f.sequence)
	f.uploads[id] = &upload{object: o, said: said, parts: map[int]*part{}}
	said(c.w.Header())
	writeXML(c.w, http.StatusOK, struct {
		XMLName     xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket, Key string
		UploadID    string `xml:"UploadId"`
	}{Bucket: c.Bucket, Key: c.Key, UploadID: id})
	return nil
}

func (f *Fake) part(c *call) *failure {
	u, fail := f.upload(c)
	if fail != nil {
		return fail
	}
	if fail := f.checkBody(c); fail != nil {
		return fail
	}
	n, err := strconv.Atoi(c.Query.Get("partNumber"))
	if err != nil || n < 1 || n > 10000 {
		return &failure{http.StatusBadRequest, "InvalidArgument"}
	}
	p := &part{body: c.body, etag: opaque()}
	u.parts[n] = p
	u.said(c.w.Header())
	c.w.Header().Set("Etag", `"`+p.etag+`"`)
	c.w.WriteHeader(http.StatusOK)
	return nil
}

type completeRequest struct {
	Parts []struct {
		PartNumber int    `xml:"PartNumber"`
		ETag       string `xml:"ETag"`
	} `xml:"Part"`
}

func (f *Fake) complete(c *call) *failure {
	u, fail := f.upload(c)
	if fail != nil {
		return fail
	}
	body, fail := u.assemble(c.body)
	if fail != nil {
		return fail
	}
	h := c.r.Header
	if want := h.Get("X-Amz-Checksum-Crc32"); want != "" && want != encodedCRC(body) {
		return &failure{http.StatusBadRequest, "BadDigest"}
	}
	if want := h.Get("X-Amz-Mp-Object-Size"); want != "" && want != strconv.Itoa(len(body)) {
		return &failure{http.StatusBadRequest, "InvalidRequest"}
	}
	if fail := f.checkConditions(c); fail != nil {
		return fail
	}
	o := u.object
	o.Body, o.ETag = body, opaque()+"-"+strconv.Itoa(len(u.parts))
	delete(f.uploads, c.Query.Get("uploadId"))
	f.finish(c, o)
	if !f.b.Unkeyed {
		u.said(c.w.Header())
	}
	writeXML(c.w, http.StatusOK, struct {
		XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
		Bucket, Key, ETag string
	}{Bucket: c.Bucket, Key: c.Key, ETag: `"` + o.ETag + `"`})
	return nil
}

// assemble joins the parts that the request lists.
func (u *upload) assemble(request []byte) ([]byte, *failure) {
	var req completeRequest
	if err := xml.Unmarshal(request, &req); err != nil || len(req.Parts) == 0 {
		return nil, &failure{http.StatusBadRequest, "MalformedXML"}
	}
	var body []byte
	for i, l := range req.Parts {
		p := u.parts[l.PartNumber]
		switch {
		case p == nil || p.etag != strings.Trim(l.ETag, `"`):
			return nil, &failure{http.StatusBadRequest, "InvalidPart"}
		case l.PartNumber != i+1:
			return nil, &failure{http.StatusBadRequest, "InvalidPartOrder"}
		case len(p.body) < 5<<20 && i < len(req.Parts)-1:
			return nil, &failure{http.StatusBadRequest, "EntityTooSmall"}
		}
		body = append(body, p.body...)
	}
	return body, nil
}

func (f *Fake) abort(c *call) *failure {
	if _, fail := f.upload(c); fail != nil {
		return fail
	}
	delete(f.uploads, c.Query.Get("uploadId"))
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

type listedPart struct {
	PartNumber    int
	ETag          string
	Size          int
	ChecksumCRC32 string
}

type listedParts struct {
	XMLName              xml.Name `xml:"ListPartsResult"`
	Bucket, Key          string
	NextPartNumberMarker int `xml:",omitempty"`
	IsTruncated          bool
	Parts                []listedPart `xml:"Part"`
}

func (f *Fake) parts(c *call) *failure {
	u, fail := f.upload(c)
	if fail != nil {
		return fail
	}
	after, _ := strconv.Atoi(c.Query.Get("part-number-marker")) // Absent is 0.
	out := listedParts{Bucket: c.Bucket, Key: c.Key}
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		if n <= after {
			continue
		}
		if len(out.Parts) == f.pageSize() {
			out.IsTruncated, out.NextPartNumberMarker = true, out.Parts[len(out.Parts)-1].PartNumber
			break
		}
		p := u.parts[n]
		out.Parts = append(out.Parts, listedPart{PartNumber: n, ETag: `"` + p.etag + `"`, Size: len(p.body), ChecksumCRC32: encodedCRC(p.body)})
	}
	writeXML(c.w, http.StatusOK, out)
	return nil
}

func (f *Fake) pageSize() int {
	if f.b.PageSize > 0 {
		return f.b.PageSize
	}
	return 1000
}

type listedObject struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name, Prefix          string
	KeyCount, MaxKeys     int
	IsTruncated           bool
	EncodingType          string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listedObject
}

func (f *Fake) list(c *call) *failure {
	if f.b.ListDenied {
		return &failure{http.StatusForbidden, "AccessDenied"}
	}
	prefix, after := c.Query.Get("prefix"), max(c.Query.Get("start-after"), c.Query.Get("continuation-token"))
	encode := func(s string) string { return s }
	if c.Query.Get("encoding-type") == "url" {
		encode = url.QueryEscape
	}
	out := listing{Name: c.Bucket, Prefix: encode(prefix), MaxKeys: f.pageSize(), EncodingType: c.Query.Get("encoding-type")}
	last := ""
	for _, k := range f.keys(c.Bucket, prefix) {
		if k <= after {
			continue
		}
		if len(out.Contents) == f.pageSize() {
			out.IsTruncated, out.NextContinuationToken = true, last
			break
		}
		o := f.current(c.Bucket, k)
		out.Contents = append(out.Contents, listedObject{
			Key: encode(k), LastModified: o.Modified.Format(time.RFC3339), ETag: `"` + o.ETag + `"`, Size: len(o.Body), StorageClass: "STANDARD",
		})
		last = k
	}
	out.KeyCount = len(out.Contents)
	writeXML(c.w, http.StatusOK, out)
	return nil
}
