package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const commandPages = "../../docs/commands"

// TestThePagesOfTheCommandsAreCurrent compares what `make docs` would write with
// what is there.
func TestThePagesOfTheCommandsAreCurrent(t *testing.T) {
	dir := t.TempDir()
	if code, out, errs := call(t, "generate", "--markdown", dir); code != 0 || out != "" {
		t.Fatalf("generate = %d %q %q", code, out, errs)
	}
	got, want := pages(t, commandPages), pages(t, dir)
	for name, text := range want {
		if got[name] != text {
			t.Errorf("docs/commands/%s is not what the help says: run 'make docs' and commit the result", name)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("docs/commands/%s is of no command: run 'make docs'", name)
		}
	}
	if names := commandNames(); len(want) != len(names)+1 {
		t.Errorf("%d pages for %d commands", len(want), len(names))
	}
}

// commandNames are the commands that the help lists.
func commandNames() []string {
	var names []string
	for _, c := range newRoot(streams{}).Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			names = append(names, c.Name())
		}
	}
	return names
}

func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		texts[e.Name()] = string(text)
	}
	return texts
}

func TestGeneratedPagesNameEveryCommand(t *testing.T) {
	dir := t.TempDir()
	code, _, errs := call(t, "generate", "--man", dir, "--completions", dir, "--configuration", "../../deploy/s3syncd.example.yaml")
	if code != 0 {
		t.Fatalf("generate = %d %q", code, errs)
	}
	overview, err := os.ReadFile(filepath.Join(dir, "man1", "s3syncd.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range commandNames() {
		if !strings.Contains(strings.ReplaceAll(string(overview), `\-`, "-"), "s3syncd "+name) {
			t.Errorf("s3syncd(1) does not name %s", name)
		}
		text, err := os.ReadFile(filepath.Join(dir, "man1", "s3syncd-"+name+".1"))
		if err != nil || !strings.Contains(string(text), ".SH DESCRIPTION\n") || !strings.Contains(string(text), ".SH EXAMPLES\n") {
			t.Errorf("the page of %s has no description, or no example: %v", name, err)
		}
	}
	for script, shell := range map[string]string{"s3syncd": "bash", "_s3syncd": "zsh", "s3syncd.fish": "fish"} {
		text, err := os.ReadFile(filepath.Join(dir, script))
		if err != nil || !strings.Contains(string(text), "__complete") {
			t.Errorf("%s does not ask the program: %v", script, err)
		}
		program, err := exec.LookPath(shell)
		if err != nil {
			continue // It is not here to parse its script.
		}
		if out, err := exec.CommandContext(t.Context(), program, "-n", filepath.Join(dir, script)).CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "man5", "s3syncd.yaml.5"))
	if err != nil || !strings.Contains(string(text), "sources[].kms_key_id") || !strings.Contains(string(text), "manifest.object_lock") {
		t.Errorf("s3syncd.yaml(5) lacks keys: %v", err)
	}
}

func TestGenerateSaysWhatItCannotDo(t *testing.T) {
	if code, _, errs := call(t, "generate"); code != exitUsage || !strings.Contains(errs, "--man") {
		t.Errorf("generate = %d %q, want 2", code, errs)
	}
	if code, _, errs := call(t, "generate", "--man", t.TempDir(), "--configuration", "/nonexistent"); code != exitCannotRun || !strings.Contains(errs, "/nonexistent") {
		t.Errorf("generate without its example = %d %q, want 1", code, errs)
	}
}
