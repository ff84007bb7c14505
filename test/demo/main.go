// Command demo shows s3syncd at work on this machine alone. It starts a MinIO
// with a key of its own and a daemon that watches a directory, puts files
// there, and prints what became of them: the objects with their encryption, the
// published manifest, and the metrics. Then it keeps watching until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
)

// The longest that any one step may take before the demo gives up.
const stepTimeout = time.Minute

// options are the command line.
type options struct {
	minio, s3syncd string
	seconds        int // watch this long at the end; negative: until Ctrl-C
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "demo:", err) // Nowhere left to say so.
		os.Exit(1)
	}
}

// run plays the demo. Everything that it started has ended, and every file that
// it made is gone, when it returns.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "s3syncd-demo-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	s, err := newStage(ctx, dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	p := &printer{w: out}
	if err := s.play(ctx, p); err != nil {
		if ctx.Err() != nil {
			return p.err // Ctrl-C before the end is no failure.
		}
		return fmt.Errorf("%w\n%s", err, s.daemon.tail())
	}
	s.watch(ctx, p, o.seconds)
	return p.err
}

// parse reads the command line. Without a terminal the demo ends by itself.
func parse(args []string) (options, error) {
	o := options{seconds: -1}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		o.seconds = 0
	}
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.StringVar(&o.minio, "minio", "minio", "the MinIO `program`")
	fs.StringVar(&o.s3syncd, "s3syncd", "s3syncd", "the s3syncd `program`")
	fs.IntVar(&o.seconds, "seconds", o.seconds, "how long to watch at the end; negative: until Ctrl-C")
	if err := fs.Parse(args); err != nil {
		return options{}, fmt.Errorf("command line: %w", err)
	}
	return o, nil
}

// stage is the running demo: the server, the daemon and its directory.
type stage struct {
	data   string // the watched directory
	admin  string // the daemon's admin listener, host:port
	minio  *process
	daemon *process
	bucket *bucket
}

// newStage starts MinIO, makes the bucket and starts the daemon.
func newStage(ctx context.Context, dir string, o options) (s *stage, err error) {
	s = &stage{data: filepath.Join(dir, "app-data")}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.MkdirAll(s.data, 0o700); err != nil {
		return nil, fmt.Errorf("watched directory: %w", err)
	}
	if s.admin, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	creds := newCredentials()
	endpoint, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	if s.minio, err = startMinIO(ctx, dir, o.minio, endpoint, creds); err != nil {
		return nil, err
	}
	s.bucket = openBucket(endpoint, creds)
	if err := s.until(ctx, "MinIO to answer", s.bucket.create); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, s.minio.tail())
	}
	if s.daemon, err = startDaemon(ctx, dir, o.s3syncd, s, creds); err != nil {
		return nil, err
	}
	return s, nil
}

// close ends the daemon first, so that it can publish its last manifest.
func (s *stage) close() error {
	return errors.Join(s.daemon.stop(), s.minio.stop())
}

// until calls try until it succeeds. It fails when ctx ends, when one of the
// processes does, or after stepTimeout.
func (s *stage) until(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, err)
		case <-s.minio.ended():
			return fmt.Errorf("waiting for %s: MinIO ended: %w", what, s.minio.err)
		case <-s.daemon.ended():
			return fmt.Errorf("waiting for %s: s3syncd ended: %w", what, s.daemon.err)
		case <-tick.C:
		}
	}
}
