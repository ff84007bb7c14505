package e2e_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// listener is what the daemon believes to be systemd's notify socket.
type listener struct {
	path string
	said lockedBuffer // a line an assignment
}

func listen(t *testing.T) *listener {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") //nolint:usetesting // A socket's path has to be short.
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{path: filepath.Join(dir, "s")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: l.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 8192)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("the notify socket: %v", err)
				}
				return
			}
			_, _ = l.said.Write(append(buf[:n:n], '\n'))
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return l
}

func (l *listener) heard(line string) bool { return strings.Contains("\n"+l.said.String(), "\n"+line) }

// hears waits for a line that begins so.
func (l *listener) hears(t *testing.T, line string) {
	t.Helper()
	eventually(t, line, func() bool { return l.heard(line) })
}

// TestSystemdIsAskedForTimeUntilTheStartIsDone holds the answer to the first
// canary back.
func TestSystemdIsAskedForTimeUntilTheStartIsDone(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	canary := s.proxy.Hold(s3test.Match{Op: "PutObject", Key: "/_manifests/.canary/"})
	l := listen(t)
	d := spawn(t, append(s.env, "NOTIFY_SOCKET="+l.path), "run", "-c", s.file)
	canary.Wait(t)
	l.hears(t, "STATUS=starting: app: starting")
	l.hears(t, "EXTEND_TIMEOUT_USEC=60000000\n")
	if l.heard("READY=1") {
		t.Errorf("READY=1 before the first canary has an answer:\n%s", &l.said)
	}
	canary.Release()
	l.hears(t, "READY=1\n")
	l.hears(t, "STATUS=app: ")
	if strings.Contains(l.said.String(), "WATCHDOG=1") {
		t.Errorf("the watchdog is fed that nobody asked for")
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	l.hears(t, "STOPPING=1\n")
}

func TestSystemdIsToldOfAReloadAndFed(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	l := listen(t)
	d := startDaemon(t, s.file, append(s.env, "NOTIFY_SOCKET="+l.path, "WATCHDOG_USEC=600000000")...)
	l.hears(t, "READY=1\n")
	l.hears(t, "WATCHDOG=1\n")
	said := func() string { return l.said.String() }
	for i, changed := range []string{"", "exclude: ['*.tmp']"} { // A rescan alone, then a new pipeline.
		s.configure(t, changed, "")
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the reload's end", func() bool {
			return strings.Count(said(), "RELOADING=1\nMONOTONIC_USEC=") == i+1 && strings.Count(said(), "READY=1\n") == i+2
		})
		if strings.LastIndex(said(), "RELOADING=1") > strings.LastIndex(said(), "READY=1") {
			t.Errorf("READY=1 does not follow RELOADING=1:\n%s", said())
		}
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
