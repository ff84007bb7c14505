package daemon

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestSystemdThatReadsNothingHoldsNobodyUp(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", socket)
	core, logs := observer.New(zapcore.WarnLevel)
	n := notifier{log: zap.New(core)}
	n.ready()
	buf := make([]byte, 100)
	if m, err := l.Read(buf); err != nil || string(buf[:m]) != "READY=1" {
		t.Fatalf("Read() = %q, %v, want READY=1", buf[:m], err)
	}
	begin := time.Now()
	for range 10_000 { // Until the socket takes no more.
		if n.watchdog(); logs.Len() > 0 {
			break
		}
	}
	if logs.Len() != 1 || time.Since(begin) > within {
		t.Errorf("%d lines after %v, want one that says that systemd was not told", logs.Len(), time.Since(begin))
	}
}
