package daemon

import (
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/uploader"
)

func TestThePulseIsLostOnlyWhereTheDaemonItselfStandsStill(t *testing.T) {
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	flight := func(p uploader.Phase) []uploader.InFlight {
		return []uploader.InFlight{{Source: "app", Path: "f", Phase: p, Started: begun}}
	}
	for name, tt := range map[string]struct {
		work  work
		stuck bool
	}{
		"idle":                              {work{}, false},
		"an upload waits for S3":            {work{hand: 1, queued: 5, flights: flight(uploader.PhaseSend)}, false},
		"a file is hashed for hours":        {work{hand: 1, flights: flight(uploader.PhaseHash)}, false},
		"a file cannot be opened":           {work{hand: 1, flights: flight(uploader.PhaseOpen)}, false},
		"the destination is out of service": {work{queued: 5, held: true}, false},
		"nobody takes what is queued":       {work{queued: 5}, true},
		"an outcome is not recorded":        {work{hand: 1, flights: flight(uploader.PhaseCommit)}, true},
		"an outcome is not reported":        {work{hand: 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var p pulse
			tt.work.source = "app"
			for at := begun; at.Before(begun.Add(stuckAfter)); at = at.Add(30 * time.Second) {
				if err := p.check([]work{tt.work}, at); err != nil {
					t.Fatalf("after %v: %v", at.Sub(begun), err)
				}
			}
			late := begun.Add(stuckAfter + time.Second)
			if err := p.check([]work{tt.work}, late); (err != nil) != tt.stuck {
				t.Errorf("check() = %v, want stuck: %v", err, tt.stuck)
			}
			tt.work.ended++
			if err := p.check([]work{tt.work}, late.Add(time.Second)); err != nil {
				t.Errorf("check() after progress = %v, want nil", err)
			}
		})
	}
}
