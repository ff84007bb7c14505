package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// notifier speaks sd_notify(3). Without NOTIFY_SOCKET every call does nothing.
type notifier struct {
	log *zap.Logger
}

// notifyTime bounds how long systemd is waited for: its socket may be full.
const notifyTime = time.Second

func (n notifier) send(state string) {
	to := &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"}
	if to.Name == "" {
		return
	}
	conn, err := net.DialUnix(to.Net, nil, to)
	if err == nil {
		err = conn.SetWriteDeadline(time.Now().Add(notifyTime))
		if err == nil {
			_, err = conn.Write([]byte(state))
		}
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		n.log.Warn("sd_notify failed", zap.String("state", state), zap.Error(err))
	}
}

func (n notifier) ready()             { n.send(sd.SdNotifyReady) }
func (n notifier) stopping()          { n.send(sd.SdNotifyStopping) }
func (n notifier) status(line string) { n.send("STATUS=" + line) }
func (n notifier) watchdog()          { n.send(sd.SdNotifyWatchdog) }
func (n notifier) extend(by time.Duration) {
	n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", by.Microseconds()))
}

// reloading says that a reload began. Type=notify-reload wants the monotonic
// time beside it (sd_notify(3)).
func (n notifier) reloading() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		n.log.Warn("no monotonic clock, systemd may not follow the reload", zap.Error(err))
		return
	}
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, ts.Nano()/1000))
}

// watch pings the watchdog for as long as alive says that the pipeline makes
// progress or has nothing to do. It blocks until ctx ends.
func (n notifier) watch(ctx context.Context, alive func() error) {
	limit, err := sd.SdWatchdogEnabled(false)
	if err != nil || limit == 0 {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		if err := alive(); err != nil {
			n.log.Error("no progress, the watchdog is not fed", zap.Error(err))
		} else {
			n.watchdog()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
