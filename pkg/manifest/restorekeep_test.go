package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/s3syncd/s3syncd/internal/restore"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// owned gives a record a mode and an owner.
func owned(mode string, uid, gid uint32) func(*archive.Record) {
	return func(r *archive.Record) { r.Mode, r.UID, r.GID = mode, &uid, &gid }
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
}

// Somebody has put the right content where a file will be restored, and keeps a
// descriptor of it that can write.
func TestRestoreKeepsNoFileThatSomebodyElseCanChange(t *testing.T) {
	needRoot(t)
	const right = "right content"
	for _, c := range []struct {
		name    string
		dir     fs.FileMode
		uid     int
		mode    fs.FileMode
		record  string
		wantNew bool
	}{
		{"a foreign file that becomes setuid", 0o777, 1000, 0o755, "4755", true},
		{"a foreign file", 0o777, 1000, 0o644, "0644", true},
		{"a foreign file in a directory of root", 0o755, 1000, 0o644, "0644", true},
		{"root's file in a directory for all", 0o777, 0, 0o644, "0644", true},
		{"root's file that all could write", 0o755, 0, 0o666, "0644", true},
		{"root's file that becomes setuid", 0o755, 0, 0o755, "4755", true},
		{"root's file", 0o755, 0, 0o644, "0644", false},
		{"root's file with another mode", 0o755, 0, 0o600, "0644", false},
		{"root's setuid file", 0o755, 0, 0o755 | fs.ModeSetuid, "4755", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive()
			a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload("f", right, atTen, owned(c.record, 0, 0)))
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			held, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			_, werr := held.WriteString(right)
			if err := errors.Join(werr, os.Chown(path, c.uid, c.uid), os.Chmod(path, c.mode), os.Chmod(dir, c.dir)); err != nil {
				t.Fatal(err)
			}
			_, sum, err := a.restore(t, dir, func(o *restore.Options) { o.Owner = true })
			if err != nil || sum.Restored+sum.Kept != 1 {
				t.Fatalf("Restore = %+v, %v, want one file", sum, err)
			}
			if open := int64(c.dir&0o002) / 2; sum.InOpen != open {
				t.Errorf("%d files are in directories that others can write, want %d", sum.InOpen, open)
			}
			if _, err := held.WriteAt([]byte("WRONG"), 0); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if changed := string(got) != right; err != nil || changed == c.wantNew {
				t.Errorf("the old descriptor changes the file: %v, %v, want %v", changed, err, !c.wantNew)
			}
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			sys, _ := st.Sys().(*syscall.Stat_t)
			if mode := fmt.Sprintf("%04o", sys.Mode&0o7777); sys.Uid != 0 || mode != c.record {
				t.Errorf("the file has owner %d and mode %s, want root and %s", sys.Uid, mode, c.record)
			}
		})
	}
}

// A second run of the same restore reads nothing again, whatever the files'
// owners and modes.
func TestRestoreKeepsWhatItRestored(t *testing.T) {
	needRoot(t)
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, true, nil,
		a.upload("d/app", "1", atTen, owned("0640", 1000, 1000)), a.upload("d/root", "2", atTen, owned("0444", 0, 0)),
		a.upload("d/shared", "3", atTen, owned("0664", 1000, 100)), a.upload("d/runs", "4", atTen, owned("4755", 0, 0)), a.upload("d/group", "5", atTen, owned("2755", 1000, 100)))
	dir := t.TempDir()
	for run, want := range []restore.Summary{{Restored: 5}, {Kept: 5}} {
		_, sum, err := a.restore(t, dir, func(o *restore.Options) { o.Owner = true })
		if err != nil || sum.Restored != want.Restored || sum.Kept != want.Kept {
			t.Errorf("run %d: Restore = %+v, %v, want %d restored and %d kept", run, sum, err, want.Restored, want.Kept)
		}
	}
}

// Without the owner that the trail names no file gets the right to run as its
// owner: it would run as whoever restores it.
func TestNoFileRunsAsAnotherOwnerThanTheRecorded(t *testing.T) {
	self, group := uint32(os.Geteuid()), uint32(os.Getegid())
	for _, c := range []struct {
		name   string
		owner  bool
		change func(*archive.Record)
		want   fs.FileMode
	}{
		{"another owner, not restored", false, owned("6755", self+1, group), 0o755},
		{"another group, not restored", false, owned("6755", self, group+1), 0o755},
		{"the restorer's own", false, owned("6755", self, group), 0o755 | fs.ModeSetuid | fs.ModeSetgid},
		{"no owner in the trail", false, func(r *archive.Record) { r.Mode = "6755" }, 0o755},
		{"no owner in the trail, owners restored", true, func(r *archive.Record) { r.Mode = "6755" }, 0o755},
		{"the recorded owner", true, owned("6755", self, group), 0o755 | fs.ModeSetuid | fs.ModeSetgid},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newArchive()
			a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload("f", "program", atTen, c.change))
			dir := t.TempDir()
			if _, sum, err := a.restore(t, dir, func(o *restore.Options) { o.Owner = c.owner }); err != nil || sum.Restored != 1 {
				t.Fatalf("Restore = %+v, %v", sum, err)
			}
			if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Mode() != c.want {
				t.Errorf("the file has mode %v, %v, want %v", st.Mode(), err, c.want)
			}
		})
	}
}

func TestRestoreMakesNoDirectoryThatLetsOthersIn(t *testing.T) {
	needRoot(t)
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, true, nil,
		a.upload("private/key", "1", atTen, owned("0644", 0, 0)), a.upload("private/deep/app", "2", atTen, owned("0644", 1000, 1000)))
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, sum, err := a.restore(t, dir, func(o *restore.Options) { o.Owner = true })
	if err != nil || sum.NewDirs != 2 || sum.OwnersOut != 1 {
		t.Errorf("Restore = %+v, %v, want two directories, and one file whose owner cannot enter", sum, err)
	}
	for _, name := range []string{"private", "private/deep"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, %v, want 0700", name, st.Mode(), err)
		}
	}
	said, _, err := a.restore(t, t.TempDir(), func(o *restore.Options) { o.Owner, o.DirMode = true, 0o755 })
	if err != nil || !strings.HasPrefix(said["p/private/key"], "restored") {
		t.Errorf("Restore with another mode = %v, %v", said, err)
	}
}
