package daemon

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// stuckAfter is how long work that waits for the daemon alone may make no progress.
// Nothing of it takes seconds: requests to S3 and the reading of files, which may
// take longer, have bounds of their own.
const stuckAfter = 2 * time.Minute

// pulse tells whether the pipeline progresses or is idle. It asks neither the
// state nor the disk. Its methods may be called concurrently.
type pulse struct {
	mu    sync.Mutex
	flows map[string]*flow // by source
}

// flow is what was last seen of the work of one source.
type flow struct {
	mark  string
	moved time.Time // when mark changed, or nothing was in the daemon's hands
}

// work is what is to be done for one source.
type work struct {
	source string
	ended  int64 // attempts that have ended so far
	queued int
	hand   int // attempts under way, as the queue counts them
	// flights are the attempts that have a phase; the others are being recorded.
	flights []uploader.InFlight
	held    bool // something outside keeps what is queued from being begun
}

// own reports whether the next step is the daemon's own.
func (w *work) own() bool {
	if w.hand > len(w.flights) || w.queued > 0 && w.hand == 0 && !w.held {
		return true
	}
	for _, f := range w.flights {
		if f.Phase == uploader.PhaseCommit {
			return true
		}
	}
	return false
}

// mark is the same for as long as nothing moves.
func (w *work) mark() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d", w.ended, w.hand)
	for _, f := range w.flights {
		fmt.Fprintf(&b, " %d %s %d", f.Started.UnixNano(), f.Phase, f.Sent)
	}
	return b.String()
}

// check returns an error that names a source whose work has made no progress.
func (p *pulse) check(list []work, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	flows := make(map[string]*flow, len(list))
	var err error
	for _, w := range list {
		f, mark := p.flows[w.source], w.mark()
		if f == nil || f.mark != mark || !w.own() {
			f = &flow{mark: mark, moved: now}
		}
		flows[w.source] = f
		if still := now.Sub(f.moved); still > stuckAfter {
			err = fmt.Errorf("source %s: nothing has moved for %v, with %d paths queued and %d in hand", w.source, still.Round(time.Second), w.queued, w.hand)
		}
	}
	p.flows = flows
	return err
}

// works lists the work of the pipeline.
func (l *livePipeline) works() []work {
	flights := map[string][]uploader.InFlight{}
	for _, f := range l.Pool.InFlight() {
		flights[f.Source] = append(flights[f.Source], f)
	}
	list := make([]work, 0, len(l.sources))
	busy := 0 // Every worker may be with another source.
	for _, s := range l.sources {
		name := s.Config.Name
		queued, hand, _ := l.Queue.Source(name).Depth()
		busy += hand
		list = append(list, work{
			source: name, ended: s.Counters.Ended.Load(), queued: queued, hand: hand, flights: flights[name],
			held: l.Pool.Destination(name).State != breaker.HealthOK || s.Disk.Trouble() != nil ||
				s.Backlog.Last() >= l.Config.Manifest.MaxUnpublished,
		})
	}
	for i := range list {
		list[i].held = list[i].held || busy > 0
	}
	return list
}
