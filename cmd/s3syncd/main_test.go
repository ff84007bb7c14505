package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

// call runs the program in this process.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, streams{out: &out, err: &errs})
	return code, out.String(), errs.String()
}

func TestExitCodesSayWhatAScriptMustDo(t *testing.T) {
	cases := []struct {
		name string
		err  error
		want int
	}{
		{"done", nil, 0},
		{"could not run", errors.New("the disk is gone"), 1},
		{"wrong usage", fmt.Errorf("%w: run: -c FILE is needed", errUsage), 2},
		{"a faulty configuration", fmt.Errorf("load: %w", config.Errors{{Problem: "is wrong"}}), 2},
		{"an unreadable configuration", fmt.Errorf("%w: no such file", errConfig), 2},
		{"not everything is in S3", errors.Join(errNotAll), 3},
		{"some files failed", fmt.Errorf("sync: %w", pipeline.ErrSomeFailed), 3},
		{"interrupted", errors.Join(pipeline.ErrInterrupted, errors.New("canceled")), 130},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := exitCode(c.err); got != c.want {
				t.Errorf("exitCode(%v) = %d, want %d", c.err, got, c.want)
			}
		})
	}
}

func TestACommandLineThatCannotBeUnderstoodIsWrongUsage(t *testing.T) {
	cases := []struct {
		args []string
		says string
	}{
		{nil, "s3syncd keeps directories archived"},
		{[]string{"mirror"}, `unknown command "mirror"`},
		{[]string{"run"}, "-c FILE is needed"},
		{[]string{"run", "-c", "a", "b"}, `"b" is not expected`},
		{[]string{"check", "--no-such-flag"}, "no-such-flag"},
		{[]string{"sync"}, "-c FILE, or --dir"},
		{[]string{"sync", "-c", "a", "--dir", "b"}, "exclude each other"},
		{[]string{"sync", "-c", "a", "--give-up", "0"}, "above 0"},
		{[]string{"sync", "--dir", "/data"}, "--bucket"},
		{[]string{"check", "-c", "/nonexistent/s3syncd.yaml"}, "no such file"},
		{[]string{"status", "-c", "a", "--socket", "b"}, "exclude each other"},
		{[]string{"status", "-c", "/nonexistent/s3syncd.yaml"}, "no such file"},
		{[]string{"status", "app"}, `"app" is not expected`},
		{[]string{"rescan", "a", "b"}, `"b" is not expected`},
		{[]string{"flush", "--timeout", "-1s"}, "0 or more"},
		{[]string{"restore", "--bucket", "b", "--prefix", "p"}, "--to DIR is needed"},
		{[]string{"restore", "--to", "d"}, "-c FILE, or --bucket and --prefix"},
		{[]string{"restore", "--to", "d", "--bucket", "b"}, "-c FILE, or --bucket and --prefix"},
		{[]string{"restore", "--to", "d", "-c", "a", "--bucket", "b"}, "exclude each other"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--source", "s"}, "--source names a source of -c FILE"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--at", "noon"}, `--at "noon" is not a time`},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--at", "2999-01-01"}, "lies in the future"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--at", ""}, "--at is empty"},
		{[]string{"history", "f", "--bucket", "b", "--prefix", "p", "--at", ""}, "--at is empty"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--workers", "0"}, "--workers 0"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--region", "r", "--include", "a\nb"}, "not one pattern"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--region", "r", "--path", "../x"}, "--path"},
		{[]string{"restore", "--to", "d", "--bucket", "b", "--prefix", "p", "--region", "r", "--path", "/x"}, "not below the source"},
		{[]string{"history", "--bucket", "b", "--prefix", "p"}, "one KEY_OR_PATH is needed"},
		{[]string{"history", "f", "--bucket", "b", "--prefix", "p", "--head", "0"}, "--head is about --bundle"},
		{[]string{"retire"}, "-c FILE is needed"},
	}
	for _, c := range cases {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, out, errs := call(t, c.args...)
			if code != 2 || !strings.Contains(errs, c.says) || out != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q; want 2 and %q on stderr", code, out, errs, c.says)
			}
		})
	}
}

func TestHelpGoesToStandardOutput(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"run", "--help"}, {"sync", "--help"}, {"check", "--help"}, {"version", "--help"}, {"status", "--help"}, {"rescan", "--help"}, {"flush", "--help"}, {"restore", "--help"}, {"history", "--help"}, {"retire", "--help"}} {
		code, out, errs := call(t, args...)
		if code != 0 || !strings.Contains(out, "s3syncd") || errs != "" {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestWithoutADaemonTheCommandsSayWhatToDo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	for _, name := range []string{"status", "rescan", "flush"} {
		code, out, errs := call(t, name, "--socket", socket)
		if code != 1 || out != "" || !strings.Contains(errs, "no daemon answers at "+socket) || !strings.Contains(errs, "systemctl status") {
			t.Errorf("%s = %d %q %q, want 1 and what to do", name, code, out, errs)
		}
	}
}

func TestVersionNamesVersionCommitAndGo(t *testing.T) {
	code, out, _ := call(t, "version")
	for _, want := range []string{"s3syncd ", "commit ", "go1."} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("version = %d %q, want it to have %q", code, out, want)
		}
	}
}

func TestCheckNamesEveryFaultWithItsLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s3syncd.yaml")
	text := "sources:\n  - path: relative\n    bucket: b\n    kms_key: k\nwatch: {settle: soon}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := call(t, "check", "-c", file)
	for _, want := range []string{":2:", "sources[0].path", ":4:", "kms_key", ":5:", "watch.settle", "soon"} {
		if code != 2 || !strings.Contains(errs, want) {
			t.Errorf("check = %d, want 2 and %q in:\n%s", code, want, errs)
		}
	}
}

func TestCheckRefusesAKeyThatCannotSign(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "s3syncd.yaml")
	text := "state_dir: " + filepath.Join(dir, "state") + "\nsources:\n  - {path: " + filepath.Join(dir, "data") +
		", bucket: my-bucket, prefix: p, kms_key_id: alias/k}\nmanifest: {sign: 'ed25519:/no/such/key.pem'}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t, "check", "-c", file); code != 2 || !strings.Contains(errs, "manifest.sign") {
		t.Errorf("check = %d %q, want 2 and manifest.sign", code, errs)
	}
	for _, sign := range []string{"none", "kms:alias/sign"} {
		if err := os.WriteFile(file, []byte(strings.Replace(text, "ed25519:/no/such/key.pem", sign, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := call(t, "check", "-c", file); code != 0 || !strings.Contains(out, "no faults") {
			t.Errorf("check with %s = %d %q %q, want 0", sign, code, out, errs)
		}
	}
}

func TestTimesThatPeopleGive(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"":                              "0001-01-01T00:00:00Z",
		"2026-03-02T09:14:07.603131Z":   "2026-03-02T09:14:07.603131Z",
		"2026-03-02T10:14:07.603+01:00": "2026-03-02T09:14:07.603Z",
		"2026-03-02 09:14:07":           "2026-03-02T09:14:07Z",
		"2026-03-02 09:14":              "2026-03-02T09:14:00Z",
		"2026-03-02":                    "2026-03-02T00:00:00Z",
		"90m":                           "2026-03-02T10:30:00Z",
		"1d":                            "2026-03-01T12:00:00Z",
		"30d":                           "2026-01-31T12:00:00Z",
	} {
		if got, err := parseTime("restore", text, now); err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("parseTime(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"-90m", "-1d", "d", "1.5d", "99999d", "tomorrow", "2026-13-01", "12:00", "2026-03-03"} {
		if got, err := parseTime("restore", text, now); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", text, got)
		}
	}
}
