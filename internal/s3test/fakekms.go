package s3test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// FakeKMS is a key service with real ECDSA keys, spoken to through the real
// SDK. Aliases lead to keys; what a key is called leads to itself.
type FakeKMS struct {
	URL string

	mu      sync.Mutex
	keys    map[string]*ecdsa.PrivateKey // by ARN
	aliases map[string]string
	fail    func(op string) (status int, code string) // 0: no failure
	hold    chan struct{}                             // requests wait until it is closed
	calls   map[string]int
}

// NewFakeKMS starts a key service without keys. It ends with the test.
func NewFakeKMS(tb testing.TB) *FakeKMS {
	tb.Helper()
	f := &FakeKMS{keys: map[string]*ecdsa.PrivateKey{}, aliases: map[string]string{}, calls: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(f.serve))
	tb.Cleanup(func() {
		f.Hold(nil)
		srv.Close()
	})
	f.URL = srv.URL
	return f
}

// Setenv makes the AWS environment of the test lead to the service.
func (f *FakeKMS) Setenv(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ENDPOINT_URL_KMS", f.URL)
}

// Key makes a key and returns its ARN. Unless it is "", alias leads to the key
// from now on.
func (f *FakeKMS) Key(tb testing.TB, name, alias string) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	arn := "arn:aws:kms:" + Region + ":123456789012:key/" + name
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys[arn] = key
	if alias != "" {
		f.aliases[alias] = arn
	}
	return arn
}

// Fail makes every request for which fail returns a status fail with it.
func (f *FakeKMS) Fail(fail func(op string) (status int, code string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// Hold makes requests wait until release is closed; nil ends that.
func (f *FakeKMS) Hold(release chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = release
}

// Calls returns how many requests of op (Sign, GetPublicKey) came in.
func (f *FakeKMS) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// kmsRequest is what both operations are asked with.
type kmsRequest struct {
	KeyID            string `json:"KeyId"`
	Message          []byte `json:"Message"`
	MessageType      string `json:"MessageType"`
	SigningAlgorithm string `json:"SigningAlgorithm"`
}

func (f *FakeKMS) serve(w http.ResponseWriter, r *http.Request) {
	op := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	f.mu.Lock()
	f.calls[op]++
	fail, hold := f.fail, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
			return
		}
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ") {
		kmsError(w, http.StatusBadRequest, "MissingAuthenticationTokenException")
		return
	}
	if fail != nil {
		if status, code := fail(op); status != 0 {
			kmsError(w, status, code)
			return
		}
	}
	var in kmsRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		kmsError(w, http.StatusBadRequest, "SerializationException")
		return
	}
	f.answer(w, op, in)
}

func (f *FakeKMS) answer(w http.ResponseWriter, op string, in kmsRequest) {
	f.mu.Lock()
	arn := in.KeyID
	if to, ok := f.aliases[arn]; ok {
		arn = to
	}
	key := f.keys[arn]
	f.mu.Unlock()
	if key == nil {
		kmsError(w, http.StatusBadRequest, "NotFoundException")
		return
	}
	out := map[string]any{"KeyId": arn}
	switch op {
	case "Sign":
		if in.MessageType != "DIGEST" || in.SigningAlgorithm != "ECDSA_SHA_256" || len(in.Message) != 32 {
			kmsError(w, http.StatusBadRequest, "ValidationException")
			return
		}
		sig, err := ecdsa.SignASN1(rand.Reader, key, in.Message)
		if err != nil {
			kmsError(w, http.StatusInternalServerError, "KMSInternalException")
			return
		}
		out["Signature"], out["SigningAlgorithm"] = sig, in.SigningAlgorithm
	case "GetPublicKey":
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			kmsError(w, http.StatusInternalServerError, "KMSInternalException")
			return
		}
		out["PublicKey"], out["KeySpec"], out["KeyUsage"] = der, "ECC_NIST_P256", "SIGN_VERIFY"
	default:
		kmsError(w, http.StatusBadRequest, "UnknownOperationException")
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	_ = json.NewEncoder(w).Encode(out) // The client is gone.
}

func kmsError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": "by the fake: " + code}) // The client is gone.
}
