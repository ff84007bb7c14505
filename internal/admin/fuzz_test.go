package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// atOnce is a Daemon whose flush does not wait.
type atOnce struct{ fake }

func (*atOnce) Flush(context.Context, []string) (FlushAnswer, error) { return FlushAnswer{}, nil }

// recorder takes deadlines, as a connection does.
type recorder struct{ *httptest.ResponseRecorder }

func (*recorder) SetReadDeadline(time.Time) error  { return nil }
func (*recorder) SetWriteDeadline(time.Time) error { return nil }

// Whatever is sent to the control socket is answered in JSON, and nothing of it
// is a fault of the daemon.
func FuzzControl(f *testing.F) {
	// Few enough that all of them are tried soon on a busy machine too.
	for _, path := range []string{statusPath, rescanPath, flushPath, "/", "/metrics", statusPath + "/"} {
		f.Add("GET", path, "")
		f.Add("POST", path, "{}")
	}
	for _, path := range []string{rescanPath, flushPath} {
		for _, body := range []string{
			"", `{"source":"app-data"}`, `{"source":"x"}`, `{"remote":true}`, `{"confirm_deletes":true}`, `{"timeout":"1s"}`,
			`{"timeout":"-1s"}`, `{"sauce":1}`, `[]`, `null`, "{", strings.Repeat("[", 5000), `{"source":"` + "\x1b[2J" + `"}`,
		} {
			f.Add("POST", path, body)
		}
	}
	c, err := ListenControl(context.Background(), ControlOptions{
		Socket: filepath.Join(f.TempDir(), "control.sock"), StateDir: "/nonexistent", Daemon: &atOnce{}, Log: zap.NewNop(),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	f.Fuzz(func(t *testing.T, method, path, body string) {
		ctx := context.WithValue(t.Context(), peerKey{}, peer{})
		req, err := http.NewRequestWithContext(ctx, method, "http://s3syncd/", strings.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		req.URL.Path = path
		w := &recorder{httptest.NewRecorder()}
		c.http.Handler.ServeHTTP(w, req)
		if w.Code >= http.StatusInternalServerError && w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s %q %.200q = %d %s", method, path, body, w.Code, w.Body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %q %.200q = %q, which is no JSON", method, path, body, w.Body)
		}
	})
}
