// Package docs holds the documents to what they say: their examples are read,
// and what they name exists.
package docs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const root = "../.."

// documents returns every Markdown file by its path below the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/commands/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(root, file)
			if err != nil {
				t.Fatal(err)
			}
			docs[name] = string(text)
		}
	}
	if len(docs) < 6 {
		t.Fatalf("found %d documents, want at least 6", len(docs))
	}
	return docs
}

// blocks returns the fenced blocks of one language.
func blocks(text, language string) []string {
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

func TestLocalLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	}
}

func TestJSONInDocumentsIsJSON(t *testing.T) {
	for _, name := range []string{"README.md", "docs/SECURITY.md"} {
		found := blocks(documents(t)[name], "json")
		if len(found) == 0 {
			t.Errorf("%s has no JSON block", name)
		}
		for _, block := range found {
			if !json.Valid([]byte(block)) {
				t.Errorf("%s: not JSON:\n%s", name, block)
			}
		}
	}
}

func TestWebConfigurationInTheRunbookIsAccepted(t *testing.T) {
	found := blocks(documents(t)["docs/STATUS.md"], "yaml")
	if len(found) != 1 || !strings.Contains(found[0], "/etc/s3syncd/tls/") {
		t.Fatalf("docs/STATUS.md has %d YAML blocks, want 1, with certificates", len(found))
	}
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "web.yml")
	for name, content := range map[string][]byte{
		filepath.Join(dir, "cert.pem"): pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		filepath.Join(dir, "key.pem"):  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		file:                           []byte(strings.ReplaceAll(found[0], "/etc/s3syncd/tls/", dir+"/")),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := admin.CheckWebConfig(file); err != nil || !w.TLS || !w.Authenticates {
		t.Errorf("CheckWebConfig(the runbook's) = %+v %v, want TLS and passwords", w, err)
	}
}

func TestClassesInDocumentsAreThoseOfTheTable(t *testing.T) {
	docs := documents(t)
	plain := func(s string) string { return strings.ReplaceAll(s, "`", "") }

	var names []string
	for _, c := range archive.Classes() {
		names = append(names, "`"+string(c)+"`")
	}
	if row := "| `error_class` | " + strings.Join(names, " ") + " |"; !strings.Contains(docs["docs/FORMAT.md"], row) {
		t.Errorf("docs/FORMAT.md has no row that begins with %s", row)
	}

	_, section, _ := strings.Cut(docs["docs/OPERATIONS.md"], "\n## Failures by class\n")
	_, table, _ := strings.Cut(section, "|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(table, "\n")
	if len(rows) != len(names) {
		t.Fatalf("docs/OPERATIONS.md explains %d classes, want %d:\n%s", len(rows), len(names), table)
	}
	for i, c := range archive.Classes() {
		cells := strings.Split(rows[i], " | ")
		if len(cells) != 3 || cells[0] != "| "+names[i] || !strings.HasPrefix(plain(cells[2]), c.Meaning().Advice) {
			t.Errorf("docs/OPERATIONS.md: row %d is %q, want one of %s whose last cell begins with %q", i+1, rows[i], c, c.Meaning().Advice)
		}
	}
}

func TestClassesInQueriesExist(t *testing.T) {
	texts := documents(t)
	for _, name := range []string{"deploy/prometheus/s3syncd.rules.yml", "deploy/grafana/s3syncd.json"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	asked, query := 0, regexp.MustCompile(`class=~?\\?"([^"\\$]+)\\?"`)
	for name, text := range texts {
		for _, m := range query.FindAllStringSubmatch(text, -1) {
			asked++
			for one := range strings.SplitSeq(m[1], "|") {
				if !slices.Contains(archive.Classes(), archive.Class(one)) {
					t.Errorf("%s asks for class %q, which does not exist", name, one)
				}
			}
		}
	}
	if asked < 3 {
		t.Errorf("found %d queries by class, want at least 3", asked)
	}
}

func TestEveryTestThatIsNamedExists(t *testing.T) {
	code := map[string]bool{}
	for _, pattern := range []string{"internal/*/*_test.go", "internal/*/*/*_test.go", "pkg/*/*_test.go", "test/*/*_test.go", "cmd/*/*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				code[m[1]] = true
			}
		}
	}
	for name, text := range documents(t) {
		for _, m := range regexp.MustCompile("`(Test[A-Z]\\w+)`").FindAllStringSubmatch(text, -1) {
			if !code[m[1]] && m[1] != "TestName" {
				t.Errorf("%s names %s, which is not there", name, m[1])
			}
		}
	}
}

func TestEveryMakeTargetThatIsNamedExists(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile("(?m)(?:^(?:sudo )?|`)make ([a-z][a-z0-9-]*)")
	for name, text := range documents(t) {
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s says `make %s`, which the Makefile does not have", name, m[1])
			}
		}
	}
}

func TestEveryFieldOfTheStatusIsDocumented(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join(root, "internal", "admin", "testdata", "status.json"))
	if err != nil {
		t.Fatal(err)
	}
	var status map[string]any
	if err := json.Unmarshal(golden, &status); err != nil {
		t.Fatal(err)
	}
	text := documents(t)["docs/STATUS.md"]
	fields := map[string]bool{}
	collect(status, fields)
	for f := range fields {
		if !strings.Contains(text, "`"+f+"`") {
			t.Errorf("docs/STATUS.md does not name %s", f)
		}
	}
	if len(fields) < 60 {
		t.Errorf("%d fields found, want at least 60", len(fields))
	}
}

// collect adds the names of all fields below v, leaving out the keys of maps.
func collect(v any, fields map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			fields[k] = true
			if _, isMap := e.(map[string]any); isMap && (k == "outcomes" || k == "parked") {
				continue
			}
			collect(e, fields)
		}
	case []any:
		for _, e := range v {
			collect(e, fields)
		}
	}
}
