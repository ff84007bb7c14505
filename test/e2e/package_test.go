package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// script runs a maintainer's script of a package below root, with programs that
// do nothing in the place of systemd's.
func script(t *testing.T, root, name string, args ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "package", name))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin")
	for _, program := range []string{"systemd-sysusers", "systemd-tmpfiles", "systemctl", "deb-systemd-invoke"} {
		write(t, filepath.Join(bin, program), "#!/bin/sh\n")
		if err := os.Chmod(filepath.Join(bin, program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer("/etc/s3syncd", root+"/etc/s3syncd", "/usr/share/s3syncd", root+"/usr/share/s3syncd", "/var/lib/", root+"/var/lib/", "/run/", root+"/run/")
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", here.Replace(string(text)), name}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// The configuration is no file of the package: dpkg would stop an upgrade to ask
// what to do with one that was edited.
func TestThePackagesCopyTheExampleWhereThereIsNoConfiguration(t *testing.T) {
	nfpm, err := os.ReadFile("../../deploy/package/nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(nfpm), "type: config") || strings.Contains(string(nfpm), "dst: /etc/s3syncd/s3syncd.yaml") {
		t.Error("the configuration is a file of the package")
	}
	for name, runs := range map[string][2][]string{"deb/postinst": {{"configure", ""}, {"configure", "1.0.0-1"}}, "rpm/post": {{"1"}, {"2"}}} {
		root := t.TempDir()
		config := filepath.Join(root, "etc", "s3syncd", "s3syncd.yaml")
		for _, dir := range []string{filepath.Dir(config), root + "/run"} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		example := filepath.Join(root, "usr", "share", "s3syncd", "s3syncd.example.yaml")
		write(t, example, "first")
		write(t, config+".new", "half")
		script(t, root, name, runs[0]...)
		if got, err := os.ReadFile(config); err != nil || string(got) != "first" {
			t.Errorf("%s: an installation leaves %q, %v; want the example", name, got, err)
		}
		if st, err := os.Stat(config); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("%s: the configuration has mode %v, %v; want 0640", name, st.Mode(), err)
		}
		write(t, config, "edited")
		write(t, example, "second")
		script(t, root, name, runs[1]...)
		if got, err := os.ReadFile(config); err != nil || string(got) != "edited" {
			t.Errorf("%s: an upgrade leaves %q, %v; want what was edited", name, got, err)
		}
		if name != "deb/postinst" {
			continue
		}
		script(t, root, "deb/postrm", "purge")
		if _, err := os.Stat(config); err == nil {
			t.Error("a purge leaves the configuration")
		}
	}
}
