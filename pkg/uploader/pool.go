package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Pool takes paths from a Queue and brings their content to S3. Its methods may
// be called concurrently, Run once.
type Pool struct {
	q     *queue.Queue
	o     Options
	dests map[string]*destination
	order []*destination
	capacity
	limiter *rate.Limiter
	ending  <-chan struct{} // Closed when Run's context has ended; nil before Run.

	mu      sync.Mutex
	flights map[*flight]struct{}
}

// New returns a pool that serves sources from q, to which it adds them.
func New(q *queue.Queue, sources []Source, o Options) (*Pool, error) {
	switch {
	case o.Workers < 1:
		return nil, fmt.Errorf("workers must be positive, got %d", o.Workers)
	case o.PartSize < 1 || o.SinglePutMax < 1:
		return nil, fmt.Errorf("part size and single put maximum must be positive, got %d and %d", o.PartSize, o.SinglePutMax)
	case o.MemoryLimit < hashChunk:
		return nil, fmt.Errorf("memory limit must be at least %d, got %d", hashChunk, o.MemoryLimit)
	case o.Log == nil || o.Metrics == nil:
		return nil, errors.New("log and metrics must be given")
	}
	p := &Pool{
		q: q, o: o,
		dests:   map[string]*destination{},
		limiter: newLimiter(o.BandwidthLimit),
		flights: map[*flight]struct{}{},
	}
	names := make([]string, 0, len(sources))
	for _, s := range sources {
		names = append(names, s.Name)
	}
	p.capacity = newCapacity(o, names)
	q.Serve(p.looks, p.large, names...)
	for _, s := range sources {
		if p.dests[s.Name] != nil {
			return nil, fmt.Errorf("two sources are named %q", s.Name)
		}
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("source %q: %w", s.Name, err)
		}
		d := newDestination(s, q, o, p.capacity)
		p.dests[s.Name] = d
		p.order = append(p.order, d)
	}
	return p, nil
}

// check fails for a source that lacks a part.
func (s *Source) check() error {
	switch {
	case s.Root == nil, s.Objects == nil, s.Multipart == nil, s.State == nil, s.Accept == nil:
		return errors.New("root, objects, multipart, state and accept must be given")
	case !s.Hardlinks.Valid():
		return fmt.Errorf("unknown hard link policy %q", s.Hardlinks)
	case !slices.Contains([]string{archive.DeletesKeep, archive.DeletesMirror}, s.Deletes):
		return fmt.Errorf("unknown deletion policy %q", s.Deletes)
	}
	return nil
}

// Run works until ctx ends. Then it takes nothing new, gives what is in hand
// Options.Drain to finish, and cuts the rest: interrupted writes are settled by
// the next run. It returns when all its goroutines have ended, with an error
// only when the state could not be read at the start.
func (p *Pool) Run(ctx context.Context) error {
	p.ending = ctx.Done()
	for _, d := range p.order {
		if err := d.load(); err != nil {
			return err
		}
		d.identify()
		d.begin(time.Now())
		if d.Proven {
			d.settleOpen()
		}
	}
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var workers, tenders sync.WaitGroup
	for _, d := range p.order {
		tenders.Go(func() { d.tend(ctx, p) })
	}
	for range p.looks.Total() {
		workers.Go(func() {
			for it := p.q.Pop(ctx); it != nil; it = p.q.Pop(ctx) {
				p.handle(work, it)
			}
		})
	}
	<-ctx.Done()
	p.drain(&workers, cut)
	tenders.Wait()
	for _, d := range p.order {
		d.flushSkips(work)
		d.gauges()
	}
	p.q.Stop()
	return nil
}

// strandedAfter is how long a worker may go on that was cut: a file that it
// reads may be on a file system that does not answer.
const strandedAfter = 5 * time.Second

// drain waits for the workers, and cuts what takes too long. A worker that does
// not end even then is left behind: what it had in hand is not recorded.
func (p *Pool) drain(workers *sync.WaitGroup, cut context.CancelFunc) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		workers.Wait()
	}()
	expire := time.NewTimer(p.o.Drain)
	defer expire.Stop()
	select {
	case <-ended:
		return
	case <-expire.C:
	case <-p.o.Hurry:
	}
	cut()
	stranded := time.NewTimer(strandedAfter)
	defer stranded.Stop()
	select {
	case <-ended:
	case <-stranded.C:
		for _, f := range p.InFlight() {
			p.o.Log.Error("a file is left behind in the middle of a look, the next start looks again",
				zap.String("source", f.Source), zap.String("path", f.Path), zap.String("phase", string(f.Phase)))
		}
	}
}

// Await blocks until the canary of source's destination has passed once, or the
// destination was given up (Options.GiveUp). Run must be under way. A run that
// found no file to send waits here: without the canary nothing of its trail may
// be sent either. It returns ErrUnknownSource, or ctx's error when that ends first.
func (p *Pool) Await(ctx context.Context, source string) error {
	d := p.dests[source]
	if d == nil {
		return queue.ErrUnknownSource
	}
	select {
	case <-d.judged:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// InFlight lists the files in hand.
func (p *Pool) InFlight() []InFlight {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]InFlight, 0, len(p.flights))
	for f := range p.flights {
		phase, _ := f.phase.Load().(Phase)
		list = append(list, InFlight{
			Source: f.source, Path: f.path, Bytes: f.size.Load(), Sent: f.sent.Load(), Hashed: f.hashed.Load(), Started: f.started, Phase: phase,
		})
	}
	slices.SortFunc(list, func(a, b InFlight) int { return a.Started.Compare(b.Started) })
	return list
}

// Release tries everything of source again that waits for a retry or a person.
// A destination that is out of service is probed at once, and lets its files go
// when it works.
func (p *Pool) Release(source string) {
	d := p.dests[source]
	if d == nil {
		return
	}
	d.probeNow()
	p.q.Source(source).Release(true)
}

// Distrust takes in an answer without the key to a write that did not come from
// this pool: source's destination is stopped until its canary passes.
func (p *Pool) Distrust(source string, err error) {
	if d := p.dests[source]; d != nil {
		d.observe(err)
	}
}

// Throttled takes in that source's destination asked for fewer requests, whether
// or not the request was answered at a later attempt. It does not block.
func (p *Pool) Throttled(source string) {
	d := p.dests[source]
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.narrow()
}

// Destination returns what is known of the destination of source.
func (p *Pool) Destination(source string) DestinationState {
	d := p.dests[source]
	if d == nil {
		return DestinationState{}
	}
	return d.state()
}

// Parked returns how many paths of source have a failure that needs a person,
// by class; classes without any are left out.
func (p *Pool) Parked(source string) map[state.Class]int64 {
	d := p.dests[source]
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	parked := make(map[state.Class]int64, len(d.parked))
	for c, n := range d.parked {
		if n > 0 {
			parked[c] = n
		}
	}
	return parked
}

// handle looks at one item and ends it.
func (p *Pool) handle(ctx context.Context, it *queue.Task) {
	job := it.Job()
	d := p.dests[job.Source]
	if d == nil {
		it.Done()
		return
	}
	if p.o.Paused != nil && p.o.Paused(d.Name) {
		p.q.Source(d.Name).SetPaused(true)
		it.PutBack()
		return
	}
	f := &flight{source: d.Name, path: job.Path, started: time.Now()}
	f.enter(PhaseOpen)
	p.mu.Lock()
	p.flights[f] = struct{}{}
	p.mu.Unlock()
	l := &look{destination: d, p: p, it: it, job: job, f: f}
	err := d.hopeless()
	if err == nil {
		err = l.run(ctx)
	} else {
		err = fmt.Errorf("the destination was given up: %w", err)
		l.key, _ = d.keyOf(&job) // A path without a key fails with the destination's error as well.
	}
	p.mu.Lock()
	delete(p.flights, f)
	p.mu.Unlock()
	l.finish(ctx, err)
}

// outcome reports how the look ended.
func (l *look) outcome(err error, retry bool) {
	if l.p.o.OnOutcome == nil {
		return
	}
	o := Outcome{
		Source: l.Name, Path: l.job.Path, Status: l.end.status, Basis: l.end.basis, Trigger: l.job.Trigger,
		Bytes: l.end.sent, Size: l.fence.Size, Took: time.Since(l.f.started), Detected: l.job.Detected, Recovered: l.end.recovered, Retry: retry, Err: err,
		Stuck: l.it != nil && l.it.Stuck,
	}
	if err != nil {
		o.Class = state.ClassOf(err)
	}
	l.p.o.OnOutcome(o)
}

// warn logs a failure that the trail has as well, and what happens next.
func (l *look) warn(message string, err error) {
	l.log.Warn(message, zap.String("path", l.job.Path), zap.String("class", string(state.ClassOf(err))), zap.Error(err))
}
