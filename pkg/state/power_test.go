package state

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/crashfs"
)

// A power cut at any moment leaves a state that opens and holds everything that
// was acknowledged, whatever part of the unsynced rest has reached the disk.
func TestNothingAcknowledgedIsLostByAPowerCut(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: no power cut is played")
	}
	base := must(filepath.EvalSymlinks(t.TempDir()))(t)
	dir, file := filepath.Join(base, "state"), filepath.Join(base, "log")
	check(t, os.Mkdir(dir, 0o700))
	args := append(crashfs.Args(), "-o", file, must(os.Executable())(t))
	cmd := exec.CommandContext(t.Context(), strace, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "STATE_TEST_ROLE=brief writer")
	cmd.Stderr = os.Stderr
	must(cmd.Output())(t)
	in := must(os.Open(file))(t)
	defer in.Close()
	log := must(crashfs.Parse(in, dir))(t)

	cuts, budget := 0, 4*time.Second
	if os.Getenv("S3SYNCD_E2E") != "" {
		budget = 5 * time.Minute
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	found, most := 0, 0
	for begin := time.Now(); cuts < 20 || time.Since(begin) < budget && cuts < 10*log.Moments(); cuts++ {
		moment := rng.IntN(log.Moments())
		left := filepath.Join(base, "left")
		check(t, os.Mkdir(left, 0o700))
		check(t, log.Cut(moment, rng, left))
		acked := map[string]uint64{}
		for line := range strings.Lines(log.Acknowledged(moment)) {
			var path, id string
			var attempt uint64
			if n, _ := fmt.Sscanf(line, "%s %d %s", &path, &attempt, &id); n == 3 {
				acked[path] = max(acked[path], attempt)
			}
		}
		if len(acked) > 0 {
			found++
			most = max(most, len(acked))
		}
		if checkAfterCrash(t, left, acked, moment); t.Failed() {
			t.Fatalf("after a power cut at moment %d of %d", moment, log.Moments())
		}
		check(t, os.RemoveAll(left))
	}
	t.Logf("%d cuts at %d moments, %d with something acknowledged, at most %d paths", cuts, log.Moments(), found, most)
	if found == 0 {
		t.Error("no cut came after an acknowledgement")
	}
}
