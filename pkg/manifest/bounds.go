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
	// The members of one object of a digest.
	maxMembers = 1000
	// The depth at which a document ends to be one.
	maxDepth = 32
)

// clipped returns the first bytes of a text.
func clipped(s string) string {
	if len(s) <= maxDetailBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetailBytes], "") + "…"
}

// elements returns how many elements the lists in a JSON text have together, or
// more than maxDigestElements where it is too many, too deep, or an object has
// too many members. What is no JSON may have any number.
func elements(data []byte) int {
	type open struct {
		list  bool
		items int
	}
	var stack []open
	n := 0
	for i := 0; i < len(data) && n <= maxDigestElements; i++ {
		top := len(stack) - 1
		switch c := data[i]; {
		case c == '"':
			i = endOfString(data, i)
		case (c == '[' || c == '{') && len(stack) == maxDepth:
			return maxDigestElements + 1
		case c == '[' || c == '{':
			stack = append(stack, open{list: c == '['})
			n += b2i(c == '[')
		case (c == ']' || c == '}') && top >= 0:
			stack = stack[:top]
		case c == ',' && top >= 0:
			stack[top].items++
			n += b2i(stack[top].list)
			if !stack[top].list && stack[top].items >= maxMembers {
				return maxDigestElements + 1
			}
		}
	}
	return n
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
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
