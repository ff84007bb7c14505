package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// server runs a Server until the end of the test.
func server(t *testing.T, ready, healthy func() error) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "s3syncd_test", Help: "A gauge."}))
	s, err := Listen(t.Context(), Options{
		Listen: "127.0.0.1:0", Gatherer: reg, Ready: ready,
		Healthy: healthy, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return "http://" + s.Addr().String()
}

func get(t *testing.T, method, url string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestProbesSayWhy(t *testing.T) {
	var up atomic.Bool
	state := func() error {
		if !up.Load() {
			return errors.New("the state is opening")
		}
		return nil
	}
	url := server(t, state, state)
	for _, path := range []string{"/-/ready", "/-/healthy"} {
		if code, body, _ := get(t, http.MethodGet, url+path); code != 503 || !strings.Contains(body, "the state is opening") {
			t.Errorf("GET %s = %d %q, want 503 and the reason", path, code, body)
		}
	}
	up.Store(true)
	for _, path := range []string{"/-/ready", "/-/healthy"} {
		if code, body, _ := get(t, http.MethodGet, url+path); code != 200 {
			t.Errorf("GET %s = %d %q, want 200", path, code, body)
		}
	}
}

func TestOnlyReadsOfWhatThereIsAreAnswered(t *testing.T) {
	ok := func() error { return nil }
	url := server(t, ok, ok)
	cases := []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/metrics", 200},
		{http.MethodPost, "/metrics", 405},
		{http.MethodDelete, "/-/ready", 405},
		{http.MethodGet, "/", 404},
		{http.MethodGet, "/debug/pprof/", 404},
		{http.MethodGet, "/-/reload", 404},
	}
	for _, c := range cases {
		code, _, header := get(t, c.method, url+c.path)
		if code != c.want {
			t.Errorf("%s %s = %d, want %d", c.method, c.path, code, c.want)
		}
		if got := header.Get("Content-Security-Policy"); got == "" {
			t.Errorf("%s %s has no Content-Security-Policy", c.method, c.path)
		}
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	ok := func() error { return nil }
	url := server(t, ok, ok)
	addr := strings.TrimPrefix(url, "http://")
	_, err := Listen(t.Context(), Options{Listen: addr, Gatherer: prometheus.NewRegistry(), Ready: ok, Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "admin.listen") {
		t.Errorf("Listen(%s) = %v, want an error that names it and the key", addr, err)
	}
}
