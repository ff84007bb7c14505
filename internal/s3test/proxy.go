package s3test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.uber.org/zap"
)

// Proxy stands between a client and a real server and plays planned faults in
// HTTP.
type Proxy struct {
	*Faults

	URL string
}

// NewProxy starts a Proxy to upstream, an http:// URL, until the end of the
// test. Signatures stay valid: it passes the Host header on.
func NewProxy(tb testing.TB, upstream string) *Proxy {
	tb.Helper()
	target, err := url.Parse(upstream)
	if err != nil {
		tb.Fatalf("upstream: %v", err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	p := &Proxy{}
	p.Faults = newFaults(tb, &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Expect") // This side has said "continue" already.
		},
		ErrorLog:     zap.NewStdLog(zap.NewNop()),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	})
	srv := httptest.NewServer(p.Faults)
	p.URL = srv.URL
	tb.Cleanup(func() {
		p.releaseAll()
		srv.CloseClientConnections()
		srv.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Network stands between a client and a real server and breaks the connection
// itself: latency, resets, silence.
type Network struct {
	URL string

	tb    testing.TB
	proxy *toxiproxy.Proxy
}

// NewNetwork starts a Network to upstream, an http:// or https:// URL, until
// the end of the test.
func NewNetwork(tb testing.TB, upstream string) *Network {
	tb.Helper()
	u, err := url.Parse(upstream)
	if err != nil {
		tb.Fatalf("upstream: %v", err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, tb.Name(), "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		tb.Fatalf("start toxiproxy: %v", err)
	}
	tb.Cleanup(p.Stop)
	return &Network{URL: u.Scheme + "://" + p.Listen, tb: tb, proxy: p}
}

// Latency delays every answer.
func (n *Network) Latency(d time.Duration) {
	n.toxic("latency", "downstream", fmt.Sprintf(`"latency": %d`, d.Milliseconds()))
}

// Bandwidth limits what the client can send, in KiB a second.
func (n *Network) Bandwidth(rate int) {
	n.toxic("bandwidth", "upstream", fmt.Sprintf(`"rate": %d`, rate))
}

// Silence swallows all data of both directions and keeps connections open.
func (n *Network) Silence() {
	n.toxic("timeout", "upstream", `"timeout": 0`)
	n.toxic("timeout", "downstream", `"timeout": 0`)
}

// Reset resets every connection as soon as data arrives.
func (n *Network) Reset() { n.toxic("reset_peer", "upstream", `"timeout": 0`) }

// Heal removes everything that was added.
func (n *Network) Heal() { n.proxy.Toxics.ResetToxics(context.Background()) }

// Down refuses connections and closes those there are, until Up.
func (n *Network) Down() { n.proxy.Stop() }

// Up accepts connections again, on the same port.
func (n *Network) Up() {
	n.tb.Helper()
	if err := n.proxy.Start(); err != nil {
		n.tb.Fatalf("restart toxiproxy: %v", err)
	}
}

func (n *Network) toxic(kind, stream, attributes string) {
	n.tb.Helper()
	in := fmt.Sprintf(`{"name": "%s_%s", "type": %q, "stream": %q, "attributes": {%s}}`, kind, stream, kind, stream, attributes)
	if _, err := n.proxy.Toxics.AddToxicJson(strings.NewReader(in)); err != nil {
		n.tb.Fatalf("add toxic %s: %v", kind, err)
	}
}
