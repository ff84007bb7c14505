package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	sampleEvery = 20 * time.Millisecond
	stopGrace   = 40 * time.Second
	tickHz      = 100 // USER_HZ of Linux
)

// command is a program as it is to be started.
type command struct {
	program string
	args    []string
	env     []string
	dir     string
}

// usage is what a child took.
type usage struct {
	Wall float64 `json:"wall_s"`
	CPU  float64 `json:"cpu_s"` // of it and of the children that it waited for
	RSS  float64 `json:"rss_mib"`
	Anon float64 `json:"anon_mib"`
}

// child is a running program. Its highest memory use is looked up all the time,
// because the kernel's own figure begins with that of the parent.
type child struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	output *tail
	begin  time.Time
	done   chan struct{}
	err    error // of Wait; read it, and use, after done is closed
	use    usage
}

// startChild starts c in a process group of its own. Canceling ctx, or stop,
// sends it SIGTERM.
func startChild(ctx context.Context, c command) (*child, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	p := &child{cmd: cmd, cancel: cancel, output: &tail{}, done: make(chan struct{})}
	cmd.Env = append(inherited(), c.env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, p.output, p.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // What it started ends with it.
	cmd.WaitDelay = stopGrace
	p.begin = time.Now()
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", c.program, err)
	}
	waited := make(chan struct{})
	go func() { // Ends with the child.
		p.err = cmd.Wait()
		p.use.Wall = time.Since(p.begin).Seconds()
		close(waited)
	}()
	go p.sample(waited)
	return p, nil
}

// sample ends after the child and completes its usage.
func (p *child) sample(waited <-chan struct{}) {
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		rss, anon := memoryOf(p.cmd.Process.Pid)
		p.use.RSS, p.use.Anon = max(p.use.RSS, rss), max(p.use.Anon, anon)
		select {
		case <-waited:
			st := p.cmd.ProcessState
			p.use.CPU = (st.UserTime() + st.SystemTime()).Seconds()
			close(p.done)
			return
		case <-t.C:
		}
	}
}

// wait returns when the child has ended, with what it said if it failed.
func (p *child) wait() (usage, error) {
	<-p.done
	p.cancel()
	if p.err != nil {
		return p.use, fmt.Errorf("%s: %w\n%s", filepath.Base(p.cmd.Path), p.err, p.output)
	}
	return p.use, nil
}

// stop ends a program that runs until it is told to end. How it ends does not
// matter.
func (p *child) stop() usage {
	p.cancel()
	<-p.done
	return p.use
}

// cpu returns the processor time that the child itself has used so far.
func (p *child) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * time.Second / tickHz, errors.Join(err1, err2)
}

// memoryOf returns a process's highest resident memory and its anonymous memory
// now, in MiB; zeros once it has ended.
func memoryOf(pid int) (peak, anon float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(f[1], 64)
		switch {
		case err != nil:
		case f[0] == "VmHWM:":
			peak = kib / 1024
		case f[0] == "RssAnon:":
			anon = kib / 1024
		}
	}
	return peak, anon
}

// inherited is the environment less what would configure the programs.
func inherited() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "_")
		switch name {
		case "AWS", "MINIO", "S3SYNCD", "RCLONE", "MC", "NOTIFY":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// tail keeps the end of what a child prints. One child writes it from one
// goroutine; it is read when that has ended.
type tail struct{ b []byte }

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }
