// Package s3test gives tests a real S3 server with a KMS key (MinIO), proxies
// that break the way to it, and a fake for the answers that MinIO cannot give.
// No production package imports it.
package s3test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"go.uber.org/goleak"
)

// What every server of this package uses.
const (
	Region = "us-east-1"
	// KeyName is the KMS key of a MinIO server; its answers name KeyARN.
	KeyName = "s3syncd-test-key"
	KeyARN  = "arn:aws:kms:" + KeyName

	startLimit = 30 * time.Second
	rootUser   = "s3syncd-root"
)

// Credentials are what a client signs with.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Environ returns the credentials as the AWS environment has them, without
// anything of this host's own configuration.
func (c Credentials) Environ() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + c.SecretAccessKey, "AWS_SESSION_TOKEN=" + c.SessionToken,
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_PROFILE=", "AWS_REGION=" + Region,
	}
}

// Setenv makes c the AWS environment of the test.
func (c Credentials) Setenv(t *testing.T) {
	t.Helper()
	for _, kv := range c.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
}

// Server is a running MinIO.
type Server struct {
	URL    string
	Root   Credentials
	CAFile string // of a TLS server: what AWS_CA_BUNDLE names

	binary string
	dir    string
	secret string // of the key
	pid    int
	ended  chan struct{}
	output *bytes.Buffer // read only after ended
	client *s3.Client
	http   *http.Client
}

// servers are those of this process, by whether they speak TLS.
type servers struct {
	mu sync.Mutex
	by map[bool]*Server
}

var shared = &servers{by: map[bool]*Server{}} //nolint:gochecknoglobals // One server serves all tests of a process.

// MinIO returns the process's MinIO server, which the first call starts. The
// package's TestMain must be Main, which ends it.
func MinIO(tb testing.TB) *Server {
	tb.Helper()
	return shared.get(tb, false)
}

// MinIOTLS is MinIO with a certificate of a private CA.
func MinIOTLS(tb testing.TB) *Server {
	tb.Helper()
	return shared.get(tb, true)
}

// Main runs a package's tests, ends the servers that they started, and fails
// when goroutines are left over. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(s3test.Main(m)) }
func Main(m *testing.M, options ...goleak.Option) int {
	code := m.Run()
	shared.stop()
	if code != 0 {
		return code
	}
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintf(os.Stderr, "goroutines are left over: %v\n", err)
		return 1
	}
	return 0
}

// OwnMinIO starts a MinIO for one test, which may stop it and start it again,
// and ends it with the test.
func OwnMinIO(tb testing.TB) *Server {
	tb.Helper()
	binary, err := minioBinary()
	if err != nil {
		tb.Fatal(err)
	}
	s, err := startMinIO(binary, false)
	if err != nil {
		tb.Fatalf("start %s: %v", binary, err)
	}
	tb.Cleanup(s.stop)
	return s
}

// Kill ends a server of OwnMinIO as a power cut would. Its data stays.
func (s *Server) Kill(tb testing.TB) {
	tb.Helper()
	_ = syscall.Kill(s.pid, syscall.SIGKILL)
	<-s.ended
}

// Restart starts a killed server again with its data, at the same address, and
// returns when it answers.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	if err := s.launch(); err != nil {
		tb.Fatalf("restart: %v", err)
	}
	if err := s.awaitReady(); err != nil {
		tb.Fatalf("restart: %v", err)
	}
}

func (p *servers) get(tb testing.TB, tls bool) *Server {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.by[tls]; s != nil {
		return s
	}
	binary, err := minioBinary()
	if err != nil {
		tb.Fatal(err)
	}
	s, err := startMinIO(binary, tls)
	if err != nil {
		tb.Fatalf("start %s: %v", binary, err)
	}
	p.by[tls] = s
	return s
}

func (p *servers) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for tls, s := range p.by {
		s.stop()
		delete(p.by, tls)
	}
}

// minioBinary finds MinIO where the Makefile puts it.
func minioBinary() (string, error) {
	if p := os.Getenv("S3SYNCD_TEST_MINIO"); p != "" {
		return p, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the test")
		}
	}
	p := filepath.Join(dir, ".bin", "minio")
	if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: run `make tools`, or name a MinIO server in S3SYNCD_TEST_MINIO", p)
	}
	return p, nil
}

// startMinIO starts a server on a free loopback port and waits until it
// answers.
func startMinIO(binary string, tls bool) (*Server, error) {
	dir, err := os.MkdirTemp("", "s3test-minio-")
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // Never fails.
	s := &Server{
		binary: binary, dir: dir, secret: base64.StdEncoding.EncodeToString(key),
		Root: Credentials{AccessKeyID: rootUser, SecretAccessKey: rand.Text()},
	}
	scheme, pool := "http", (*caFiles)(nil)
	if tls {
		scheme = "https"
		if pool, err = writeCA(filepath.Join(dir, "certs")); err != nil {
			return nil, err
		}
		s.CAFile = pool.file
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	s.URL = scheme + "://" + address
	s.http = pool.client()
	if err := s.launch(); err != nil {
		return nil, err
	}
	s.client = s.connect(s.Root)
	if err := s.awaitReady(); err != nil {
		s.stop()
		return nil, fmt.Errorf("%w; its output:\n%s", err, s.output)
	}
	return s, nil
}

// launch starts the process and does not wait until it answers.
func (s *Server) launch() error {
	s.ended, s.output = make(chan struct{}), &bytes.Buffer{}
	cmd := s.command(strings.TrimPrefix(strings.TrimPrefix(s.URL, "http://"), "https://"))
	started := make(chan error)
	go s.run(cmd, started)
	return <-started
}

func (s *Server) command(address string) *exec.Cmd {
	cmd := exec.Command(s.binary, "server", "--quiet", "--address", address, "--certs-dir", filepath.Join(s.dir, "certs"), filepath.Join(s.dir, "data")) //nolint:gosec,noctx // The test names its server, and ends it itself.
	cmd.Env = append(os.Environ(),
		"HOME="+s.dir, "MINIO_ROOT_USER="+s.Root.AccessKeyID, "MINIO_ROOT_PASSWORD="+s.Root.SecretAccessKey,
		"MINIO_KMS_SECRET_KEY="+KeyName+":"+s.secret,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1",
	)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// run starts the server and waits for its end, on one thread: the kernel ends
// the server with the thread that started it.
func (s *Server) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(s.ended)
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	s.pid = cmd.Process.Pid
	started <- nil
	_ = cmd.Wait() // It is killed in the end.
}

// stop ends the server by its process id and removes its data.
func (s *Server) stop() {
	s.http.CloseIdleConnections()
	_ = syscall.Kill(s.pid, syscall.SIGKILL) // Its data goes with it.
	<-s.ended
	_ = os.RemoveAll(s.dir) // A leftover in the temporary directory harms nobody.
}

// awaitReady waits until the server answers a signed request.
func (s *Server) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.client.ListBuckets(ctx, &s3.ListBucketsInput{})
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return errors.New("the server ended")
		case <-ctx.Done():
			return fmt.Errorf("not ready after %v: %w", startLimit, err)
		case <-tick.C:
		}
	}
}

func (s *Server) connect(c Credentials) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.URL), Region: Region, UsePathStyle: true, HTTPClient: s.http, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
	})
}

// Client returns a client of its own with all rights, to look at what the
// product did.
func (s *Server) Client() *s3.Client { return s.client }

// Setenv makes the server's root user, and its CA, the AWS environment of the
// test.
func (s *Server) Setenv(t *testing.T) {
	t.Helper()
	s.Root.Setenv(t)
	t.Setenv("AWS_CA_BUNDLE", s.CAFile)
}

// BucketOptions are what a bucket is created with.
type BucketOptions struct{ Versioning, ObjectLock bool }

// Bucket creates an empty bucket of a new name. It goes away with the server.
func (s *Server) Bucket(tb testing.TB, o ...BucketOptions) string {
	tb.Helper()
	var options BucketOptions
	if len(o) > 0 {
		options = o[0]
	}
	name := "t-" + strings.ToLower(rand.Text())
	_, err := s.client.CreateBucket(tb.Context(), &s3.CreateBucketInput{
		Bucket: aws.String(name), ObjectLockEnabledForBucket: aws.Bool(options.ObjectLock),
	})
	if err != nil {
		tb.Fatalf("create bucket: %v", err)
	}
	if options.Versioning {
		_, err := s.client.PutBucketVersioning(tb.Context(), &s3.PutBucketVersioningInput{
			Bucket: aws.String(name), VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
		})
		if err != nil {
			tb.Fatalf("turn versioning on: %v", err)
		}
	}
	return name
}

// User returns temporary credentials that may do what policy, an IAM policy in
// JSON, allows and nothing else.
func (s *Server) User(tb testing.TB, policy string) Credentials {
	tb.Helper()
	client := sts.New(sts.Options{
		BaseEndpoint: aws.String(s.URL), Region: Region, HTTPClient: s.http,
		Credentials: credentials.NewStaticCredentialsProvider(s.Root.AccessKeyID, s.Root.SecretAccessKey, ""),
	})
	out, err := client.AssumeRole(tb.Context(), &sts.AssumeRoleInput{
		Policy: aws.String(policy), RoleArn: aws.String("arn:xxx:xxx:xxx:xxxx"), RoleSessionName: aws.String("test"),
	})
	if err != nil {
		tb.Fatalf("assume role: %v", err)
	}
	return Credentials{
		AccessKeyID: aws.ToString(out.Credentials.AccessKeyId), SecretAccessKey: aws.ToString(out.Credentials.SecretAccessKey),
		SessionToken: aws.ToString(out.Credentials.SessionToken),
	}
}

// freeAddress returns a loopback address that nobody listens on right now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // Closed at once.
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer func() { _ = l.Close() }() // Nothing was accepted.
	return l.Addr().String(), nil
}
