// Package e2e_test runs the program as its users do, against a real server,
// and checks bucket, tree and trail from outside.
package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// binary is the program under test, built with the race detector.
var binary string

// thorough is set by `make e2e`: the sizes and rounds of a release, not those
// of every change.
var thorough = os.Getenv("S3SYNCD_E2E") != ""

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "s3syncd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // Some tests run it as another user.
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "s3syncd")
	build := exec.CommandContext(context.Background(), "go", "build", "-race", "-o", binary, "github.com/s3syncd/s3syncd/cmd/s3syncd")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
	} else {
		code = s3test.Main(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func testKey() string { return s3test.KeyName }
