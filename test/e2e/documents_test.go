package e2e_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/test/docs/shell"
)

// reader is somebody who types what the documents show, on a host whose paths
// are below root and whose S3 is MinIO.
type reader struct {
	root   string // stands for /
	home   string // where the commands are typed
	file   string // the configuration
	onAWS  string // the same as the README has it: policies are for AWS alone
	state  string // its state_dir
	bucket string
	env    []string
	daemon *process
}

// The README's configuration is the one that all commands are tried with.
func TestTheCommandsOfTheDocumentsWork(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash here")
	}
	r := newReader(t)
	docs := filepath.Join("..", "..")
	names, err := shell.Documents(docs)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, name := range names {
		commands, err := shell.Commands(docs, name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "docs/QUERIES.md" {
			r.fetchManifests(t)
		}
		for _, c := range commands {
			if r.follow(t, c) {
				ran++
			}
		}
	}
	if ran < 35 {
		t.Errorf("%d commands were run, want at least 35", ran)
	}
	if r.daemon == nil {
		t.Fatal("no document starts the daemon, or one leaves it stopped")
	}
	if code := r.daemon.stop(t); code != 0 {
		t.Errorf("the daemon ended with %d:\n%s", code, r.daemon.stderr)
	}
	if body, _ := os.ReadFile(filepath.Join(r.home, "role.json")); !strings.Contains(string(body), "kms:GenerateDataKey") {
		t.Errorf("the role's policy is %q", body)
	}
	view := bucketView{client: s3test.MinIO(t).Client(), bucket: r.bucket, prefix: "backups/app-01/app-data"}
	for rel, want := range map[string]string{"hello.txt": "hello\n", "orders/2026-01.csv": "1;2\n"} {
		if body, _ := view.get(t, view.prefix+"/"+rel); string(body) != want {
			t.Errorf("S3 holds %q as %s, want %q", body, rel, want)
		}
	}
}

func newReader(t *testing.T) *reader {
	t.Helper()
	srv := s3test.MinIO(t)
	root := t.TempDir()
	r := &reader{
		root: root, home: filepath.Join(root, "home"), file: filepath.Join(root, "etc", "s3syncd", "s3syncd.yaml"),
		state: filepath.Join(root, "var", "lib", "s3syncd"), bucket: srv.Bucket(t, s3test.BucketOptions{Versioning: true}),
	}
	for _, dir := range []string{r.home, filepath.Join(root, "bin"), filepath.Join(root, "var", "lib")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binary, filepath.Join(root, "bin", "s3syncd")); err != nil {
		t.Fatal(err)
	}
	// A command with the race detector would wait for a second at its end.
	r.env = append(append(environ(), srv.Root.Environ()...), "AWS_ENDPOINT_URL="+srv.URL, "HOME="+r.home, "GORACE=atexit_sleep_ms=0",
		"XDG_STATE_HOME="+filepath.Join(root, "user-state"), "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
	write(t, filepath.Join(root, "opt", "app", "data", "orders", "2026-01.csv"), "1;2\n")
	write(t, filepath.Join(r.home, "present.json"), "") // What aws says of a bucket without a policy.
	r.configure(t, srv.URL)
	return r
}

// configure makes the README's configuration that of the host, with a key that
// signs.
func (r *reader) configure(t *testing.T, endpoint string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := slices.DeleteFunc(shell.Blocks(string(text)), func(b shell.Block) bool { return b.Language != "yaml" })
	if len(blocks) != 1 || !strings.Contains(blocks[0].Text, "s3:\n") {
		t.Fatalf("the README has %d configurations, want 1 with s3:", len(blocks))
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(r.root, "trail.key")
	for name, m := range map[string]func() ([]byte, error){
		key:                                func() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(private) },
		filepath.Join(r.home, "trail.pem"): func() ([]byte, error) { return x509.MarshalPKIXPublicKey(public) },
	} {
		der, err := m()
		if err != nil {
			t.Fatal(err)
		}
		kind := map[bool]string{true: "PRIVATE KEY", false: "PUBLIC KEY"}[name == key]
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.onAWS = filepath.Join(r.root, "aws.yaml")
	write(t, r.onAWS, blocks[0].Text+"instance: app-01\n")
	content := r.here(strings.Replace(blocks[0].Text, "s3:\n", "s3:\n  endpoint_url: "+endpoint+"\n", 1))
	write(t, r.file, content+"instance: app-01\nstate_dir: "+r.state+
		"\nwatch: {settle: 200ms}\nadmin: {listen: \"127.0.0.1:0\"}\nmanifest: {sign: \"ed25519:"+key+"\"}\n")
}

// here replaces names that stand for the reader's own, and what is elsewhere in
// a test.
func (r *reader) here(text string) string {
	for _, dir := range []string{"/etc/s3syncd", "/opt/app", "/var/lib/s3syncd"} {
		text = strings.ReplaceAll(text, dir, r.root+dir)
	}
	text = regexp.MustCompile(`arn:aws:kms:[a-z0-9-]+:\d+:key/[0-9a-f-]+|\bKEY_ARN\b`).ReplaceAllString(text, s3test.KeyName)
	text = strings.ReplaceAll(text, "my-company-data", r.bucket)
	text = regexp.MustCompile(`\bFILE\b`).ReplaceAllString(text, r.file)
	socket := filepath.Join(r.state, "control.sock")
	return regexp.MustCompile(`\bs3syncd (status|flush|rescan)\b`).ReplaceAllString(text, "s3syncd $1 --socket "+socket)
}

// follow types a command and reports whether it was run. One that no test runs
// is passed over.
func (r *reader) follow(t *testing.T, c shell.Command) bool {
	t.Helper()
	for _, p := range c.Programs() {
		if why := shell.NotRun()[p]; why != "" {
			return false
		}
		if _, err := exec.LookPath(p); err != nil && p != "s3syncd" && p != "systemctl" {
			t.Logf("%s: not run, there is no %s here", c, p)
			return false
		}
	}
	if action, ok := strings.CutPrefix(c.Text, "systemctl "); ok {
		r.systemctl(t, c, action)
		return true
	}
	text := r.here(c.Text)
	if strings.HasPrefix(c.Text, "s3syncd iam-policy ") {
		text = strings.ReplaceAll(text, r.file, r.onAWS)
	}
	if r.daemon != nil {
		text = strings.ReplaceAll(text, "127.0.0.1:9810", r.daemon.address(t))
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", text)
	cmd.Env, cmd.Dir = r.env, r.home
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%v %s", time.Since(begin).Round(time.Millisecond), c)
	if err != nil {
		t.Fatalf("%s\nran as %s\n%v\n%s", c, text, err, tail(string(out), 4000))
	}
	return true
}

// systemctl does what systemd would.
func (r *reader) systemctl(t *testing.T, c shell.Command, action string) {
	t.Helper()
	switch action {
	case "enable --now s3syncd", "start s3syncd":
		if r.daemon == nil {
			r.daemon = startDaemon(t, r.file, r.env...)
		}
	case "stop s3syncd":
		if r.daemon == nil {
			t.Fatalf("%s: the daemon does not run", c)
		}
		if code := r.daemon.stop(t); code != 0 {
			t.Errorf("%s: it ended with %d", c, code)
		}
		r.daemon = nil
	case "status s3syncd":
	default:
		t.Errorf("%s: this test does not know what that does", c)
	}
}

// fetchManifests puts the local copies of the manifests where they are asked.
func (r *reader) fetchManifests(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.state, "manifests", "data", "manifest_*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests on the host: %v", err)
	}
	files = append(files, files[0])
	for i, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		if i == len(files)-1 {
			name = "manifest_20260120_103000_app-01_0a1b2c3d_00000001.json" // As the page calls it.
		}
		write(t, filepath.Join(r.home, name), string(body))
	}
}
