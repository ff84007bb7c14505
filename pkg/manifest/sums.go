package manifest

import (
	"crypto/md5"
	"hash"

	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sums are the size and both hashes of what is uploaded.
type sums struct {
	*trail.Sum

	md5 hash.Hash
}

func newSums() *sums { return &sums{Sum: trail.NewSum(), md5: md5.New()} }

// Write counts and hashes p. It never fails.
func (s *sums) Write(p []byte) (int, error) {
	s.md5.Write(p)
	return s.Sum.Write(p)
}

func (s *sums) md5sum() (sum [md5.Size]byte) {
	s.md5.Sum(sum[:0])
	return sum
}
