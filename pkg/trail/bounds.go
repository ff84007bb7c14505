package trail

// What verifying spends on one document or trail, whoever wrote it.
const (
	// The elements of all lists of a digest together. An element takes some
	// hundred bytes of memory where it takes two of the digest.
	maxDigestElements = 200_000
	// A document from this size on is read when its turn comes, alone.
	LargeDocument = 1 << 20
	// Digests and manifests, and objects of each other kind, that are kept of a
	// listing: some hundred bytes each.
	MaxDocuments = 5_000_000
	MaxAside     = 10_000
	// A key has at most 1,024 bytes, and no other text of a digest more.
	maxTextBytes = 1024
)
