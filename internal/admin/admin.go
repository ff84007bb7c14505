// Package admin serves what Prometheus and load balancers ask for over TCP
// (/metrics, /-/healthy and /-/ready: read-only, without parameters), and what
// the commands status, rescan and flush ask for over a unix socket (Control),
// for which it has the client as well. Each has a mux and a server of its own.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Options are what the server shows and asks.
type Options struct {
	Listen   string // host:port; port 0 picks a free one
	Gatherer prometheus.Gatherer
	// Ready reports why the daemon is not ready, nil once it is. It must not
	// block.
	Ready func() error
	// Healthy reports why the process does not work, nil while it does. An
	// outage of S3 is not a reason. It must not block for long.
	Healthy func(context.Context) error
	Log     *zap.Logger
}

// Server is the admin listener.
type Server struct {
	listener net.Listener
	http     *http.Server
	log      *zap.Logger
}

// Listen binds the address, so that a port that is taken is known at the start.
// The server answers once Run is called.
func Listen(ctx context.Context, o Options) (*Server, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("admin.listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /-/healthy", probe("healthy", o.Healthy))
	mux.HandleFunc("GET /-/ready", probe("ready", func(context.Context) error { return o.Ready() }))
	return &Server{
		listener: l,
		log:      o.Log,
		http: &http.Server{
			Handler:           secure(mux),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      time.Minute,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
		},
	}, nil
}

// Addr is the address that was bound, with the port that was picked.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, then lets running answers finish for up to five
// seconds.
func (s *Server) Run(ctx context.Context) error {
	return serve(ctx, "admin server", s.http, s.listener)
}

func serve(ctx context.Context, what string, srv *http.Server, l net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("%s: %w", what, err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(stop)
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Close releases the address of a server whose Run was never called.
func (s *Server) Close() error { return s.listener.Close() }

func probe(what string, check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(r.Context()); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprintf(w, "not %s: %v\n", what, err) // The client may be gone: nothing to do about it.
			return
		}
		_, _ = fmt.Fprintf(w, "%s\n", what) // As above.
	}
}

// secure adds the headers that keep a browser from doing anything with the
// answers, and refuses what a page on another site could send.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		next.ServeHTTP(w, r)
	})
}
