package s3conn

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// observer counts and times every attempt of every operation, and notes what
// the answers say of this host's clock.
type observer struct {
	metrics   *Metrics
	clock     *Clock
	throttled func()
}

// ID names the middleware.
func (*observer) ID() string { return "s3syncd:observer" }

type heardKey struct{}

// HandleDeserialize runs once an attempt, around the transport.
func (o *observer) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	out middleware.DeserializeOutput, md middleware.Metadata, err error,
) {
	sent := time.Now()
	out, md, err = next.HandleDeserialize(ctx, in)
	received := time.Now()
	var answer *http.Response
	if resp, ok := out.RawResponse.(*smithyhttp.Response); ok && resp != nil {
		answer = resp.Response
	}
	h := o.observe(awsmiddleware.GetOperationName(ctx), sent, received, answer)
	md.Set(heardKey{}, h)
	if answer != nil {
		a := clockAnswer{sent: sent, received: received, date: h.trusted, verdict: clockVerdictOf(answer.StatusCode, answerOf(err).code)}
		if req, ok := in.Request.(*smithyhttp.Request); ok {
			if at, err := time.Parse(signTime, req.Header.Get(headerAmzDate)); err == nil {
				a.signed = at.Sub(sent)
			}
		}
		o.clock.observe(a)
	}
	return out, md, err
}

// clockVerdictOf judges by an answer's status and code. Absence and a condition
// that does not hold are said only to who may ask.
func clockVerdictOf(status int, code string) clockVerdict {
	switch {
	case code == codeSkewed:
		return clockSkewed
	case status >= http.StatusOK && status < http.StatusMultipleChoices,
		status == http.StatusNotFound, status == http.StatusPreconditionFailed, status == http.StatusNotModified:
		return clockTaken
	}
	return clockUnknown
}

// clockSigner signs the SDK's requests with the corrected time, as those of
// wire are.
type clockSigner struct {
	next  *v4.Signer
	clock *Clock
}

// SignHTTP implements s3.HTTPSignerV4.
func (s *clockSigner) SignHTTP(
	ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, _ time.Time, options ...func(*v4.SignerOptions),
) error {
	return s.next.SignHTTP(ctx, c, r, hash, service, region, time.Now().Add(s.clock.Signs()).UTC(), options...)
}

// observe records one attempt of op. Resp is nil, or has no status, where there was no answer.
func (o *observer) observe(op string, sent, received time.Time, resp *http.Response) (h heard) {
	status := 0
	if resp != nil {
		status = resp.StatusCode
		h.requestID = requestID(resp.Header)
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			h.date = date
			if resp.Header.Get("Age") == "" { // Else it comes out of a cache, and so does its date.
				h.trusted = date
			}
		}
	}
	if o.throttled != nil && (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) {
		o.throttled()
	}
	o.metrics.request(op, status, received.Sub(sent))
	return h
}

// requestID returns the server's name for a request.
func requestID(h http.Header) string {
	id := h.Get("X-Amz-Request-Id")
	if len(id) > maxMessage || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) {
		return Bounded(id)
	}
	return id
}

// heard is what every answer carries outside its body.
type heard struct {
	date      time.Time // zero: not told
	trusted   time.Time // the same, zero also where a cache told it
	requestID string
}

// Stamp fills in what was heard with an answer.
func (h heard) Stamp(o archive.Object) archive.Object {
	if !h.date.IsZero() {
		o.ServerTime = h.date.UTC()
	}
	o.RequestID = h.requestID
	return o
}

// Stamp fills in what was heard with an answer to the SDK.
func Stamp(o archive.Object, md middleware.Metadata) archive.Object {
	h, _ := md.Get(heardKey{}).(heard)
	return h.Stamp(o)
}
