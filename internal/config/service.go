package config

import (
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
)

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
