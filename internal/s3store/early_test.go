package s3store

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const refusalXML = "<?xml version=\"1.0\"?>\n<Error><Code>%s</Code><Message>because</Message><RequestId>R1</RequestId></Error>"

// TestAnEarlyRefusalKeepsItsReason: the server answers before it has read the
// body, and says why a moment later.
func TestAnEarlyRefusalKeepsItsReason(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := fmt.Sprintf(refusalXML, "KMS.DisabledException")
		c := http.NewResponseController(w)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		if err := c.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusBadRequest)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
		for range 8 { // A part of the body goes meanwhile.
			_, _ = io.CopyN(io.Discard, r.Body, 64<<10) // The client may be gone.
		}
		_, _ = io.WriteString(w, text)
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	t.Cleanup(srv.Close)
	s := openStore(t, options(srv.URL, "bucket", s3test.FakeKeyARN))
	s.dest.caps.CheckedAt = time.Now()
	for range 4 {
		_, err := s.Put(t.Context(), put("data/a", make([]byte, 1<<20), archive.Condition{}))
		if e, ok := errors.AsType[*archive.Error](err); !ok || e.Code != "KMS.DisabledException" {
			t.Errorf("Put: %v, want the server's code", err)
		}
	}
}
