package config

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"
)

// SyncFlags are the settings of a sync without a configuration file. Empty ones
// were not given.
type SyncFlags struct {
	Dir         string // may be relative to the working directory
	Bucket      string
	Prefix      string
	KMSKeyID    string
	Region      string
	EndpointURL string
	StateDir    string
	Env         []string // as from os.Environ
}

// FromFlags returns the configuration of one source as the flags have it, on
// top of the environment, with the same checks as a file. Every error is
// Errors, whose faults name the flag. Without a state directory it is
// sync/<hash of directory, bucket and prefix> in $STATE_DIRECTORY, else in
// s3syncd in the user's state directory, so that the same command finds its
// state again.
func FromFlags(f SyncFlags) (*Config, error) {
	l := newLoader("", f.Env)
	l.flags = true
	l.cfg.Sources = []Source{defaultSource()}
	l.applyEnv()
	l.applyFlags(f)
	if !l.written("state_dir") {
		l.fillState()
	}
	l.fill()
	(&checker{report: l.report, cfg: l.cfg}).check()
	return l.result()
}

// flagNames has the flag of every key that one sets.
func flagNames() map[string]string {
	return map[string]string{
		"sources[0].path": "--dir", "sources[0].bucket": "--bucket", "sources[0].prefix": "--prefix",
		"sources[0].kms_key_id": "--kms-key-id", "s3.region": "--region", "s3.endpoint_url": "--endpoint-url",
		"state_dir": "--state-dir",
	}
}

// flagOrigin returns where a key that is not set can be set.
func flagOrigin(key string) origin {
	if name, found := flagNames()[key]; found {
		return origin{flag: name}
	}
	if key == "sources[0].name" {
		return origin{flag: "--dir"}
	}
	return origin{variable: variable(key)}
}

func (l *loader) applyFlags(f SyncFlags) {
	dir := f.Dir
	if abs, err := filepath.Abs(dir); err == nil && dir != "" {
		dir = abs
	}
	stateDir := f.StateDir
	if abs, err := filepath.Abs(stateDir); err == nil && stateDir != "" {
		stateDir = abs
	}
	index := l.cfg.index()
	for _, given := range []struct{ key, value string }{
		{"sources[0].path", dir},
		{"sources[0].bucket", f.Bucket},
		{"sources[0].prefix", f.Prefix},
		{"sources[0].kms_key_id", f.KMSKeyID},
		{"s3.region", f.Region},
		{"s3.endpoint_url", f.EndpointURL},
		{"state_dir", stateDir},
	} {
		if given.value != "" {
			l.set(origin{flag: flagNames()[given.key]}, given.key, index[given.key].value, scalar{text: given.value})
		}
	}
}

// fillState derives the state directory.
func (l *loader) fillState() {
	base := l.env.directory("STATE_DIRECTORY")
	if base == "" {
		if user := l.userState(); user != "" {
			base = filepath.Join(user, "s3syncd")
		}
	}
	if base == "" {
		l.fault("state_dir", "", "is required: none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set", "a directory")
		return
	}
	s := &l.cfg.Sources[0]
	sum := sha256.Sum256([]byte(strings.Join([]string{filepath.Clean(s.Path), s.Bucket, strings.TrimSuffix(s.Prefix, "/")}, "\x00")))
	l.cfg.StateDir = filepath.Join(base, "sync", hex.EncodeToString(sum[:8]))
}

// userState returns the user's state directory, as the XDG base directory
// specification has it.
func (l *loader) userState() string {
	if dir := l.env["XDG_STATE_HOME"]; filepath.IsAbs(dir) {
		return filepath.Clean(dir)
	}
	if home := l.env["HOME"]; filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state")
	}
	return ""
}
