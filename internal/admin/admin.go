// Package admin serves what Prometheus, load balancers and people with a browser
// ask for over TCP (/metrics, /-/healthy, /-/ready and the status page:
// read-only, without parameters), and what
// the commands status, rescan and flush ask for over a unix socket (Control),
// for which it has the client as well. Each has a mux and a server of its own.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/s3syncd/s3syncd/internal/loopback"
)

// Options are what the server shows and asks.
type Options struct {
	Listen   string // host:port; port 0 picks a free one
	Gatherer prometheus.Gatherer
	// Ready reports why the daemon is not ready, nil once it is. It must not
	// block.
	Ready func() error
	// Healthy reports why the process does not work, nil while it does. An
	// outage of S3 is not a reason. It must not block.
	Healthy func() error
	// Page answers / and what lies under /page/; nil: there is no page.
	Page http.Handler
	// WebConfig is the file that sets TLS and authentication, for every path, in
	// the form of Prometheus; "": neither. See CheckWebConfig.
	WebConfig string
	Log       *zap.Logger
}

// Server is the admin listener.
type Server struct {
	bound     net.Listener
	http      *http.Server
	webConfig string
	log       *zap.Logger
}

// maxConnections bounds the connections there are at once, so that whoever
// opens many cannot take the descriptors that uploads need.
const maxConnections = 256

// Listen binds the address, so that a port that is taken is known at the start.
// The server answers once Run is called.
func Listen(ctx context.Context, o Options) (*Server, error) {
	if o.WebConfig != "" {
		if _, err := CheckWebConfig(o.WebConfig); err != nil {
			return nil, fmt.Errorf("admin.web_config: %w", err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	if o.Page != nil && o.WebConfig == "" && !loopback.Address(l.Addr().String()) {
		return nil, errors.Join(fmt.Errorf("admin.page: shows file names to whoever reaches %s, which is where admin.listen leads", l.Addr()), l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /-/healthy", probe("healthy", o.Healthy))
	mux.HandleFunc("GET /-/ready", probe("ready", o.Ready))
	if o.Page != nil {
		mux.Handle("GET /{$}", o.Page)
		mux.Handle("GET /page/", o.Page)
	}
	var handler http.Handler = mux
	if o.WebConfig == "" && loopback.Address(l.Addr().String()) {
		handler = onlyLocalNames(handler)
	}
	return &Server{
		bound:     l,
		webConfig: o.WebConfig,
		log:       o.Log,
		http: &http.Server{
			Handler:           secure(handler),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      time.Minute,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          zap.NewStdLog(o.Log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
		},
	}, nil
}

// Addr is the address that was bound, with the port that was picked.
func (s *Server) Addr() net.Addr { return s.bound.Addr() }

// Run serves until ctx ends, then lets running answers finish for up to five
// seconds and cuts off what takes longer.
func (s *Server) Run(ctx context.Context) error {
	return serve(ctx, "admin server", s.http, func() error {
		return serveWeb(netutil.LimitListener(s.bound, maxConnections), s.http, s.webConfig, s.log)
	})
}

// stopTime is how long running answers may go on when a server stops.
const stopTime = 5 * time.Second

// serve calls run, which serves until srv is shut down, and shuts it down when
// ctx ends. Answers that then take longer than stopTime are cut off.
func serve(ctx context.Context, what string, srv *http.Server, run func() error) error {
	silent := &silentConns{conns: map[net.Conn]struct{}{}}
	srv.ConnState = silent.note
	served := make(chan error, 1)
	go func() { served <- run() }()
	select {
	case err := <-served:
		return fmt.Errorf("%s: %w", what, err)
	case <-ctx.Done():
	}
	silent.close()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// silentConns are the connections on which nothing was asked yet. Browsers open
// such in advance, and a server that stops would wait for each.
type silentConns struct {
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// note implements the ConnState of an http.Server.
func (s *silentConns) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.conns, c)
	case s.closed:
		_ = c.Close() // The server stops.
	default:
		s.conns[c] = struct{}{}
	}
}

// close closes them, and those that come.
func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close() // Nothing was promised on it.
	}
}

// Close releases the address of a server whose Run was never called.
func (s *Server) Close() error { return s.bound.Close() }

func probe(what string, check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, "not %s: %v\n", what, err) // The client may be gone: nothing to do about it.
			return
		}
		_, _ = fmt.Fprintf(w, "%s\n", what) // The client is gone.
	}
}

// secure adds the headers that keep a browser from doing anything with the
// answers, and refuses what a page on another site makes it ask for. A link or
// an address that is typed is answered.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
		site, visit := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
		if (site == "cross-site" || site == "same-site") && !visit {
			http.Error(w, "a page on another site may not read this", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// onlyLocalNames refuses requests whose Host is not this machine's own: a name
// on the internet that is made to resolve to 127.0.0.1 would let its page read the
// answers.
func onlyLocalNames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !loopback.Address(r.Host) {
			http.Error(w, "this listener answers to localhost, 127.0.0.1 and [::1] only: "+
				"reach it through 'ssh -L', have the proxy send such a Host header, or set admin.web_config", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
