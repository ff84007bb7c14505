package pipeline

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A peer is another program's way over the tree.
type peer struct {
	name string
	run  func() time.Duration
}

// peerCommand times a program and returns what it printed.
func peerCommand(b *testing.B, env []string, name string, args ...string) ([]byte, time.Duration) {
	b.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(b.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin)
	if err != nil {
		b.Fatalf("%s %q: %v\n%s", name, args, err, stderr.Bytes())
	}
	return stdout.Bytes(), took
}

// rclonePeer lists the tree with rclone's local walker: sizes and times alone.
func rclonePeer(b *testing.B, program, dir string) func() time.Duration {
	b.Helper()
	env := []string{"RCLONE_CONFIG=" + filepath.Join(b.TempDir(), "rclone.conf")}
	return func() time.Duration {
		out, took := peerCommand(b, env, program, "size", "--json", dir)
		var size struct {
			Count int `json:"count"`
		}
		if err := json.Unmarshal(out, &size); err != nil || size.Count != benchFiles {
			b.Fatalf("rclone counts %d files: %v", size.Count, err)
		}
		return took
	}
}

// resticPeer archives the tree once into a repository of its own; what is timed
// is a dry run over the unchanged files with that snapshot as the parent.
func resticPeer(b *testing.B, program, dir string) func() time.Duration {
	b.Helper()
	base := b.TempDir()
	env := []string{
		"RESTIC_REPOSITORY=" + filepath.Join(base, "repository"), "RESTIC_CACHE_DIR=" + filepath.Join(base, "cache"),
		"RESTIC_PASSWORD=bench",
	}
	peerCommand(b, env, program, "init")
	peerCommand(b, env, program, "backup", "--quiet", dir)
	return func() time.Duration {
		out, took := peerCommand(b, env, program, "backup", "--dry-run", "--json", dir)
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		var summary struct {
			Unmodified int `json:"files_unmodified"`
		}
		if err := json.Unmarshal(lines[len(lines)-1], &summary); err != nil || summary.Unmodified != benchFiles {
			b.Fatalf("restic finds %d files unmodified: %v", summary.Unmodified, err)
		}
		return took
	}
}

// A rescan of indexed files and other programs beside find(1), in turn. Which
// programs is said by S3SYNCD_BENCH_RCLONE and S3SYNCD_BENCH_RESTIC, their paths.
func BenchmarkRescan100kBesidePeers(b *testing.B) {
	rclone, restic := os.Getenv("S3SYNCD_BENCH_RCLONE"), os.Getenv("S3SYNCD_BENCH_RESTIC")
	if rclone == "" && restic == "" {
		b.Skip("rclone and restic are left out: S3SYNCD_BENCH_RCLONE and S3SYNCD_BENCH_RESTIC name no program")
	}
	dir, src := benchTree(b)
	w := benchWatcher(b, dir, src)
	peers := []peer{
		{"find", func() time.Duration { return benchFind(b, dir) }},
		{"rescan", func() time.Duration { return benchRescan(b, w) }},
	}
	if rclone != "" {
		peers = append(peers, peer{"rclone", rclonePeer(b, rclone, dir)})
	} else {
		b.Log("rclone is left out: S3SYNCD_BENCH_RCLONE names no program")
	}
	if restic != "" {
		peers = append(peers, peer{"restic", resticPeer(b, restic, dir)})
	} else {
		b.Log("restic is left out: S3SYNCD_BENCH_RESTIC names no program")
	}
	for _, p := range peers {
		p.run() // All find a warm cache.
	}
	took := make([][]time.Duration, len(peers))
	for b.Loop() {
		for i, p := range peers {
			took[i] = append(took[i], p.run())
		}
	}
	find := median(took[0])
	for i, p := range peers {
		m := median(took[i])
		b.ReportMetric(m.Seconds()*1e3, p.name+"-ms")
		b.ReportMetric(m.Seconds()/find.Seconds(), p.name+"/find")
	}
	b.ReportMetric(0, "ns/op") // The sum of all says nothing.
}
