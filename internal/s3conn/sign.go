package s3conn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

const (
	signAlgorithm  = "AWS4-HMAC-SHA256"
	signScheme     = "sigv4"
	signService    = "s3"
	signDay        = "20060102"
	signTime       = "20060102T150405Z"
	unsignedBody   = "UNSIGNED-PAYLOAD"
	headerAmzDate  = "x-amz-date"
	headerBodyHash = "x-amz-content-sha256"
	headerToken    = "x-amz-security-token" //nolint:gosec // The name of a header.
	headerHost     = "host"
	headerLength   = "content-length"
	canonicalGuess = 2 << 10
)

// field is one header of a request: a name in lower case, and its value.
type field struct{ name, value string }

// sigV4 signs requests with AWS Signature Version 4, as
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
// has it. It is safe for concurrent use.
//
// The SDK's signer does the same for any request; this one is for a request that
// is sent for every file, whose headers are known as a list.
type sigV4 struct {
	region string
	key    atomic.Pointer[signingKey] // the last one: it holds for a day
}

// signingKey is derived from a secret for one day and region.
type signingKey struct {
	secret, day string
	key         []byte
}

// sign returns the value of the Authorization header. Path is escaped as it goes
// out; the request has no query. Fields are all that is signed, host among them,
// and are brought into order.
func (s *sigV4) sign(c aws.Credentials, now time.Time, method, path string, fields []field) string {
	slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.name, b.name) })
	now = now.UTC()
	day := now.Format(signDay)
	scope := day + "/" + s.region + "/" + signService + "/aws4_request"

	names := make([]byte, 0, canonicalGuess/4)
	b := make([]byte, 0, canonicalGuess)
	b = append(b, method...)
	b = append(b, '\n')
	b = append(b, path...)
	b = append(b, "\n\n"...) // No query.
	for i, f := range fields {
		if i > 0 {
			names = append(names, ';')
		}
		names = append(names, f.name...)
		b = append(b, f.name...)
		b = append(b, ':')
		b = append(b, canonicalValue(f.value)...)
		b = append(b, '\n')
	}
	b = append(b, '\n')
	b = append(b, names...)
	b = append(b, '\n')
	b = append(b, unsignedBody...)
	request := sha256.Sum256(b)

	b = append(b[:0], signAlgorithm+"\n"...)
	b = now.AppendFormat(b, signTime)
	b = append(b, '\n')
	b = append(b, scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, request[:])
	signature := mac(s.keyOf(c.SecretAccessKey, day), b)

	b = append(b[:0], signAlgorithm+" Credential="...)
	b = append(b, c.AccessKeyID...)
	b = append(b, '/')
	b = append(b, scope...)
	b = append(b, ", SignedHeaders="...)
	b = append(b, names...)
	b = append(b, ", Signature="...)
	return string(hex.AppendEncode(b, signature))
}

// keyOf derives the key of a day, unless it is the one derived last.
func (s *sigV4) keyOf(secret, day string) []byte {
	if k := s.key.Load(); k != nil && k.day == day && k.secret == secret {
		return k.key
	}
	key := []byte("AWS4" + secret)
	for _, part := range []string{day, s.region, signService, "aws4_request"} {
		key = mac(key, []byte(part))
	}
	s.key.Store(&signingKey{secret: secret, day: day, key: key})
	return key
}

func mac(key, data []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil)
}

// canonicalValue is a header's value without spaces around it and with single
// ones in it.
func canonicalValue(v string) string {
	v = strings.TrimSpace(v)
	for strings.Contains(v, "  ") {
		v = strings.ReplaceAll(v, "  ", " ")
	}
	return v
}

// escapedPath escapes every byte of a key but the unreserved ones of RFC 3986
// and the slash, which is what S3 signs.
func escapedPath(key string) string {
	const hexDigits = "0123456789ABCDEF"
	n := 0
	for i := range len(key) {
		if !plainByte(key[i]) {
			n++
		}
	}
	if n == 0 {
		return key
	}
	b := make([]byte, 0, len(key)+2*n)
	for i := range len(key) {
		if c := key[i]; plainByte(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

func plainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/-_.~", c) >= 0
}
