package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stopTimeout is what a child gets between SIGTERM and SIGKILL: more than the
// daemon's own 25 s for what is in flight.
const stopTimeout = 40 * time.Second

// process is a child whose output goes to a file. A nil process has not been
// started: it never ends and stop does nothing.
type process struct {
	log    string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Wait; read it after done is closed
}

// start runs program in a process group of its own, so that a Ctrl-C in the
// terminal reaches the demo alone and the children end in order. It does not
// end with ctx: stop ends it.
func start(ctx context.Context, dir, name, program string, env []string, args ...string) (*process, error) {
	p := &process{log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(inherited(), append(env, "HOME="+dir)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	err = errors.Join(cmd.Start(), log.Close()) // The child has its own descriptor.
	if err != nil {
		p.cancel()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { // Ends with the child; stop waits for it.
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// inherited is the environment less what would configure the children.
func inherited() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "AWS_") || strings.HasPrefix(kv, "MINIO_") || strings.HasPrefix(kv, "S3SYNCD_") ||
			strings.HasPrefix(kv, "NOTIFY_SOCKET=")
	})
}

// ended is closed when the child is gone.
func (p *process) ended() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.done
}

// stop sends SIGTERM and waits. A child that had to be killed is an error.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	p.cancel()
	<-p.done
	if errors.Is(p.err, exec.ErrWaitDelay) {
		return fmt.Errorf("%s: did not end within %v", filepath.Base(p.log), stopTimeout)
	}
	return nil
}

// tail returns the last lines of the child's output.
func (p *process) tail() string {
	if p == nil {
		return ""
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// freeAddress returns a loopback address whose port was free a moment ago.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// keyName is the key that the demo's MinIO has and the daemon is told to use.
const keyName = "demo-key"

// credentials are drawn for each demo and die with it.
type credentials struct{ id, secret string }

func newCredentials() credentials { return credentials{id: "demo", secret: rand.Text()} }

// environment is how both the daemon and the AWS tools are given credentials.
func (c credentials) environment() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + c.id, "AWS_SECRET_ACCESS_KEY=" + c.secret, "AWS_EC2_METADATA_DISABLED=true"}
}

// startMinIO starts a server with one KMS key, all of it below dir.
func startMinIO(ctx context.Context, dir, program, address string, c credentials) (*process, error) {
	data := filepath.Join(dir, "minio")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("directory of MinIO: %w", err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // Never fails: crypto/rand ends the process instead.
	env := []string{
		"MINIO_ROOT_USER=" + c.id, "MINIO_ROOT_PASSWORD=" + c.secret,
		"MINIO_KMS_SECRET_KEY=" + keyName + ":" + base64.StdEncoding.EncodeToString(key),
		"MINIO_BROWSER=off", "MINIO_UPDATE=off",
	}
	return start(ctx, dir, "minio", program, env,
		"server", "--quiet", "--address", address, "--certs-dir", filepath.Join(dir, "certs"), data)
}

// configuration is what an operator would write, with short intervals.
const configuration = `# The demo's configuration. Intervals are short so that there is something to see.
instance: demo-host
state_dir: %[1]s
s3:
  endpoint_url: http://%[2]s
sources:
  - name: app-data
    path: %[3]s
    bucket: %[4]s
    prefix: backups/{instance}/app-data
    kms_key_id: %[5]s
watch:
  settle: 500ms
manifest:
  flush_interval: 2s
  digest_interval: 2s
admin:
  listen: %[6]s
`

// startDaemon writes the configuration and starts s3syncd with it.
func startDaemon(ctx context.Context, dir, program string, s *stage, c credentials) (*process, error) {
	file := filepath.Join(dir, "s3syncd.yaml")
	text := fmt.Sprintf(configuration, filepath.Join(dir, "state"), s.bucket.endpoint, s.data, bucketName, keyName, s.admin)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return start(ctx, dir, "s3syncd", program, c.environment(), "run", "-c", file)
}
