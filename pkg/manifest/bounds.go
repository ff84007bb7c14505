package manifest

import "strings"

// What verifying spends on one document or trail, whoever wrote it.
const (
	// The elements of all lists of a digest together. An element takes some
	// hundred bytes of memory where it takes two of the digest.
	maxDigestElements = 200_000
	// A document from this size on is read when its turn comes, alone.
	largeDocument = 1 << 20
	// Chains that are checked: those that something outside names, then those
	// with the most digests.
	maxChains = 10_000
	// Digests and manifests, and objects of each other kind, that are kept of a
	// listing: some hundred bytes each.
	maxDocuments = 5_000_000
	maxAside     = 10_000
	// A configuration object.
	maxConfigBytes = 64 << 20
	// Manifests that a digest names and the listing does not have are asked for
	// one by one, up to so many in a trail.
	maxUnlisted = 1000
	// A key has at most 1,024 bytes, and no other text of a digest more.
	maxTextBytes = 1024
	// What a finding quotes of a document.
	maxDetailBytes = 2000
	// The depth at which a document ends to be one.
	maxDepth = 1000
)

// clipped returns the first bytes of a text.
func clipped(s string) string {
	if len(s) <= maxDetailBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetailBytes], "") + "…"
}

// elements returns how many elements the lists in a JSON text have together, or
// more than maxDigestElements where it is too many or too deep to count. What is
// no JSON may have any number.
func elements(data []byte) int {
	var stack []byte
	n := 0
	for i := 0; i < len(data) && n <= maxDigestElements; i++ {
		switch c := data[i]; c {
		case '"':
			i = endOfString(data, i)
		case '[', '{':
			if c == '[' {
				n++
			}
			if stack = append(stack, c); len(stack) > maxDepth {
				return maxDigestElements + 1
			}
		case ']', '}':
			stack = stack[:max(0, len(stack)-1)]
		case ',':
			if len(stack) > 0 && stack[len(stack)-1] == '[' {
				n++
			}
		}
	}
	return n
}

// endOfString returns where the string that begins at i ends.
func endOfString(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}
