package s3store

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// A proxy that refuses every request with Expect refuses none of ours, however
// large its body is.
func TestNoRequestAsksBeforeItsBody(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	address := front(t, f, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Expect") == "" {
			return false
		}
		w.WriteHeader(http.StatusExpectationFailed)
		return true
	})
	s := openStore(t, options(address, "bucket", s3test.FakeKeyARN))
	body := bytes.Repeat([]byte("x"), 6<<20)
	if _, err := s.Put(t.Context(), put("data/a", body, archive.Condition{})); err != nil {
		t.Errorf("Put: %v", err)
	}
	if _, err := s.Complete(t.Context(), upload(t, s, "data/m", body)); err != nil {
		t.Errorf("Complete: %v", err)
	}
}

// Credentials that no request can carry are no outage: every operation says so at
// once, and none is sent.
func TestCredentialsThatNoRequestCanCarry(t *testing.T) {
	for name, c := range map[string]s3test.Credentials{
		"a newline behind the key":    {AccessKeyID: "AKIA\n", SecretAccessKey: "s"},
		"a newline behind the secret": {AccessKeyID: "AKIA", SecretAccessKey: "s\n"},
		"a space before the secret":   {AccessKeyID: "AKIA", SecretAccessKey: " s"},
		"a tab in the key":            {AccessKeyID: "AK\tIA", SecretAccessKey: "s"},
		"a letter that is not ASCII":  {AccessKeyID: "AKIÄ", SecretAccessKey: "s"},
	} {
		t.Run(name, func(t *testing.T) {
			f := s3test.NewFake(t, "bucket")
			c.Setenv(t)
			s := openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))
			for op, err := range map[string]error{
				"Ping": s.Ping(t.Context()), "Probe": s.Probe(t.Context()),
				"Put": func() error {
					_, err := s.Put(t.Context(), put("data/ä b", []byte("1"), archive.Condition{}))
					return err
				}(),
			} {
				if archive.ClassOf(err) != archive.ClassCredentials {
					t.Errorf("%s = %v (class %s), want class credentials", op, err, archive.ClassOf(err))
				}
				if strings.Contains(err.Error(), "AKI") {
					t.Errorf("%s = %v, which names the key", op, err)
				}
			}
			if n := len(f.Ledger()); n != 0 {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
	t.Run("a newline behind the token", func(t *testing.T) {
		f := s3test.NewFake(t, "bucket")
		f.Setenv(t)
		t.Setenv("AWS_SESSION_TOKEN", "token\n")
		s := openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))
		if err := s.Ping(t.Context()); archive.ClassOf(err) != archive.ClassCredentials {
			t.Errorf("Ping = %v, want class credentials", err)
		}
	})
	t.Run("a newline behind the region", func(t *testing.T) {
		f := s3test.NewFake(t, "bucket")
		f.Setenv(t)
		o := options(f.URL, "bucket", s3test.FakeKeyARN)
		o.Region = "us-east-1\n"
		if _, err := Open(t.Context(), o); err == nil {
			t.Error("Open = nil")
		}
	})
}
