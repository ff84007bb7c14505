package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/s3syncd/s3syncd/internal/ignore"
)

// The accepted forms, as faults name them.
const (
	instanceForm     = "letters, digits, dots, underscores and hyphens, up to 128, as in app-01"
	nameForm         = "a name without slashes, up to 255 bytes"
	chainForm        = "the 8 hex digits of a chain, the middle part of an object's s3syncd-id"
	bucketForm       = "a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends"
	prefixForm       = "a prefix such as backups/{instance}/app-data"
	kmsForm          = "a customer-managed KMS key: its id, ARN, alias/NAME or alias ARN (on a compatible server, its name)"
	endpointForm     = "https://HOST[:PORT], or http:// to a loopback address"
	listenForm       = "HOST:PORT, as in 127.0.0.1:9810"
	socketForm       = "an absolute path of up to 107 bytes"
	signForm         = "none | ed25519:FILE (an absolute path) | kms:KEY"
	storageClassForm = "a storage class such as STANDARD_IA"
)

const (
	reservedDir     = "_manifests" // the audit trail's directory below a prefix
	maxPrefixBytes  = 512          // leaves room for the names of the trail in a key of 1,024 bytes
	maxSocketBytes  = 107          // sun_path without its terminator, unix(7)
	maxContextBytes = 4096         // as JSON; in base64 it is one header of a request that may have 8 KiB of them
)

// checkText refuses what no option can mean and no log or label can show.
func checkText(s string) string {
	if !utf8.ValidString(s) {
		return "is not UTF-8"
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return "contains a control character"
	}
	return ""
}

// matches reports whether s is 1 to limit characters, all ASCII letters, digits
// or in extra.
func matches(s string, limit int, extra string) bool {
	return s != "" && len(s) <= limit && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(extra, r)
	}) < 0
}

func checkInstance(s string) string {
	if !matches(s, 128, "._-") || s == "." || s == ".." {
		return "is not an instance name"
	}
	return ""
}

func checkName(s string) string {
	if strings.Contains(s, "/") || s == "." || s == ".." || len(s) > 255 {
		return "is not a source name"
	}
	return ""
}

func checkAbsolute(s string) string {
	if !filepath.IsAbs(s) {
		return "is not an absolute path"
	}
	return ""
}

func checkSocket(s string) string {
	if len(s) > maxSocketBytes {
		return "is too long for a socket"
	}
	return checkAbsolute(s)
}

func checkRegion(s string) string {
	if !matches(s, 64, "_-") {
		return "is not a region"
	}
	return ""
}

func checkChain(s string) string {
	if len(s) != 8 || strings.Trim(s, "0123456789abcdef") != "" {
		return "is not a chain"
	}
	return ""
}

func checkAccount(s string) string {
	if len(s) != 12 || strings.Trim(s, "0123456789") != "" {
		return "is not an account number"
	}
	return ""
}

// checkBucket follows the rules for general purpose buckets, except that the
// alias of an access point (-s3alias) may stand for a bucket.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
func checkBucket(s string) string {
	const no = "is not a bucket name"
	if len(s) < 3 || !matches(s, 63, ".-") || s != strings.ToLower(s) {
		return no
	}
	if strings.Trim(s, ".-") != s || strings.Contains(s, "..") {
		return no
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return "looks like an IP address, which no bucket may"
	}
	for _, p := range []string{"xn--", "sthree-"} {
		if strings.HasPrefix(s, p) {
			return "begins with " + p + ", which no bucket may"
		}
	}
	for _, p := range []string{"--ol-s3", ".mrap", "--x-s3", "--table-s3"} {
		if strings.HasSuffix(s, p) {
			return "ends in " + p + ", which is not a general purpose bucket"
		}
	}
	return ""
}

// checkPrefix accepts one trailing slash.
func checkPrefix(s string) string {
	rest := strings.ReplaceAll(s, instanceMark, "")
	if strings.ContainsAny(rest, "{}") {
		return "has a placeholder that is not known; only {instance} is replaced"
	}
	if len(s) > maxPrefixBytes {
		return "is longer than " + strconv.Itoa(maxPrefixBytes) + " bytes"
	}
	if strings.HasPrefix(s, "/") {
		return "begins with a slash"
	}
	for c := range strings.SplitSeq(strings.TrimSuffix(s, "/"), "/") {
		switch c {
		case "":
			return "has an empty component"
		case ".", "..":
			return "has the component " + quote(c)
		case reservedDir:
			return "has the component " + quote(c) + ", which is reserved for the audit trail"
		}
	}
	return ""
}

// checkKMSKey accepts what names one customer-managed key. The key that AWS
// manages for S3 is not one: its owner cannot restrict, disable or rotate it.
func checkKMSKey(s string) string {
	name, ok := kmsName(s)
	if !ok {
		return "is not the ARN of a KMS key"
	}
	alias, isAlias := strings.CutPrefix(name, "alias/")
	if strings.HasPrefix(alias, "aws/") {
		return "is a key that AWS manages, not a customer-managed one"
	}
	extra := "._-"
	if isAlias {
		extra = "/_-"
	}
	if !matches(alias, 250, extra) {
		return "is not a KMS key"
	}
	return ""
}

// kmsName returns what a key is called without the rest of an ARN: its id, its
// name or alias/NAME.
func kmsName(s string) (name string, ok bool) {
	rest, isARN := strings.CutPrefix(s, "arn:")
	if !isARN {
		return s, true
	}
	parts := strings.SplitN(rest, ":", 5)
	switch {
	case len(parts) == 3 && parts[1] == "kms": // MinIO names a key arn:aws:kms:NAME.
		return parts[2], true
	case len(parts) == 5 && isKMSARN(parts):
		return strings.TrimPrefix(parts[4], "key/"), true
	}
	return "", false
}

// isKMSARN judges partition, service, region, account and resource.
func isKMSARN(parts []string) bool {
	resource := parts[4]
	return matches(parts[0], 32, "-") && parts[1] == "kms" && matches(parts[2], 64, "-") && checkAccount(parts[3]) == "" &&
		(strings.HasPrefix(resource, "key/") || strings.HasPrefix(resource, "alias/"))
}

// kmsRegion returns the region of a key's ARN, or "".
func kmsRegion(key string) string {
	if parts := strings.Split(key, ":"); len(parts) == 6 && parts[0] == "arn" {
		return parts[3]
	}
	return ""
}

func checkEndpoint(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "is not a URL"
	case u.User != nil:
		return "contains a user or a password; " + credentialsHint
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "is not an http or https URL with a host"
	case strings.ContainsAny(s, "?#"):
		return "has a query or a fragment"
	case u.Port() != "" && !isPort(u.Port()):
		return "has no valid port"
	}
	return ""
}

func checkListen(s string) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !isPort(port) || strings.ContainsAny(host, " /") {
		return "is not an address to listen on"
	}
	return ""
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

func checkSign(s string) string {
	if s == "none" {
		return ""
	}
	if file, found := strings.CutPrefix(s, "ed25519:"); found {
		if filepath.IsAbs(file) {
			return ""
		}
		return "does not name its key file by an absolute path"
	}
	if key, found := strings.CutPrefix(s, "kms:"); found {
		return checkKMSKey(key)
	}
	return "is not a way to sign"
}

// knownStorageClasses are those of AWS for general purpose buckets.
func knownStorageClasses() []string {
	return []string{
		"STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "REDUCED_REDUNDANCY",
		"GLACIER_IR", "GLACIER", "DEEP_ARCHIVE",
	}
}

// checkStorageClass judges the form; whether AWS knows the class matters only
// without an endpoint of one's own.
func checkStorageClass(s string) string {
	if !regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`).MatchString(s) {
		return "is not a storage class" + didYouMean(strings.ToUpper(s), knownStorageClasses())
	}
	return ""
}

func checkPattern(s string) string {
	if slices.Contains([]string{"", "!", "/", "!/"}, strings.TrimSpace(s)) {
		return "matches nothing"
	}
	return ignore.Fault(s)
}

func checkContextKey(s string) string {
	switch {
	case s == "":
		return "is an empty key"
	case strings.HasPrefix(s, "aws:"):
		return "is a key that AWS reserves"
	}
	return checkText(s)
}
