package archive

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ReservedDir is the directory at the top of a prefix that holds the audit
// trail. A directory of that name at the top of a source is not archived.
const ReservedDir = "_manifests"

// MaxKeyBytes is S3's limit for a key (UTF-8 bytes).
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
const MaxKeyBytes = 1024

// ErrKeyTooLong says that the key would be longer than MaxKeyBytes.
var ErrKeyTooLong = errors.New("key is longer than 1,024 bytes")

// Mapper turns paths below a source into keys below a prefix and back. The
// zero value has no prefix.
type Mapper struct{ prefix string }

// NewMapper returns a Mapper for prefix, with or without a trailing slash.
func NewMapper(prefix string) Mapper { return Mapper{prefix: strings.Trim(prefix, "/")} }

// Prefix returns the prefix with a trailing slash, or "".
func (m Mapper) Prefix() string {
	if m.prefix == "" {
		return ""
	}
	return m.prefix + "/"
}

// TrailPrefix returns where the audit trail stands, with a trailing slash.
func (m Mapper) TrailPrefix() string { return m.Prefix() + ReservedDir + "/" }

// Key returns the key of the file at path, a clean slash-separated path below
// the source in raw bytes. Components that are not UTF-8, or that could be
// mistaken for an escape, are escaped, so that two paths never share a key.
// A key over the limit comes back with ErrKeyTooLong.
func (m Mapper) Key(path string) (string, error) {
	if path == "" || strings.HasPrefix(path, "/") || strings.IndexByte(path, 0) >= 0 {
		return "", fmt.Errorf("path %q is not below a source", path)
	}
	parts := strings.Split(path, "/")
	for i, c := range parts {
		if c == "" || c == "." || c == ".." {
			return "", fmt.Errorf("path %q has the component %q", path, c)
		}
		parts[i] = escapeComponent(c)
	}
	key := m.Prefix() + strings.Join(parts, "/")
	if len(key) > MaxKeyBytes {
		return key, fmt.Errorf("%w: it has %d", ErrKeyTooLong, len(key))
	}
	return key, nil
}

// TooDeep returns why no file below the directory dir has a key, nil when one
// has.
func (m Mapper) TooDeep(dir string) error {
	if 3*len(dir) < MaxKeyBytes-len(m.prefix)-len("//x") { // However it is escaped.
		return nil
	}
	if _, err := m.Key(dir + "/x"); err != nil {
		return fmt.Errorf("every key below it: %w at least", err)
	}
	return nil
}

// Path returns the path that Key maps to key, and false for a key that no path
// maps to: outside the prefix, in the trail, or not in escaped form.
func (m Mapper) Path(key string) (path string, ok bool) {
	rest, found := strings.CutPrefix(key, m.Prefix())
	if !found || strings.HasPrefix(rest, ReservedDir+"/") {
		return "", false
	}
	parts := strings.Split(rest, "/")
	for i, c := range parts {
		parts[i] = unescapeComponent(c)
	}
	path = strings.Join(parts, "/")
	if back, err := m.Key(path); err != nil || back != key {
		return "", false
	}
	return path, true
}

// escapeComponent escapes a component that is not UTF-8 or that contains a
// percent sign and two upper-case hex digits: % becomes %25, a byte that is not
// part of valid UTF-8 becomes %XX.
func escapeComponent(c string) string {
	if utf8.ValidString(c) && !hasEscape(c) {
		return c
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(c); {
		r, n := utf8.DecodeRuneInString(c[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b.Write([]byte{'%', hex[c[i]>>4], hex[c[i]&15]})
		case r == '%':
			b.WriteString("%25")
		default:
			b.WriteString(c[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unescapeComponent decodes every percent sign with two upper-case hex digits.
func unescapeComponent(c string) string {
	if !hasEscape(c) {
		return c
	}
	var b strings.Builder
	for i := 0; i < len(c); i++ {
		if isEscape(c[i:]) {
			b.WriteByte(unhex(c[i+1])<<4 | unhex(c[i+2]))
			i += 2
			continue
		}
		b.WriteByte(c[i])
	}
	return b.String()
}

func hasEscape(c string) bool {
	for i := range len(c) {
		if isEscape(c[i:]) {
			return true
		}
	}
	return false
}

func isEscape(s string) bool {
	return len(s) >= 3 && s[0] == '%' && upperHex(s[1]) && upperHex(s[2])
}

func upperHex(b byte) bool { return '0' <= b && b <= '9' || 'A' <= b && b <= 'F' }

func unhex(b byte) byte {
	if b <= '9' {
		return b - '0'
	}
	return b - 'A' + 10
}
