package e2e_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The script is for people to read: it shows with public tools alone what the
// other tests check from inside.
func TestTheWholeStoryWithPublicTools(t *testing.T) {
	if !thorough {
		t.Skip("make e2e runs it")
	}
	for _, tool := range []string{"bash", "jq", "python3", "diff", "find", "sha256sum", "base64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the story needs %s: %v", tool, err)
		}
	}
	s := newSite(t, "", "").versioned(t)
	if err := os.Remove(s.dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "story.sh")
	cmd.Env = append(append(environ(), s.env...), "S3SYNCD="+binary, "CONFIG="+s.file, "BUCKET="+s.bucket.bucket, "PREFIX="+s.bucket.prefix,
		"ENDPOINT="+s.proxy.URL, "WORK="+filepath.Dir(s.file))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the story ended badly: %v\n%s", err, tail(string(out), 6000))
	}
	t.Logf("%s", out)
}
