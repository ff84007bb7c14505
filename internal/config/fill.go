package config

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const instanceMark = "{instance}"

// fill derives what was not written from what was, and brings paths and
// prefixes into their one form.
func (l *loader) fill() {
	c := l.cfg
	l.fillInstance()
	for _, p := range []*string{&c.StateDir, &c.Manifest.LocalDir, &c.Admin.WebConfig, &c.Admin.Socket} {
		if *p != "" {
			*p = filepath.Clean(*p)
		}
	}
	if !l.written("s3.path_style") {
		c.S3.PathStyle = c.S3.EndpointURL != ""
	}
	if c.Manifest.LocalDir == "" {
		c.Manifest.LocalDir = filepath.Join(c.StateDir, "manifests")
	}
	if c.Admin.Socket == "" {
		c.Admin.defaultSocket = true
		dir := l.env.directory("RUNTIME_DIRECTORY")
		if dir == "" {
			dir = c.StateDir
		}
		c.Admin.Socket = filepath.Join(dir, "control.sock")
	}
	for i := range c.Sources {
		l.fillSource(sourceKey(i), &c.Sources[i])
	}
}

func (l *loader) fillInstance() {
	if l.written("instance") {
		return
	}
	host, err := os.Hostname()
	if err != nil {
		l.fault("instance", "", "is not set, and the host's name cannot be read: "+err.Error(), instanceForm)
		return
	}
	if problem := checkInstance(host); problem != "" {
		l.fault("instance", "", "is not set, and the host's name "+quote(host)+" "+problem, instanceForm)
		return
	}
	l.cfg.Instance = host
}

func (l *loader) fillSource(key string, s *Source) {
	c := l.cfg
	if s.Path != "" {
		s.Path = filepath.Clean(s.Path)
	}
	if !l.written(key+".name") && s.Path != "" {
		s.Name = filepath.Base(s.Path)
		if problem := checkName(s.Name); problem != "" {
			l.fault(key+".name", "", "is required: the base name of the path "+problem, nameForm)
		}
	}
	c.prefixes = append(c.prefixes, s.Prefix)
	s.Prefix = prefixOf(s.Prefix, c.Instance)
	if len(s.Prefix) > maxPrefixBytes {
		l.fault(key+".prefix", quote(s.Prefix), "is longer than "+strconv.Itoa(maxPrefixBytes)+" bytes", prefixForm)
	}
	l.inherit(key, s)
	if s.SSE == "aws:kms:dsse" {
		if s.BucketKey && l.written(key+".bucket_key") {
			l.warn(key+".bucket_key", "aws:kms:dsse knows no bucket keys; none is asked for")
		}
		s.BucketKey = false
	}
}

// prefixOf returns a prefix as it was written for one instance.
func prefixOf(written, instance string) string {
	return strings.TrimSuffix(strings.ReplaceAll(written, instanceMark, instance), "/")
}

// inherit gives a source what stands in watch and s3 for all.
func (l *loader) inherit(key string, s *Source) {
	if !l.written(key + ".settle") {
		s.Settle = l.cfg.Watch.Settle
	}
	if !l.written(key + ".max_delay") {
		s.MaxDelay = l.cfg.Watch.MaxDelay
	}
	if s.Region == "" {
		s.Region = l.cfg.S3.Region
	}
	if s.ExpectedBucketOwner == "" {
		s.ExpectedBucketOwner = l.cfg.S3.ExpectedBucketOwner
	}
}
