package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	statusPath = "/v1/status"
	rescanPath = "/v1/rescan"
	flushPath  = "/v1/flush"

	maxRequest  = 64 << 10
	answerTime  = 10 * time.Second // for what does not wait
	dialTimeout = 2 * time.Second
)

// ErrNotReady is returned by a Daemon that cannot do yet, or any more, what it
// was asked.
var ErrNotReady = errors.New("the daemon is not ready")

// Daemon is what the control socket gives access to. Its methods may be called
// concurrently; an error may be an *UnknownSourceError.
type Daemon interface {
	// Status does not wait for the disk.
	Status() Status
	Rescan(r RescanRequest) (RescanAnswer, error)
	// Flush blocks until it is done or ctx ends.
	Flush(ctx context.Context, sources []string) (FlushAnswer, error)
}

// ControlOptions are what the control socket needs.
type ControlOptions struct {
	Socket   string // absolute
	StateDir string // directories inside it are made where they are missing
	Daemon   Daemon
	Log      *zap.Logger
}

// Control is the control socket.
type Control struct {
	listener net.Listener
	http     *http.Server
	daemon   Daemon
	log      *zap.Logger
	allowed  func(uid uint32) bool
}

// ListenControl binds the socket, mode 0600. It replaces the socket that a dead
// process has left and refuses one that a process answers. The socket
// answers once Run is called.
func ListenControl(ctx context.Context, o ControlOptions) (*Control, error) {
	if err := makeDirectory(o); err != nil {
		return nil, fmt.Errorf("admin.socket: %w", err)
	}
	l, err := bindSocket(ctx, o.Socket)
	if err != nil {
		return nil, fmt.Errorf("admin.socket: %w", err)
	}
	if err := os.Chmod(o.Socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("admin.socket: %w", err), l.Close())
	}
	own := uint32(os.Geteuid())
	c := &Control{
		listener: l, daemon: o.Daemon, log: o.Log,
		allowed: func(uid uint32) bool { return uid == 0 || uid == own },
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, c.status)
	mux.HandleFunc("POST "+rescanPath, c.rescan)
	mux.HandleFunc("POST "+flushPath, c.flush)
	c.http = &http.Server{
		Handler:           c.guard(mux),
		ConnContext:       withPeer,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       answerTime,
		WriteTimeout:      answerTime,
		IdleTimeout:       answerTime,
		MaxHeaderBytes:    16 << 10,
	}
	return c, nil
}

// makeDirectory makes the socket's directory if that is the state's own affair.
func makeDirectory(o ControlOptions) error {
	dir := filepath.Dir(o.Socket)
	if dir != o.StateDir && !strings.HasPrefix(dir, o.StateDir+"/") {
		return nil
	}
	return safefs.MkdirAll(dir, 0o700)
}

// bindSocket listens at path.
func bindSocket(ctx context.Context, path string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	return lc.Listen(ctx, "unix", path)
}

// removeStale removes a socket without a listener.
func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s is there and is not a socket: remove it, or configure another path", path)
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("another daemon answers at %s: stop it, or configure another path", path), conn.Close())
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s is in use: %w", path, err)
	}
	return os.Remove(path)
}

// Run serves until ctx ends, then lets running answers finish for up to five
// seconds, and removes the socket.
func (c *Control) Run(ctx context.Context) error {
	return serve(ctx, "control socket", c.http, func() error { return c.http.Serve(c.listener) })
}

// Close removes the socket of a Control whose Run was never called.
func (c *Control) Close() error { return c.listener.Close() }

// peerKey is the context's key of the peer's user.
type peerKey struct{}

// peer is the user at the other end.
type peer struct {
	uid uint32
	err error
}

// withPeer asks the kernel who connected.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	p := peer{err: errors.New("no unix socket")}
	if u, ok := conn.(*net.UnixConn); ok {
		p.uid, p.err = peerUID(u)
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerUID(u *net.UnixConn) (uint32, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// guard lets root and the daemon's own user in.
func (c *Control) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if !ok || p.err != nil || !c.allowed(p.uid) {
			c.log.Warn("control request refused", zap.Uint32("uid", p.uid), zap.Error(p.err))
			answerError(w, http.StatusForbidden, errors.New("only root and the daemon's own user may ask"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *Control) status(w http.ResponseWriter, _ *http.Request) { answer(w, c.daemon.Status()) }

func (c *Control) rescan(w http.ResponseWriter, r *http.Request) {
	var req RescanRequest
	if !read(w, r, &req) {
		return
	}
	a, err := c.daemon.Rescan(req)
	if err != nil {
		answerError(w, statusOf(err), err)
		return
	}
	c.log.Info("rescan asked", zap.Strings("sources", a.Sources), zap.Bool("remote", req.Remote), zap.Bool("confirm_deletes", req.ConfirmDeletes))
	answer(w, a)
}

func (c *Control) flush(w http.ResponseWriter, r *http.Request) {
	var req FlushRequest
	if !read(w, r, &req) {
		return
	}
	timeout, err := time.ParseDuration(req.Timeout)
	if err != nil || timeout < 0 {
		answerError(w, http.StatusBadRequest, fmt.Errorf("timeout %q is not a duration", req.Timeout))
		return
	}
	ctx := r.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var forever time.Time // It takes as long as it was given.
	control := http.NewResponseController(w)
	if err := errors.Join(control.SetWriteDeadline(forever), control.SetReadDeadline(forever)); err != nil {
		answerError(w, http.StatusInternalServerError, err)
		return
	}
	a, err := c.daemon.Flush(ctx, req.Sources)
	if err != nil {
		answerError(w, statusOf(err), err)
		return
	}
	answer(w, a)
}

// read decodes a request, or answers what is wrong with it.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		answerError(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
		return false
	}
	return true
}

// fault is the body of an answer that is an error.
type fault struct {
	Error   string   `json:"error"`
	Source  string   `json:"source,omitempty"` // that is not known
	Sources []string `json:"sources,omitempty"`
}

func statusOf(err error) int {
	if _, ok := errors.AsType[*UnknownSourceError](err); ok {
		return http.StatusNotFound
	}
	if errors.Is(err, ErrNotReady) {
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func answerError(w http.ResponseWriter, code int, err error) {
	f := fault{Error: err.Error()}
	if u, ok := errors.AsType[*UnknownSourceError](err); ok {
		f.Source, f.Sources = u.Source, u.Known
	}
	write(w, code, f)
}

func answer(w http.ResponseWriter, body any) { write(w, http.StatusOK, body) }

func write(w http.ResponseWriter, code int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(`{"error":"the answer has no JSON form"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b) // The client may be gone: nothing to do about it.
}
