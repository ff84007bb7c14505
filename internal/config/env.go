package config

import (
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const variablePrefix = "S3SYNCD_"

// environment holds variables by name; of a repeated one the last.
type environment map[string]string

func newEnvironment(env []string) environment {
	e := environment{}
	for _, entry := range env {
		if name, value, found := strings.Cut(entry, "="); found {
			e[name] = value
		}
	}
	return e
}

// directory returns the first of the directories in a variable that systemd or
// the user set, or "" where that is not an absolute path.
func (e environment) directory(name string) string {
	first, _, _ := strings.Cut(e[name], ":")
	if !filepath.IsAbs(first) {
		return ""
	}
	return filepath.Clean(first)
}

// index returns every option of the configuration by its dotted path, with the
// sources that it has.
func (c *Config) index() map[string]option {
	all := map[string]option{}
	var add func(block string, options []option)
	add = func(block string, options []option) {
		for _, o := range options {
			key := join(block, o.key)
			all[key] = o
			add(key, o.block)
			if o.sources {
				for i := range c.Sources {
					add(sourceKey(i), c.Sources[i].options())
				}
			}
		}
	}
	add("", c.options())
	return all
}

// variable returns the name of the variable that overrides the option at key.
func variable(key string) string {
	return variablePrefix + strings.ToUpper(strings.NewReplacer(".", "_", "[", "_", "]", "").Replace(key))
}

// applyEnv lets every S3SYNCD_ variable override its scalar.
func (l *loader) applyEnv() {
	index := l.cfg.index()
	byName := make(map[string]string, len(index))
	for key := range index {
		byName[variable(key)] = key
	}
	for _, name := range slices.Sorted(maps.Keys(l.env)) {
		if !strings.HasPrefix(name, variablePrefix) {
			continue
		}
		o := origin{variable: name}
		key, known := byName[name]
		switch {
		case !known && isServiceVariable(name, l.env[name]):
		case !known:
			l.unknownVariable(name, byName)
		case index[key].value == nil:
			l.faultAt(o, key, "", "names a list or a mapping, which only the file can set", "")
		default:
			l.set(o, key, index[key].value, scalar{text: l.env[name]})
		}
	}
}

func (l *loader) unknownVariable(name string, byName map[string]string) {
	refuse := func(problem, accepted string) {
		l.faults = append(l.faults, origin{variable: name}.fault("", "", problem, accepted))
	}
	if rest, found := strings.CutPrefix(name, variablePrefix+"SOURCES_"); found {
		number, _, _ := strings.Cut(rest, "_")
		if i, err := strconv.ParseUint(number, 10, 31); err == nil && i >= uint64(len(l.cfg.Sources)) {
			if l.usable("sources") {
				refuse("names a source that is not configured; a variable overrides a source and adds none",
					"a number below "+strconv.Itoa(len(l.cfg.Sources)))
			}
			return
		}
	}
	if looksLikeCredential(name) {
		refuse("is not a variable of s3syncd; "+credentialsHint, "")
		return
	}
	refuse("is not a variable of s3syncd"+didYouMean(name, slices.Sorted(maps.Keys(byName))), "")
}

// serviceVariables are the variables that Kubernetes sets in each container for
// each Service of its namespace, after the Service's name: a Service called
// s3syncd, or s3syncd-metrics, makes variables that begin as ours do.
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
var serviceVariables = []struct { //nolint:gochecknoglobals // A table that is never changed.
	name  *regexp.Regexp
	value func(string) bool
}{
	{regexp.MustCompile(`_SERVICE_HOST$`), isIP},
	{regexp.MustCompile(`_SERVICE_PORT(_[A-Z0-9_]+)?$`), isPort},
	{regexp.MustCompile(`_PORT(_[0-9]+_(TCP|UDP|SCTP))?$`), isServiceURL},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR$`), isIP},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_PORT$`), isPort},
	{regexp.MustCompile(`_PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO$`), isProtocol},
}

// isServiceVariable reports whether Kubernetes has set the variable for a
// Service, and nobody for this program.
func isServiceVariable(name, value string) bool {
	for _, v := range serviceVariables {
		if v.name.MatchString(name) && v.value(value) {
			return true
		}
	}
	return false
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func isProtocol(s string) bool { return s == "tcp" || s == "udp" || s == "sctp" }

func isServiceURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || !isProtocol(u.Scheme) || !isIP(u.Hostname()) {
		return false
	}
	_, err = strconv.ParseUint(u.Port(), 10, 16)
	return err == nil
}
