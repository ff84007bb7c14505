package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/audit"
)

// originFlags name the archived source that a command reads.
type originFlags struct {
	config, source                   string
	bucket, prefix, region, endpoint string
	insecure                         bool
	instance                         string
}

// set adds the flags that verify, restore and history share.
func (f *originFlags) set(fs *pflag.FlagSet, instance string) {
	configFlag(fs, &f.config, "; or, without a file:")
	fs.StringVar(&f.bucket, "bucket", "", "`bucket` to read")
	fs.StringVar(&f.prefix, "prefix", "", "`prefix` of the source's keys")
	fs.StringVar(&f.region, "region", "", "AWS `region`")
	fs.StringVar(&f.endpoint, "endpoint-url", "", "`URL` of an S3-compatible server")
	fs.BoolVar(&f.insecure, "allow-insecure-endpoint", false, "allow http:// to another host")
	fs.StringVar(&f.instance, "instance", "", instance)
}

// setSource adds the flag of what reads one source only.
func (f *originFlags) setSource(fs *pflag.FlagSet) {
	fs.StringVar(&f.source, "source", "", "`name` of the source, where the configuration has several")
}

// given reports whether a flag names a bucket, or something about it.
func (f *originFlags) given(fs *pflag.FlagSet) bool {
	return slices.ContainsFunc([]string{"bucket", "prefix", "region", "endpoint-url", "allow-insecure-endpoint"}, fs.Changed)
}

// named returns what the flags name without a configuration.
func (f *originFlags) named() audit.Origin {
	return audit.Origin{
		Bucket: f.bucket, Prefix: strings.Trim(f.prefix, "/"), Region: f.region,
		EndpointURL: f.endpoint, PathStyle: f.endpoint != "", AllowInsecure: f.insecure,
	}
}

// origin returns what the flags name. With a configuration, --instance stands
// for the configuration's own: a host is restored on another one.
func (f *originFlags) origin(fs *pflag.FlagSet, env []string) (audit.Origin, error) {
	switch {
	case f.config != "" && f.given(fs):
		return audit.Origin{}, fmt.Errorf("%w: %s: -c FILE and --bucket, --prefix, … exclude each other", errUsage, fs.Name())
	case f.config == "" && (f.bucket == "" || !fs.Changed("prefix")):
		return audit.Origin{}, fmt.Errorf("%w: %s: -c FILE, or --bucket and --prefix, are needed", errUsage, fs.Name())
	case f.config == "" && f.source != "":
		return audit.Origin{}, fmt.Errorf("%w: %s: --source names a source of -c FILE", errUsage, fs.Name())
	case f.config == "":
		return f.named(), nil
	}
	return f.configured(env)
}

// configured returns what the configuration and --instance name.
func (f *originFlags) configured(env []string) (audit.Origin, error) {
	own, err := loadConfig(f.config, env)
	if f.instance == "" || err == nil && own.Instance == f.instance {
		if err != nil {
			return audit.Origin{}, err
		}
		return audit.OriginOf(own, f.source)
	}
	other, err := loadConfig(f.config, append(slices.Clone(env), "S3SYNCD_INSTANCE="+f.instance))
	if err != nil {
		return audit.Origin{}, err
	}
	origin, err := audit.OriginOf(other, f.source)
	return origin.OfAnother(), err
}

// timeForms is what parseTime accepts, for messages.
const timeForms = "2006-01-02T15:04:05Z (or with an offset), 2006-01-02, 2006-01-02 15:04 or 2006-01-02 15:04:05 (UTC), or 90m or 7d (ago)"

// parseAt reads the flag --at of fs. Where it is on the command line it must
// say something: an empty variable of a script does not mean now.
func parseAt(fs *pflag.FlagSet, text string, now time.Time) (time.Time, error) {
	if text == "" && fs.Changed("at") {
		return time.Time{}, fmt.Errorf("%w: %s: --at is empty; a time is needed: %s", errUsage, fs.Name(), timeForms)
	}
	return parseTime(fs.Name(), text, now)
}

// parseTime reads a time that an operator gives: "" is the zero time.
func parseTime(command, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Time{}, error(nil)
	if ago, derr := time.ParseDuration(text); derr == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, derr := strconv.ParseUint(days, 10, 16); derr == nil {
			return now.Add(-time.Duration(n) * 24 * time.Hour), nil
		}
	}
	for _, form := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if at, err = time.Parse(form, text); err == nil {
			break
		}
	}
	switch {
	case err != nil:
		return at, fmt.Errorf("%w: %s: --at %q is not a time: %s", errUsage, command, text, timeForms)
	case at.After(now.Add(time.Minute)):
		return at, fmt.Errorf("%w: %s: --at %s lies in the future", errUsage, command, at.Format(time.RFC3339))
	}
	return at, nil
}

// isRoot reports whether this process may give files to others.
func isRoot() bool { return os.Geteuid() == 0 }
