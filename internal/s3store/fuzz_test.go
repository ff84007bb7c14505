package s3store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// oneAnswer answers every request alike.
type oneAnswer struct {
	status int
	body   []byte
	header http.Header
}

func (a *oneAnswer) RoundTrip(r *http.Request) (*http.Response, error) { return a.Do(r) }

func (a *oneAnswer) Do(r *http.Request) (*http.Response, error) {
	body := a.body
	if r.Method == http.MethodHead {
		body = nil
	}
	return &http.Response{
		StatusCode: a.status, Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)), Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}, nil
}

// Whatever a server answers has a class, says so in one short line, and is a
// success only when it confirms the key.
func FuzzAnswer(f *testing.F) {
	xml := func(code string) []byte {
		return []byte(`<?xml version="1.0"?><Error><Code>` + code + `</Code><Message>m</Message><Region>eu-west-1</Region></Error>`)
	}
	for _, code := range []string{
		"SlowDown", "InternalError", "AccessDenied", "KMS.DisabledException", "KMS.ThrottlingException", "NoSuchBucket", "NoSuchKey",
		"NoSuchUpload", "PreconditionFailed", "ConditionalRequestConflict", "BadDigest", "RequestTimeTooSkewed", "ExpiredToken",
		"SignatureDoesNotMatch", "PermanentRedirect", "AuthorizationHeaderMalformed", "NotImplemented", "kms:KeyNotFound", "KeyTooLongError",
	} {
		for _, status := range []int{200, 301, 400, 403, 404, 409, 412, 500, 503} {
			f.Add(status, xml(code), "", "us-east-1", "data/a")
		}
	}
	f.Add(200, []byte(`<CompleteMultipartUploadResult><ETag>"x"</ETag>`), "aws:kms", "", "data/é")
	f.Add(502, []byte("<html>\x1b[2Jbad gateway\r\n"), "AES256", "eu-\n1", "a//b")
	f.Add(0, []byte{}, "", "", "")
	f.Add(999, bytes.Repeat([]byte("<a>"), 2000), "aws:kms", "x", "k")
	o := options("http://127.0.0.1:1", "bucket", "key")
	o.Metrics, o.Log = s3conn.NewMetrics(prometheus.NewRegistry()), zap.NewNop()
	s, err := Open(f.Context(), o)
	if err != nil {
		f.Fatal(err)
	}
	said := &oneAnswer{}
	client := s.conn.Client.Options()
	client.HTTPClient, client.Retryer = said, aws.NopRetryer{}
	client.Credentials = credentials.NewStaticCredentialsProvider("a", "b", "")
	s.conn.Client = s3.New(client)
	s.conn.Wire.Next, s.conn.Wire.Retryer, s.conn.Wire.Creds = said, client.Retryer, client.Credentials
	f.Fuzz(func(t *testing.T, status int, body []byte, sse, region, key string) {
		if status < 100 || status > 999 || key == "" {
			return
		}
		said.status, said.body, said.header = status, body, http.Header{}
		said.header.Set("X-Amz-Server-Side-Encryption", sse)
		said.header.Set("X-Amz-Bucket-Region", region)
		s.conn.Reask = &s3conn.Reasker{}
		s.conn.Creds.Loaded = time.Now() // Nothing is read anew.
		_, herr := s.Head(t.Context(), key)
		_, perr := s.Put(t.Context(), put(key, []byte("x"), archive.Condition{}))
		_, _, cerr := s.Create(t.Context(), key, nil)
		_, merr := s.Complete(t.Context(), archive.Complete{Key: key, UploadID: "u", Parts: []archive.Part{{Number: 1, ETag: "e", Size: 1}}, Size: 1})
		lerr := s.List(t.Context(), "p/", "", func(archive.Object) error { return nil })
		if perr == nil || cerr == nil || merr == nil {
			t.Errorf("a write is a success although no answer named the key: %v, %v, %v", perr, cerr, merr)
		}
		for _, err := range []error{herr, perr, cerr, merr, lerr} {
			if err == nil {
				continue
			}
			if !slices.Contains(archive.Classes(), archive.ClassOf(err)) {
				t.Errorf("class %q of %v", archive.ClassOf(err), err)
			}
			text := err.Error()
			if len(text) > 4096 || strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text) {
				t.Errorf("an error of %d bytes is no short line: %.300q", len(text), text)
			}
			if errors.Is(err, fs.ErrNotExist) && status != http.StatusNotFound && !bytes.Contains(body, []byte("NoSuch")) {
				t.Errorf("status %d counts as absence: %v", status, err)
			}
		}
	})
}
