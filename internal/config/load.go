package config

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Load reads and checks the file at path, with env (as from os.Environ) on top.
// What the operator has to correct comes back as Errors; a file that cannot be
// read as the error of the system. A file that others than its owner may write
// to is accepted with a warning. Load opens no source: see CheckPlaces.
func Load(path string, env []string) (*Config, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // A FIFO must not block.
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer func() { _ = f.Close() }() // Only read.
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if mode := fi.Mode(); !mode.IsRegular() && mode&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf("read configuration: %s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(path, data, env)
	if err != nil {
		return nil, err
	}
	if mode := fi.Mode(); mode.IsRegular() && mode.Perm()&0o022 != 0 {
		c.Warnings = append(c.Warnings, fmt.Sprintf(
			"%s: others than its owner may write to it (mode %04o): whoever can may redirect the archive; chmod go-w", path, mode.Perm()))
	}
	return c, nil
}

// Parse checks data as Load checks a file; name is what faults call it. Every
// error is Errors.
func Parse(name string, data []byte, env []string) (*Config, error) {
	l := newLoader(name, env)
	if l.decode(data) {
		l.applyEnv()
		l.fill()
		(&checker{report: l.report, cfg: l.cfg}).check()
	}
	return l.result()
}

// loader fills one Config.
type loader struct {
	*report

	cfg *Config
	env environment
}

func newLoader(file string, env []string) *loader {
	return &loader{
		report: &report{file: file, origins: map[string]origin{}, bad: map[string]bool{}},
		cfg:    defaults(), env: newEnvironment(env),
	}
}

// result returns the configuration, or its faults in order.
func (l *loader) result() (*Config, error) {
	if len(l.faults) > 0 {
		l.faults.sort()
		return nil, l.faults
	}
	l.cfg.from = l.report
	l.cfg.Warnings = append(l.cfg.Warnings, l.warnings...)
	return l.cfg, nil
}
