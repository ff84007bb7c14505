package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// systemdReload does what systemd 252 does for `systemctl reload`: the lines of
// ExecReload one after the other, until one fails.
func systemdReload(t *testing.T, d *process, env []string, file string) (failed bool) {
	t.Helper()
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "s3syncd.service"))
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(unit)) {
		run, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecReload=")
		if !ok {
			continue
		}
		lines++
		run = strings.NewReplacer("/usr/bin/s3syncd", binary, "/etc/s3syncd/s3syncd.yaml", file, "$MAINPID", strconv.Itoa(d.cmd.Process.Pid)).Replace(run)
		words := strings.Fields(run)
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Env = env
		if err := cmd.Run(); err != nil {
			return true
		}
	}
	if lines == 0 {
		t.Fatal("the unit has no ExecReload")
	}
	return false
}

// A bad file makes the reload fail in systemctl, and in the daemon's metrics.
func TestReloadOfABadFileFailsEverywhere(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	says := func(value string) bool {
		_, m := d.get(t, "/metrics")
		return strings.Contains(m, "\ns3syncd_config_last_reload_successful "+value+"\n")
	}
	good, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, string(good)+"\nno_such_key: 1\n")
	if !systemdReload(t, d, s.env, s.file) {
		t.Error("the reload of a bad file succeeds")
	}
	eventually(t, "config_last_reload_successful 0", func() bool { return says("0") })
	write(t, s.file, string(good))
	if systemdReload(t, d, s.env, s.file) {
		t.Error("the reload of a good file fails")
	}
	eventually(t, "config_last_reload_successful 1", func() bool { return says("1") })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
