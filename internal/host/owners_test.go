package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/config"
)

func TestAStateThatOthersCanChangeIsWarnedOf(t *testing.T) {
	for _, c := range []struct {
		name  string
		mode  os.FileMode
		owner int
		want  string // "": nothing
	}{
		{"private", 0o700, 0, ""},
		{"readable", 0o755, 0, ""},
		{"writable by all", 0o777, 0, "mode 0777"},
		{"sticky", 0o777 | os.ModeSticky, 0, "mode 0777"},
		{"writable by a group", 0o770, 0, "mode 0770"},
		{"of another user", 0o700, 54321, "belongs to the user 54321"},
	} {
		if c.owner != 0 && os.Geteuid() != 0 {
			continue
		}
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, c.mode); err != nil {
			t.Fatal(err)
		}
		if c.owner != 0 {
			if err := os.Chown(dir, c.owner, c.owner); err != nil {
				t.Fatal(err)
			}
		}
		got := stateWarnings(&config.Config{StateDir: dir, Manifest: config.Manifest{LocalDir: dir + "/manifests"}})
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: stateWarnings() = %q, want %q", c.name, got, c.want)
		}
		if got := stateWarnings(&config.Config{StateDir: "/no/such/dir", Manifest: config.Manifest{LocalDir: dir}}); (len(got) > 0) != (c.want != "") {
			t.Errorf("%s as local_dir: stateWarnings() = %q", c.name, got)
		}
	}
}

func TestTheInstanceOfTheExampleIsWarnedOf(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for instance, want := range map[string]bool{exampleInstance: host != exampleInstance, host: false, "app-02": false} {
		got := Warnings(&config.Config{Instance: instance, StateDir: "/no/such/dir"})
		if (len(got) == 1) != want || want && !strings.Contains(got[0], host) {
			t.Errorf("HostWarnings() of %s = %q, want one: %v", instance, got, want)
		}
	}
}
