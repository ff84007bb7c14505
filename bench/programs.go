package main

import (
	"context"
	"debug/buildinfo"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	benchBucket = "bench-bucket"
	benchKey    = "bench-key"
	accessKey   = "benchbench"
	secretKey   = "bench-secret-of-nothing"
	workers     = 16 // s3syncd's default; given to the programs that can be told
)

//go:embed tutorial.py
var tutorial []byte

// job is one directory and where it goes.
type job struct {
	dir      string
	endpoint string // http://host:port
	prefix   string
	scratch  string // the program's own, kept between runs of one work
}

func (j job) host() string { return strings.TrimPrefix(j.endpoint, "http://") }

func (j job) url(scheme string) string { return scheme + benchBucket + "/" + j.prefix }

// contestant is a program that brings a directory into a bucket.
type contestant struct {
	name    string
	path    string // "": missing
	version string
	again   bool // takes part only where a second run is measured
	once    func(c *contestant, j job) (command, error)
	watch   func(c *contestant, j job, settle time.Duration) (command, error) // nil: it cannot
}

// The names of this project's program: as it comes, and without a list of what
// is unchanged, of which the others keep no trace either.
const (
	ours         = "s3syncd"
	oursCounting = "s3syncd-counting"
)

// contestants finds the programs. S3syncd is the first.
func contestants(ctx context.Context, paths map[string]string) []*contestant {
	all := []*contestant{
		{name: ours, once: s3syncdOnce, watch: s3syncdRun},
		{name: oursCounting, again: true, once: s3syncdCounting},
		{name: "rclone", once: rcloneOnce},
		{name: "mc", once: mcOnce, watch: mcWatch},
		{name: "aws", once: awsOnce},
		{name: "s3cmd", once: s3cmdOnce},
		{name: "script", once: scriptOnce},
		{name: "lsyncd", watch: lsyncdWatch},
	}
	for _, c := range all {
		c.find(ctx, paths)
	}
	return all
}

// find fills in path and version.
func (c *contestant) find(ctx context.Context, paths map[string]string) {
	name, args := c.name, []string{"--version"}
	switch c.name {
	case ours, oursCounting:
		name, args = ours, []string{"version"}
	case "script":
		name, args = "python3", []string{"-c", "import boto3; print('boto3', boto3.__version__)"}
	case "lsyncd":
		args = []string{"-version"}
	}
	path, err := exec.LookPath(nonEmpty(paths[name], nonEmpty(paths[c.name], name)))
	if err != nil {
		return
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = inherited()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return
	}
	if c.path, err = filepath.Abs(path); err != nil {
		c.path = path
	}
	c.version = versionIn(string(out))
	// What the Go proxy has knows its version better than the program itself.
	if info, err := buildinfo.ReadFile(c.path); err == nil && strings.HasPrefix(info.Main.Version, "v") {
		c.version = info.Main.Version
	}
}

func nonEmpty(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

var versionPattern = regexp.MustCompile(`v?\d+\.\d+[.\d]*(-[0-9a-f.-]+)?|RELEASE\.[0-9TZ-]+|[0-9a-f]{12}`)

// versionIn finds a version in what a program says of itself.
func versionIn(out string) string {
	line, _, _ := strings.Cut(out, "\n")
	if v := versionPattern.FindString(line); v != "" {
		return v
	}
	return "unknown"
}

func awsEnvironment(j job) []string {
	return []string{
		"HOME=" + j.scratch, "AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_REGION=us-east-1",
		"AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE=/dev/null", "BENCH_ENDPOINT=" + j.endpoint,
	}
}

func s3syncdOnce(c *contestant, j job) (command, error) {
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{
		"sync", "--dir", j.dir, "--bucket", benchBucket, "--prefix", j.prefix, "--kms-key-id", benchKey,
		"--endpoint-url", j.endpoint, "--state-dir", filepath.Join(j.scratch, "state"),
	}}, nil
}

// countingConfiguration counts what is unchanged in the trail instead of listing
// each file.
const countingConfiguration = `instance: bench
state_dir: %s
s3: {endpoint_url: %q}
sources:
  - {name: data, path: %q, bucket: %s, prefix: %q, kms_key_id: %s}
manifest: {list_skipped: none}
`

func s3syncdCounting(c *contestant, j job) (command, error) {
	file := filepath.Join(j.scratch, "s3syncd.yaml")
	text := fmt.Sprintf(countingConfiguration, filepath.Join(j.scratch, "state"), j.endpoint, j.dir, benchBucket, j.prefix, benchKey)
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{"sync", "-c", file}},
		os.WriteFile(file, []byte(text), 0o600)
}

// daemonConfiguration has the default intervals except what is measured.
const daemonConfiguration = `instance: bench
state_dir: %s
s3: {endpoint_url: %q}
sources:
  - {name: data, path: %q, bucket: %s, prefix: %q, kms_key_id: %s}
watch: {settle: %s}
admin: {listen: ""}
log: {level: info}
`

func s3syncdRun(c *contestant, j job, settle time.Duration) (command, error) {
	file := filepath.Join(j.scratch, "s3syncd.yaml")
	text := fmt.Sprintf(daemonConfiguration, filepath.Join(j.scratch, "state"), j.endpoint, j.dir, benchBucket, j.prefix, benchKey, settle)
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{"run", "-c", file}},
		os.WriteFile(file, []byte(text), 0o600)
}

func rcloneOnce(c *contestant, j job) (command, error) {
	n := strconv.Itoa(workers)
	return command{program: c.path, dir: j.scratch, env: append(awsEnvironment(j), "RCLONE_CONFIG="+filepath.Join(j.scratch, "rclone.conf")), args: []string{
		"copy", j.dir, j.url(":s3:"), "--s3-provider", "Minio", "--s3-env-auth", "--s3-endpoint", j.endpoint, "--s3-region", "us-east-1",
		"--s3-server-side-encryption", "aws:kms", "--s3-sse-kms-key-id", benchKey, "--s3-no-check-bucket",
		"--transfers", n, "--checkers", n, "--quiet",
	}}, nil
}

func mcCommand(c *contestant, j job, args ...string) command {
	host := "http://" + accessKey + ":" + secretKey + "@" + j.host()
	return command{
		program: c.path, dir: j.scratch, env: append(awsEnvironment(j), "MC_HOST_b="+host),
		args: append([]string{"--config-dir", filepath.Join(j.scratch, "mc"), "--quiet"}, args...),
	}
}

func mcOnce(c *contestant, j job) (command, error) {
	return mcCommand(c, j, "mirror", "--overwrite", "--enc-kms", j.url("b/")+"="+benchKey, j.dir, j.url("b/")), nil
}

func mcWatch(c *contestant, j job, _ time.Duration) (command, error) {
	return mcCommand(c, j, "mirror", "--watch", "--overwrite", "--enc-kms", j.url("b/")+"="+benchKey, j.dir, j.url("b/")), nil
}

func awsOnce(c *contestant, j job) (command, error) {
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{
		"--endpoint-url", j.endpoint, "s3", "sync", j.dir, j.url("s3://"), "--sse", "aws:kms", "--sse-kms-key-id", benchKey, "--only-show-errors",
	}}, nil
}

const s3cmdConfiguration = "[default]\naccess_key = %s\nsecret_key = %s\nhost_base = %s\nhost_bucket = %s\nuse_https = False\n" +
	"guess_mime_type = False\nprogress_meter = False\n"

func s3cmdOnce(c *contestant, j job) (command, error) {
	file := filepath.Join(j.scratch, "s3cfg")
	text := fmt.Sprintf(s3cmdConfiguration, accessKey, secretKey, j.host(), j.host())
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{
		"-c", file, "--quiet", "--server-side-encryption", "--server-side-encryption-kms-id=" + benchKey, "sync", j.dir + "/", j.url("s3://") + "/",
	}}, os.WriteFile(file, []byte(text), 0o600)
}

func scriptOnce(c *contestant, j job) (command, error) {
	file := filepath.Join(j.scratch, "tutorial.py")
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{
		file, j.dir, benchBucket, j.prefix, benchKey, filepath.Join(j.scratch, "manifest.json"),
	}}, os.WriteFile(file, tutorial, 0o600)
}

// lsyncdConfiguration has lsyncd start the AWS CLI for each file: it does not
// speak S3 itself.
const lsyncdConfiguration = `settings { nodaemon = true, insist = true, maxDelays = 1 }
upload = {
  delay = 1, maxProcesses = 16,
  onCreate = 'aws --endpoint-url %[1]s s3 cp ^sourcePathname %[2]s/^pathname --sse aws:kms --sse-kms-key-id %[3]s --only-show-errors',
  onModify = 'aws --endpoint-url %[1]s s3 cp ^sourcePathname %[2]s/^pathname --sse aws:kms --sse-kms-key-id %[3]s --only-show-errors',
}
sync { upload, source = %[4]q, target = %[2]q }
`

func lsyncdWatch(c *contestant, j job, _ time.Duration) (command, error) {
	if _, err := exec.LookPath("aws"); err != nil {
		return command{}, errors.New("lsyncd needs the AWS CLI in the PATH")
	}
	file := filepath.Join(j.scratch, "lsyncd.lua")
	text := fmt.Sprintf(lsyncdConfiguration, j.endpoint, j.url("s3://"), benchKey, j.dir)
	return command{program: c.path, dir: j.scratch, env: awsEnvironment(j), args: []string{file}}, os.WriteFile(file, []byte(text), 0o600)
}
