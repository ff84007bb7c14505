package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Daemon with one source.
type fake struct{ flushing chan struct{} }

func (f *fake) Status() Status { return sample() }

func (f *fake) Rescan(r RescanRequest) (RescanAnswer, error) {
	switch {
	case r.Remote:
		return RescanAnswer{}, fmt.Errorf("a comparison: %w", ErrNotReady)
	case r.Source != "" && r.Source != "app-data":
		return RescanAnswer{}, &UnknownSourceError{Source: r.Source, Known: []string{"app-data"}}
	}
	return RescanAnswer{Sources: []string{"app-data"}}, nil
}

func (f *fake) Flush(ctx context.Context, _ []string) (FlushAnswer, error) {
	close(f.flushing)
	<-ctx.Done()
	return FlushAnswer{Sources: []FlushedSource{{Source: "app-data", Reasons: []string{ctx.Err().Error()}}}}, nil
}

// startControl serves the fake until the test ends.
func startControl(t *testing.T, socket string) (*fake, *Control, *Client) {
	t.Helper()
	f := &fake{flushing: make(chan struct{})}
	c, err := ListenControl(t.Context(), ControlOptions{Socket: socket, StateDir: filepath.Dir(socket), Daemon: f, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return f, c, NewClient(socket)
}

func TestClientAndSocketAgree(t *testing.T) {
	_, _, c := startControl(t, filepath.Join(t.TempDir(), "s", "control.sock"))
	st, err := c.Status(t.Context())
	if err != nil || st.Sources[0].Name != "app-data" {
		t.Errorf("Status = %v, %v", st, err)
	}
	if a, err := c.Rescan(t.Context(), RescanRequest{}); err != nil || len(a.Sources) != 1 {
		t.Errorf("Rescan = %v, %v", a, err)
	}
	_, err = c.Rescan(t.Context(), RescanRequest{Source: "other"})
	if u, ok := errors.AsType[*UnknownSourceError](err); !ok || u.Known[0] != "app-data" {
		t.Errorf("Rescan of another source = %v, want UnknownSourceError", err)
	}
	if _, err := c.Rescan(t.Context(), RescanRequest{Remote: true}); err == nil || !strings.Contains(err.Error(), "a comparison: "+ErrNotReady.Error()) {
		t.Errorf("Rescan of the remote = %v, want what the daemon said", err)
	}
}

func TestFlushIsGivenUpAtItsTimeoutAndWithItsClient(t *testing.T) {
	_, _, c := startControl(t, filepath.Join(t.TempDir(), "control.sock"))
	a, err := c.Flush(t.Context(), nil, 10*time.Millisecond)
	if err != nil || a.Sources[0].Done || a.Sources[0].Reasons[0] != context.DeadlineExceeded.Error() {
		t.Errorf("Flush = %v, %v, want the deadline", a, err)
	}
	f, _, c := startControl(t, filepath.Join(t.TempDir(), "control.sock"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-f.flushing
		cancel()
	}()
	if _, err := c.Flush(ctx, nil, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush = %v, want Canceled", err)
	} // The end of Run waits for the handler: it must have been told.
}

func TestOnlyTheOwnUserAndRootMayAsk(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	_, control, c := startControl(t, socket)
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	var asked uint32
	control.allowed = func(uid uint32) bool { asked = uid; return false }
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "only root and the daemon's own user") {
		t.Errorf("Status = %v, want a refusal", err)
	}
	if asked != uint32(os.Getuid()) {
		t.Errorf("the kernel named user %d, want %d", asked, os.Getuid())
	}
}

func TestWrongRequestsAreRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	_, _, c := startControl(t, socket)
	cases := []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/v1/rescan", "", http.StatusMethodNotAllowed},
		{"POST", "/v1/status", "", http.StatusMethodNotAllowed},
		{"GET", "/metrics", "", http.StatusNotFound},
		{"POST", "/v1/rescan", "", http.StatusBadRequest},
		{"POST", "/v1/rescan", `{"sauce":"x"}`, http.StatusBadRequest},
		{"POST", "/v1/flush", `{"timeout":"soon"}`, http.StatusBadRequest},
		{"POST", "/v1/flush", `{"timeout":"-1s"}`, http.StatusBadRequest},
		{"POST", "/v1/rescan", `{"source":"` + strings.Repeat("x", maxRequest) + `"}`, http.StatusBadRequest},
	}
	for _, k := range cases {
		req, err := http.NewRequestWithContext(t.Context(), k.method, "http://s3syncd"+k.path, strings.NewReader(k.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != k.want {
			t.Errorf("%s %s %.40s = %d %s, want %d", k.method, k.path, k.body, resp.StatusCode, body, k.want)
		}
	}
}

func TestAStaleSocketIsReplacedAndALiveOneRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	o := ControlOptions{Socket: socket, StateDir: "/nonexistent", Daemon: &fake{}, Log: zap.NewNop()}
	if _, err := ListenControl(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another daemon answers at "+socket) {
		t.Errorf("ListenControl over a live one = %v", err)
	}
	l.Close()
	c, err := ListenControl(t.Context(), o)
	if err != nil {
		t.Fatalf("ListenControl over a stale one = %v", err)
	}
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := NewClient(socket).Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("Status without a daemon = %v, want ErrNoDaemon", err)
	}
	o.Socket = filepath.Join(t.TempDir(), "not", "there", "control.sock")
	if _, err := ListenControl(t.Context(), o); err == nil {
		t.Error("a directory outside the state was made")
	}
}
