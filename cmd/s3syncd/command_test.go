package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packaged writes a configuration with two sources, and returns its name.
func packaged(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "s3syncd.yaml")
	text := "state_dir: " + filepath.Join(dir, "state") + "\nsources:\n" +
		"  - {name: one, path: " + filepath.Join(dir, "a") + ", bucket: my-bucket, prefix: a, kms_key_id: alias/k}\n" +
		"  - {name: two, path: " + filepath.Join(dir, "b") + ", bucket: my-bucket, prefix: b, kms_key_id: alias/k}\n" +
		"admin: {socket: " + filepath.Join(dir, "own.sock") + "}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// callOn runs the program where the packaged configuration is file.
func callOn(t *testing.T, file string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, streams{out: &out, err: &errs, packaged: file})
	return code, out.String(), errs.String()
}

func TestWhatWasProbablyMeantIsNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"verfy"}, "did you mean verify?"},
		{[]string{"help", "restor"}, "did you mean restore?"},
		{[]string{"verify", "--remte"}, "did you mean --remote?"},
		{[]string{"sync", "--buckte=b"}, "did you mean --bucket?"},
		{[]string{"status", "--jsn"}, "did you mean --json?"},
		{[]string{"restore", "--dry"}, "did you mean --dry-run?"},
	} {
		code, out, errs := call(t, c.args...)
		if code != exitUsage || out != "" || !strings.Contains(errs, c.says) {
			t.Errorf("%q = %d %q %q, want 2 and %q on stderr", c.args, code, out, errs, c.says)
		}
	}
	for _, args := range [][]string{{"frobnicate"}, {"verify", "--frobnicate"}, {"verify", "-Z"}} {
		if code, _, errs := call(t, args...); code != exitUsage || strings.Contains(errs, "did you mean") {
			t.Errorf("%q = %d %q, want 2 and no guess", args, code, errs)
		}
	}
}

func TestWrongUsageSaysWhereTheHelpIs(t *testing.T) {
	for _, args := range [][]string{{"check", "--no-such-flag"}, {"check"}, {"check", "-c", "f", "more"}} {
		if code, out, errs := call(t, args...); code != exitUsage || out != "" || !strings.Contains(errs, "'s3syncd check --help'") {
			t.Errorf("%q = %d %q %q, want 2 and where the help is", args, code, out, errs)
		}
	}
	if _, _, errs := call(t, "check", "-c", "/nonexistent/s3syncd.yaml"); strings.Contains(errs, "--help") {
		t.Errorf("a file that is not there is no question of usage: %q", errs)
	}
}

func TestTheHelpOfEveryCommandHasAnExample(t *testing.T) {
	for _, name := range append(commandNames(), "generate") {
		code, out, errs := call(t, name, "--help")
		_, same, _ := call(t, "help", name)
		if code != exitDone || errs != "" || !strings.Contains(out, "\nExamples:\n  s3syncd "+name) || out != same {
			t.Errorf("%s --help = %d %q\n%s\n'help %s' says:\n%s", name, code, errs, out, name, same)
		}
	}
}

func TestThePackagedConfigurationStandsForC(t *testing.T) {
	file := packaged(t)
	if code, out, errs := callOn(t, file, "check"); code != exitDone || !strings.Contains(out, file+": no faults") {
		t.Errorf("check = %d %q %q, want the packaged file checked", code, out, errs)
	}
	if code, _, errs := callOn(t, file, "iam-policy"); code != exitDone {
		t.Errorf("iam-policy = %d %q", code, errs)
	}
	own := filepath.Join(filepath.Dir(file), "own.sock")
	if code, _, errs := callOn(t, file, "status"); code != exitCannotRun || !strings.Contains(errs, own) {
		t.Errorf("status = %d %q, want the socket of the packaged file", code, errs)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"check", "-c", "/nonexistent.yaml"}, "/nonexistent.yaml"},
		{[]string{"check", "-c", ""}, "-c FILE is needed"},
		{[]string{"sync", "--dir", "/data"}, "--bucket"},
		{[]string{"sync", "--prefix", "p"}, "--dir"},
		{[]string{"verify", "--bucket", "b"}, "-c FILE, or --bucket and --prefix"},
		{[]string{"verify", "--offline", "/nonexistent", "--only", "one"}, "need -c FILE"},
		{[]string{"restore", "--to", "d", "--bucket", "b"}, "-c FILE, or --bucket and --prefix"},
	} {
		if code, _, errs := callOn(t, file, c.args...); code != exitUsage || !strings.Contains(errs, c.says) || strings.Contains(errs, "exclude") {
			t.Errorf("%q = %d %q, want 2 and %q", c.args, code, errs, c.says)
		}
	}
	if code, _, errs := callOn(t, "/nonexistent.yaml", "check"); code != exitUsage || !strings.Contains(errs, "-c FILE is needed") {
		t.Errorf("without the packaged file check = %d %q", code, errs)
	}
}

func TestTheShellIsOfferedWhatFits(t *testing.T) {
	file := packaged(t)
	for _, c := range []struct {
		args []string
		want []string // with the directive: 0 files, 4 none
	}{
		{[]string{"ver"}, []string{"verify", "version", ":4"}},
		{[]string{"restore", "--source", ""}, []string{"one", "two", ":4"}},
		{[]string{"rekey", "-c", file, "--source", ""}, []string{"one", "two", ":4"}},
		{[]string{"flush", "one", ""}, []string{"two", ":4"}},
		{[]string{"verify", "--only", ""}, []string{"one", "two", ":4"}},
		{[]string{"rescan", "-c", "/nonexistent", ""}, []string{":4"}},
		{[]string{"iam-policy", "--kind", ""}, []string{"role", "bucket", "kms-key", ":4"}},
		{[]string{"iam-policy", "--with", ""}, []string{"rekey", "restore", "verify", ":4"}},
		{[]string{"verify", "--deep", ""}, []string{"5%", "all", ":4"}},
		{[]string{"verify", "--offline", ""}, []string{":0"}},
		{[]string{"check", "--config", ""}, []string{":0"}},
		{[]string{"check", ""}, []string{":4"}},
		{[]string{"verify", "--rem"}, []string{"--remote", ":4"}},
		{[]string{"help", "ver"}, []string{"verify", "version", ":4"}},
	} {
		code, out, _ := callOn(t, file, append([]string{"__complete"}, c.args...)...)
		var got []string
		for line := range strings.Lines(out) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			got = append(got, name)
		}
		if code != exitDone || !slices.Equal(got, c.want) {
			t.Errorf("%q is offered %q (%d), want %q", c.args, got, code, c.want)
		}
	}
}
