package s3store

import (
	"net/http"
	"sync/atomic"

	"go.uber.org/zap"
)

// expectContinue is the size from which on a body waits for the server's word:
// a refusal then costs no traffic.
const expectContinue = 2 << 20

// expecter asks for that word, until something on the way answers that it does
// not know the question. Some proxies refuse every such request.
type expecter struct {
	next    http.RoundTripper
	log     *zap.Logger
	refused atomic.Bool
}

// RoundTrip sends one attempt.
func (e *expecter) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.ContentLength < expectContinue || e.refused.Load() {
		return e.next.RoundTrip(req)
	}
	r := req.WithContext(req.Context()) // A RoundTripper leaves its request as it is.
	r.Header = req.Header.Clone()
	r.Header.Set("Expect", "100-continue")
	resp, err := e.next.RoundTrip(r)
	if err == nil && resp.StatusCode == http.StatusExpectationFailed && !e.refused.Swap(true) {
		e.log.Warn("the server, or a proxy before it, refuses Expect: 100-continue; requests go without it from now on")
	}
	return resp, err
}
