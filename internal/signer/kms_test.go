package signer

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func signer(t *testing.T, f *s3test.FakeKMS, key string, timeout ...time.Duration) *KMS {
	t.Helper()
	s3test.Credentials{AccessKeyID: "id", SecretAccessKey: "secret"}.Setenv(t)
	f.Setenv(t)
	s, err := OpenKMS(t.Context(), KMSOptions{KeyID: key, Timeout: slices.Max(append(timeout, 0)), Metrics: s3conn.NewMetrics(prometheus.NewPedanticRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKMSSignaturesHold(t *testing.T) {
	f := s3test.NewFakeKMS(t)
	first := f.Key(t, "first", "alias/trail")
	var s manifest.Signer = signer(t, f, "alias/trail")
	digest := []byte(strings.Repeat("a digest is larger than KMS takes as it is. ", 200))
	check := func() string {
		t.Helper()
		algorithm, fingerprint, sig, err := s.Sign(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		pem, err := s.PublicKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		k, err := trail.ParsePublicKey(pem)
		if err != nil || k.Fingerprint() != fingerprint || algorithm != trail.AlgorithmECDSA {
			t.Fatalf("%s by %s: %v", algorithm, fingerprint, err)
		}
		parsed := trail.NewSignature(algorithm, fingerprint, sig)
		if err := k.Verify(parsed, digest); err != nil {
			t.Error(err)
		}
		if err := k.Verify(parsed, digest[1:]); !errors.Is(err, trail.ErrSignature) {
			t.Errorf("over other bytes: %v", err)
		}
		return fingerprint
	}
	before := check()
	if check() != before || f.Calls("GetPublicKey") != 1 {
		t.Errorf("the public key was asked for %d times", f.Calls("GetPublicKey"))
	}
	f.Key(t, "second", "alias/trail") // The alias moves while the signer is in use.
	if check() == before {
		t.Error("a moved alias signs under the old fingerprint")
	}
	if s := fmt.Sprint(signer(t, f, first)); s != "kms:"+first {
		t.Errorf("the signer prints as %s", s)
	}
}

func TestKMSFaultsAreClassified(t *testing.T) {
	f := s3test.NewFakeKMS(t)
	f.Key(t, "k", "alias/trail")
	s := signer(t, f, "alias/trail")
	for code, want := range map[string]archive.Class{
		"AccessDeniedException": archive.ClassConfiguration, "DisabledException": archive.ClassConfiguration,
		"ThrottlingException": archive.ClassThrottled, "ExpiredTokenException": archive.ClassCredentials,
	} {
		f.Fail(func(string) (int, string) { return http.StatusBadRequest, code })
		_, _, _, err := s.Sign(t.Context(), []byte("x"))
		if archive.ClassOf(err) != want || !strings.Contains(fmt.Sprint(err), code) || !strings.HasPrefix(fmt.Sprint(err), opSign) {
			t.Errorf("%s: %v of class %s, want %s", code, err, archive.ClassOf(err), want)
		}
	}
	f.Fail(func(string) (int, string) { return http.StatusInternalServerError, "KMSInternalException" })
	if _, _, _, err := s.Sign(t.Context(), []byte("x")); archive.ClassOf(err) != archive.ClassTransient {
		t.Errorf("an outage: %v of class %s", err, archive.ClassOf(err))
	}
	f.Fail(nil)
	if _, _, _, err := signer(t, f, "alias/none").Sign(t.Context(), []byte("x")); archive.ClassOf(err) != archive.ClassConfiguration {
		t.Errorf("an unknown key: %v", err)
	}
}

func TestASignerThatGetsNoAnswerReturns(t *testing.T) {
	f := s3test.NewFakeKMS(t)
	f.Key(t, "k", "alias/trail")
	s := signer(t, f, "alias/trail", 50*time.Millisecond)
	release := make(chan struct{})
	f.Hold(release)
	defer close(release)
	if _, _, _, err := s.Sign(t.Context(), []byte("x")); archive.ClassOf(err) != archive.ClassTransient || err == nil {
		t.Errorf("Sign = %v of class %s", err, archive.ClassOf(err))
	}
	if _, err := s.PublicKey(t.Context()); err == nil {
		t.Error("PublicKey returned a key")
	}
}

func TestTheKeysARNDecidesTheRegion(t *testing.T) {
	for _, c := range [][3]string{
		{"arn:aws:kms:eu-west-1:123456789012:key/x", "us-east-1", "eu-west-1"},
		{"alias/x", "us-east-1", "us-east-1"},
		{"arn:aws:kms:minio-key", "", ""},
	} {
		if got := keyRegion(c[0], c[1]); got != c[2] {
			t.Errorf("keyRegion(%s) = %q, want %q", c[0], got, c[2])
		}
	}
}
