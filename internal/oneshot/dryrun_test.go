package oneshot

import (
	"testing"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

func TestAPlanCountsThePartsThatAreSent(t *testing.T) {
	p := &planner{opts: SyncOptions{Config: &config.Config{Upload: config.Upload{PartSize: 16 << 20, SinglePutMax: 64 << 20}}, Progress: noProgress{}}}
	sink := planSink{planner: p, source: "app"}
	for _, size := range []int64{6 << 40, 60 << 40} {
		if err := sink.Offer(t.Context(), watcher.Change{Path: "a", Kind: archive.Check, Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	if parts := p.sum.Plan.Run.Parts; parts < 8000 || parts > 10_000 || p.sum.Uploaded != 1 || p.sum.Failed != 1 {
		t.Errorf("plan %+v, want one file in at most 10,000 parts and one that fails", p.sum)
	}
}
