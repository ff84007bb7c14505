package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// maxAnswer bounds what a client reads.
const maxAnswer = 16 << 20

// ErrNoDaemon is returned when no process listens at the socket.
var ErrNoDaemon = errors.New("no daemon answers")

// Client asks a daemon through its control socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a Client of the daemon at socket. It does not connect yet.
func NewClient(socket string) *Client {
	d := net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		DisableKeepAlives: true,
	}}}
}

// Status asks what the daemon is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	_, err := c.ask(ctx, http.MethodGet, statusPath, nil, &s)
	return s, err
}

// StatusJSON is Status as the daemon sent it.
func (c *Client) StatusJSON(ctx context.Context) (Status, []byte, error) {
	var s Status
	raw, err := c.ask(ctx, http.MethodGet, statusPath, nil, &s)
	return s, raw, err
}

// Rescan asks for a rescan and returns at once.
func (c *Client) Rescan(ctx context.Context, r RescanRequest) (RescanAnswer, error) {
	var a RescanAnswer
	_, err := c.ask(ctx, http.MethodPost, rescanPath, r, &a)
	return a, err
}

// Flush blocks until the daemon has done it or given it up. A timeout of 0 is
// none.
func (c *Client) Flush(ctx context.Context, sources []string, timeout time.Duration) (FlushAnswer, error) {
	var a FlushAnswer
	_, err := c.ask(ctx, http.MethodPost, flushPath, FlushRequest{Sources: sources, Timeout: timeout.String()}, &a)
	return a, err
}

// ask sends one request. What does not wait is given up after answerTime.
func (c *Client) ask(ctx context.Context, method, path string, body, into any) ([]byte, error) {
	if path != flushPath {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerTime)
		defer cancel()
	}
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://s3syncd"+path, content)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.dialError(ctx, err)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("the daemon at %s broke off: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		return raw, c.fault(resp.StatusCode, raw)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return raw, fmt.Errorf("answer of the daemon at %s: %w", c.socket, err)
	}
	return raw, nil
}

// dialError says what to do about a daemon that cannot be asked.
func (c *Client) dialError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("the daemon at %s does not answer: see 'systemctl status s3syncd' and its log", c.socket)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: ask as root or as the daemon's own user (sudo, or sudo -u s3syncd)", c.socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w at %s: is it running ('systemctl status s3syncd')? "+
			"--socket PATH or -c FILE name another socket (admin.socket)", ErrNoDaemon, c.socket)
	}
	return fmt.Errorf("the daemon at %s: %w", c.socket, err)
}

// fault is the error that an answer stands for.
func (c *Client) fault(code int, raw []byte) error {
	var f fault
	if err := json.Unmarshal(raw, &f); err != nil || f.Error == "" {
		return fmt.Errorf("the daemon at %s answers with status %d", c.socket, code)
	}
	if code == http.StatusNotFound && f.Source != "" {
		return &UnknownSourceError{Source: f.Source, Known: f.Sources}
	}
	return fmt.Errorf("the daemon at %s: %s", c.socket, f.Error)
}
