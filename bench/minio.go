package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const startLimit = time.Minute

// server is what the programs send to.
type server interface {
	endpoint() string
	count() map[string]int64 // nil where requests are not counted
	close() error
}

func (n *nullServer) endpoint() string { return n.url }

// minioServer is a MinIO with one KMS key and one bucket.
type minioServer struct {
	url string
	dir string
	c   *child
}

// newMinIO starts a server that keeps its data below a new directory of base.
func newMinIO(ctx context.Context, program, base string) (_ *minioServer, err error) {
	dir, err := os.MkdirTemp(base, "minio-")
	if err != nil {
		return nil, fmt.Errorf("directory of MinIO: %w", err)
	}
	m := &minioServer{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	// A directory is a bucket.
	if err := os.MkdirAll(filepath.Join(dir, "data", benchBucket), 0o700); err != nil {
		return nil, fmt.Errorf("directory of MinIO: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("free port: %w", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, fmt.Errorf("free port: %w", err)
	}
	m.url = "http://" + address
	m.c, err = startChild(ctx, command{program: program, dir: dir, env: []string{
		"HOME=" + dir, "MINIO_ROOT_USER=" + accessKey, "MINIO_ROOT_PASSWORD=" + secretKey,
		"MINIO_KMS_SECRET_KEY=" + benchKey + ":" + base64.StdEncoding.EncodeToString(make([]byte, 32)),
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1",
	}, args: []string{"server", "--quiet", "--address", address, "--certs-dir", filepath.Join(dir, "certs"), filepath.Join(dir, "data")}})
	if err != nil {
		return nil, err
	}
	if err := m.await(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// await returns when the server is ready.
func (m *minioServer) await(ctx context.Context) error {
	return until(ctx, startLimit, "MinIO to be ready", func() (bool, error) {
		select {
		case <-m.c.done:
			_, err := m.c.wait()
			return false, fmt.Errorf("it ended: %w", err)
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url+"/minio/health/cluster", http.NoBody)
		if err != nil {
			return false, err
		}
		resp, err := (&http.Client{Timeout: time.Second}).Do(req)
		if err != nil {
			return false, nil //nolint:nilerr // Not yet.
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
}

func (m *minioServer) endpoint() string { return m.url }

func (*minioServer) count() map[string]int64 { return nil }

// close ends the server and removes its data.
func (m *minioServer) close() error {
	if m.c != nil {
		m.c.stop()
	}
	return os.RemoveAll(m.dir)
}

// until calls try every few milliseconds until it reports true.
func until(ctx context.Context, limit time.Duration, what string, try func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for {
		ok, err := try()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, ctx.Err())
		case <-t.C:
		}
	}
}
