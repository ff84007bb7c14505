package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/test/docs/shell"
)

// commands returns all that the documents show; test/e2e runs them.
func commands(t *testing.T) []shell.Command {
	t.Helper()
	names, err := shell.Documents(root)
	if err != nil {
		t.Fatal(err)
	}
	var all []shell.Command
	for _, name := range names {
		list, err := shell.Commands(root, name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	if len(all) < 50 {
		t.Fatalf("%d commands found, want at least 50", len(all))
	}
	return all
}

func TestEveryBlockSaysWhatItIs(t *testing.T) {
	known := []string{"sh", "text", "json", "yaml", "ini", "sql"}
	for name, text := range documents(t) {
		if strings.HasPrefix(name, "docs/commands/") {
			continue // Made from the help.
		}
		for _, b := range shell.Blocks(text) {
			if !slices.Contains(known, b.Language) {
				t.Errorf("%s:%d: a block of language %q, want one of %v", name, b.Line, b.Language, known)
			}
		}
	}
}

func TestEveryCommandIsRunOrItIsSaidWhyNot(t *testing.T) {
	ran, used := shell.Ran(), map[string]bool{}
	for _, c := range commands(t) {
		for _, p := range c.Programs() {
			used[p] = true
			if shell.NotRun()[p] == "" && !slices.Contains(ran, p) {
				t.Errorf("%s: no test runs %s, and test/docs/shell does not say why", c, p)
			}
		}
	}
	for p := range shell.NotRun() {
		if !used[p] {
			t.Errorf("test/docs/shell explains %s, which no document calls", p)
		}
	}
}

func TestEveryCommandIsOneToTheShell(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	for _, c := range commands(t) {
		if out, err := exec.CommandContext(t.Context(), bash, "-n", "-c", c.Text).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", c, err, out)
		}
	}
}

func TestEveryOptionThatIsShownExists(t *testing.T) {
	docs := documents(t)
	call := regexp.MustCompile(`(?:^|[ /])s3syncd ([a-z][a-z-]*)( [^|;]*)?`)
	option := regexp.MustCompile(` (--?[a-z][a-z-]*)`)
	seen := 0
	for _, c := range commands(t) {
		if strings.HasPrefix(c.Text, "systemctl") || strings.HasPrefix(c.Text, "journalctl") || strings.HasPrefix(c.Text, "podman run") {
			continue
		}
		for _, m := range call.FindAllStringSubmatch(c.Text, -1) {
			page, ok := docs["docs/commands/"+m[1]+".md"]
			if !ok {
				if slices.Contains(c.Programs(), "s3syncd") {
					t.Errorf("%s: there is no command %s", c, m[1])
				}
				continue
			}
			seen++
			for _, o := range option.FindAllStringSubmatch(m[2], -1) {
				if !regexp.MustCompile("[`, ]" + o[1] + "[`, ]").MatchString(page) {
					t.Errorf("%s: %s has no option %s", c, m[1], o[1])
				}
			}
		}
	}
	if seen < 25 {
		t.Errorf("%d calls of s3syncd found, want at least 25", seen)
	}
}

// What is not a whole configuration is a part of one.
func TestEveryConfigurationIsAccepted(t *testing.T) {
	const whole = "sources: [{path: /opt/app/data, bucket: my-company-data, prefix: p, kms_key_id: alias/k}]\ns3: {region: us-east-1}\n"
	checked := 0
	for name, text := range documents(t) {
		for _, b := range shell.Blocks(text) {
			if b.Language != "yaml" || strings.Contains(b.Text, "tls_server_config:") { // Of the listener: it has a test of its own.
				continue
			}
			checked++
			content := b.Text
			if !strings.Contains(content, "sources:") {
				content = whole + content
			}
			file := filepath.Join(t.TempDir(), "s3syncd.yaml")
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(file, nil); err != nil {
				t.Errorf("%s:%d: %v", name, b.Line, err)
			}
		}
	}
	if checked < 2 {
		t.Errorf("%d configurations found, want at least 2", checked)
	}
}
