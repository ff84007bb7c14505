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
	var c counter
	for i := 0; i < len(data) && c.n <= maxDigestElements; i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i)
		case '[', '{':
			c.open(data[i] == '[')
		case ']', '}':
			c.stack = c.stack[:max(0, len(c.stack)-1)]
		case ',':
			c.next()
		}
	}
	return c.n
}

// counter counts the elements of lists.
type counter struct {
	n     int
	stack []container // what is open
}

type container struct {
	list  bool
	items int
}

// open begins a list or an object.
func (c *counter) open(list bool) {
	if list {
		c.n++
	}
	if c.stack = append(c.stack, container{list: list}); len(c.stack) > maxDepth {
		c.n = maxDigestElements + 1
	}
}

// next begins another element or member.
func (c *counter) next() {
	if len(c.stack) == 0 {
		return
	}
	top := &c.stack[len(c.stack)-1]
	switch top.items++; {
	case top.list:
		c.n++
	case top.items >= maxMembers:
		c.n = maxDigestElements + 1
	}
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
