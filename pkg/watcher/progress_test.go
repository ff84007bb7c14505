package watcher

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/s3syncd/s3syncd/internal/watches"
)

// paused is a notifier that stops before its n-th watch until goOn is closed.
type paused struct {
	watches.Notifier
	before  *atomic.Int64
	reached chan struct{}
	goOn    chan struct{}
}

func (p paused) Add(path string) error {
	if p.before.Add(-1) == 0 {
		close(p.reached)
		<-p.goOn
	}
	return p.Notifier.Add(path)
}

func TestTheNumberOfWatchedDirectoriesGrowsWhileWatchesArePlaced(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		r.write(fmt.Sprintf("d%02d/f", i), "x")
	}
	var before atomic.Int64
	before.Store(11)
	reached, goOn := make(chan struct{}), make(chan struct{})
	r.notifier = func() (watches.Notifier, error) {
		n, err := watches.NewInotify()
		return paused{n, &before, reached, goOn}, err
	}
	r.run()
	<-reached
	if n, _ := r.Directories(); n != 10 {
		t.Errorf("watched before the eleventh: %d, want 10", n)
	}
	close(goOn)
	r.scanned()
	r.agrees()
	if n, _ := r.Directories(); n != 21 {
		t.Errorf("watched at the end: %d, want 21", n)
	}
}
