package archive_test

import (
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestTheZeroVerdictAcceptsNothing(t *testing.T) {
	var v archive.KeyVerdict
	if v != archive.KeyMissing {
		t.Errorf("the zero verdict is %d, want that of an object that is not encrypted", v)
	}
}

func TestEveryKindHasANameOfItsOwn(t *testing.T) {
	seen := map[string]archive.Kind{}
	for k := archive.Check; k <= archive.Resolve; k++ {
		if other, taken := seen[k.String()]; taken || k.String() == archive.Kind(255).String() {
			t.Errorf("kind %d is called %q, like kind %d", k, k, other)
		}
		seen[k.String()] = k
	}
}
