package watcher

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// First arguments of a process of this test that runs with other rights; the
// second one is the source.
const (
	limitedChild    = "limited-child"    // in a user namespace with a low limit of watches
	unreadableChild = "unreadable-child" // as a user who cannot read everything
	mountsChild     = "mounts-child"     // in a mount namespace
	swappedChild    = "swapped-child"    // the same
	lateMountChild  = "late-mount-child" // the same
	boundChild      = "bound-child"      // the same
	restartsChild   = "restarts-child"   // the same
	kernelChild     = "kernel-child"     // the same

	mirroredUnreadableChild = "mirrored-unreadable-child" // these two of a mirrored source
	mirroredMountsChild     = "mirrored-mounts-child"

	goneMountChild         = "gone-mount-child"
	mirroredGoneMountChild = "mirrored-gone-mount-child"
)

func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.ReadFile("/proc/self/exe") // The original may be in a directory of another user.
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil {
		t.Fatal(err)
	}
	path := tmp + "/child"
	if err := os.WriteFile(path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), path, mode, dir)
	c.Dir = "/"
	return c
}

func succeeds(t *testing.T, c *exec.Cmd) {
	t.Helper()
	out, err := c.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Fatalf("%s: %v\n%s", c.Args[1], err, out)
	}
}

// runChild is the main function of such a process.
func runChild(mode, dir string) {
	tb := &childTB{}
	switch mode { // These are several runs.
	case restartsChild:
		mountsOverRestarts(tb, dir)
	case goneMountChild:
		mountGoneDuringScan(tb, dir, nil)
	case mirroredGoneMountChild:
		mountGoneDuringScan(tb, dir, mirroring(100))
	default:
		runRig(tb, mode, dir)
	}
	for _, f := range tb.end {
		f()
	}
	fmt.Println("ok")
}

func runRig(tb *childTB, mode, dir string) {
	var change func(*Options)
	if mode == mirroredUnreadableChild || mode == mirroredMountsChild {
		change = mirroring(100)
	}
	r := rigAt(tb, dir, change)
	switch mode {
	case mirroredUnreadableChild:
		mirroredUnreadableSource(r)
	case limitedChild:
		limitedSource(r)
	case unreadableChild:
		unreadableSource(r)
	case mountsChild, mirroredMountsChild:
		mountedSource(r)
	case swappedChild:
		swappedSource(r)
	case lateMountChild:
		lateMount(r)
	case kernelChild:
		kernelSource(r)
	case boundChild:
		boundSource(r)
	}
}

// childTB is what the helpers need of a testing.TB, outside of a test.
type childTB struct {
	testing.TB
	end []func()
}

func (c *childTB) Helper()                   {}
func (c *childTB) Cleanup(f func())          { c.end = append(c.end, f) }
func (c *childTB) Fatal(a ...any)            { panic(fmt.Sprint(a...)) }
func (c *childTB) Errorf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
func (c *childTB) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
