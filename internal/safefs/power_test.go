package safefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/crashfs"
)

const powerRole = "SAFEFS_TEST_POWER"

func TestMain(m *testing.M) {
	if os.Getenv(powerRole) == "" {
		os.Exit(m.Run())
	}
	if err := playPower(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// durableContent is several pages, none of which is all zero.
func durableContent() string { return strings.Repeat("content ", 4096) }

// playPower writes files in each way that promises something of a power cut, and
// prints a line when the promise holds.
func playPower() error {
	if err := MkdirAll("new/deep", 0o700); err != nil {
		return err
	}
	fmt.Println("new/deep")
	if err := WriteFile("new/deep/file", []byte(durableContent()), 0o600); err != nil {
		return err
	}
	fmt.Println("new/deep/file")
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	target, err := OpenTarget(filepath.Join(wd, "new"), 0o700)
	if err != nil {
		return err
	}
	defer target.Close()
	mode := uint32(0o4755)
	for _, a := range []Attributes{{}, {Mode: &mode}} { // The second one replaces the first.
		if err := deliver(target, "deep/restored", durableContent(), a, a.Mode != nil); err != nil {
			return err
		}
	}
	return nil
}

// After a power cut at any moment a file that has its name has its content, and
// what was promised to be there is there.
func TestAPowerCutLeavesNoNameWithoutContent(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: no power cut is played")
	}
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, file := filepath.Join(base, "played"), filepath.Join(base, "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), strace, append(crashfs.Args(), "-o", file, self)...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), powerRole+"=1"), os.Stderr
	if _, err := cmd.Output(); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	log, err := crashfs.Parse(in, dir)
	if err != nil {
		t.Fatal(err)
	}
	promised, named := 0, 0
	for moment := range log.Moments() {
		rng := rand.New(rand.NewPCG(uint64(moment), 1))
		for range 8 {
			left := filepath.Join(t.TempDir(), "left")
			if err := log.Cut(moment, rng, left); err != nil {
				t.Fatal(err)
			}
			for path := range strings.Lines(log.Acknowledged(moment)) {
				promised++
				if _, err := os.Stat(filepath.Join(left, strings.TrimSpace(path))); err != nil {
					t.Fatalf("cut at moment %d: what was durable is gone: %v", moment, err)
				}
			}
			for _, path := range []string{"new/deep/file", "new/deep/restored"} {
				got, err := os.ReadFile(filepath.Join(left, path))
				if err == nil {
					named++
				}
				if err == nil && string(got) != durableContent() {
					t.Fatalf("cut at moment %d: %s has its name and %d bytes that are not its content", moment, path, len(got))
				}
			}
		}
	}
	if promised == 0 || named == 0 {
		t.Errorf("%d promises and %d files were looked at: nothing was tested", promised, named)
	}
}
