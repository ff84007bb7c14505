package safefs

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMisnamedTellsARenameThatChangesCaseAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"dir/file", "dir/Both", "dir/both"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := NewRoot(dir, RootOptions{})
	for rel, want := range map[string]bool{
		"dir/File": true, "Dir/file": true, "DIR/FILE": true,
		"dir/file": false, "dir/Both": false, "dir/both": false, "dir/other": false, "other/file": false,
	} {
		if got := root.Misnamed(rel); got != want {
			t.Errorf("Misnamed(%q) = %v, want %v", rel, got, want)
		}
	}
}
