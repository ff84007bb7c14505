package s3store

import (
	"context"
	"net/http"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// observer counts and times every attempt of every operation, and notes what
// the Date headers say of this host's clock.
type observer struct {
	metrics   *Metrics
	clock     *clock
	throttled func()
}

// ID names the middleware.
func (*observer) ID() string { return "s3syncd:observer" }

type answeredKey struct{}

// HandleDeserialize runs once an attempt, around the transport.
func (o *observer) HandleDeserialize(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
	out middleware.DeserializeOutput, md middleware.Metadata, err error,
) {
	sent := time.Now()
	out, md, err = next.HandleDeserialize(ctx, in)
	received := time.Now()
	status := 0
	if resp, ok := out.RawResponse.(*smithyhttp.Response); ok && resp != nil && resp.Response != nil {
		status = resp.StatusCode
		if date, perr := http.ParseTime(resp.Header.Get("Date")); perr == nil {
			o.clock.observe(sent, received, date)
			md.Set(answeredKey{}, date)
		}
	}
	if o.throttled != nil && (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) {
		o.throttled()
	}
	o.metrics.request(awsmiddleware.GetOperationName(ctx), status, received.Sub(sent))
	return out, md, err
}

// stamp fills in what every answer carries outside its body.
func stamp(o state.Object, md middleware.Metadata) state.Object {
	if date, ok := md.Get(answeredKey{}).(time.Time); ok {
		o.ServerTime = date.UTC()
	}
	o.RequestID, _ = awsmiddleware.GetRequestIDMetadata(md)
	return o
}
