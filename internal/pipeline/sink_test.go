package pipeline

import (
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestDoubtedFilesAreLookedAtByEveryScan(t *testing.T) {
	for doubted, want := range map[bool]bool{true: true, false: false} {
		k := known(archive.Item{Path: "p", Entry: archive.Entry{Stored: true, Suspect: doubted}})
		if k.Recheck != want {
			t.Errorf("doubted %v: Look = %v, want %v", doubted, k.Recheck, want)
		}
	}
}
