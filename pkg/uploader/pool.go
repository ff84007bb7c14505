package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// Pool takes tasks from a queue and brings the content of their files to S3. Its
// methods may be called concurrently, Run once.
type Pool struct {
	capacity

	o       Options
	q       *queue.Queue
	dests   map[string]*destination
	order   []*destination
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
	case o.MemoryLimit < localfile.ChunkSize:
		return nil, fmt.Errorf("memory limit must be at least %d, got %d", localfile.ChunkSize, o.MemoryLimit)
	case o.Log == nil || o.Metrics == nil:
		return nil, errors.New("log and metrics must be given")
	}
	names := make([]string, 0, len(sources))
	for i := range sources {
		s := &sources[i]
		if slices.Contains(names, s.Name) {
			return nil, fmt.Errorf("two sources are named %q", s.Name)
		}
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("source %q: %w", s.Name, err)
		}
		names = append(names, s.Name)
	}
	p := &Pool{
		o: o, q: q,
		capacity: newCapacity(o, names),
		limiter:  newLimiter(o.BandwidthLimit),
		dests:    map[string]*destination{},
		flights:  map[*flight]struct{}{},
	}
	q.Serve(p.attempts, p.large, names...)
	for _, s := range sources {
		d := newDestination(&s, q, o, p.capacity)
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

// Run works until ctx ends. Then it takes nothing new, gives the attempts under
// way Options.Drain to finish, and cuts the rest: interrupted writes are resolved
// by the next run. It returns when all its goroutines have ended, with an error
// only when the state could not be read at the start.
func (p *Pool) Run(ctx context.Context) error {
	p.ending = ctx.Done()
	for _, d := range p.order {
		if err := d.load(); err != nil {
			return err
		}
		d.identify()
		d.breaker.Begin(time.Now())
		if d.src.Proven {
			d.resolveInterrupted()
		}
	}
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var workers, monitors sync.WaitGroup
	for _, d := range p.order {
		monitors.Go(func() { d.run(ctx, p) })
	}
	for range p.attempts.Total() {
		workers.Go(func() {
			for task := p.q.Pop(ctx); task != nil; task = p.q.Pop(ctx) {
				p.handle(work, task)
			}
		})
	}
	<-ctx.Done()
	p.drain(&workers, cut)
	monitors.Wait()
	for _, d := range p.order {
		d.flushSkips(work)
		d.gauges()
	}
	p.q.Stop()
	return nil
}

// strandedAfter is how long a worker may continue that was cut: a file that it
// reads may be on a file system that does not answer.
const strandedAfter = 5 * time.Second

// drain waits for the workers, and cuts what takes too long. A worker that does
// not end even then is left behind: its attempt is not recorded.
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
			p.o.Log.Error("a file is left behind in the middle of an attempt, the next start checks it again",
				zap.String("source", f.Source), zap.String("path", f.Path), zap.String("phase", string(f.Phase)))
		}
	}
}

// handle makes an attempt at one task and ends it.
func (p *Pool) handle(ctx context.Context, task *queue.Task) {
	job := task.Job()
	d := p.dests[job.Source]
	if d == nil {
		task.Done()
		return
	}
	if p.o.Paused != nil && p.o.Paused(job.Source) {
		d.queue.SetPaused(true)
		task.PutBack()
		return
	}
	a := newAttempt(p, d, task, job)
	a.flight.enter(PhaseOpen)
	p.mu.Lock()
	p.flights[a.flight] = struct{}{}
	p.mu.Unlock()

	err := d.breaker.GivenUp()
	if err == nil {
		err = a.run(ctx)
	} else {
		err = fmt.Errorf("the destination was given up: %w", err)
	}
	p.mu.Lock()
	delete(p.flights, a.flight)
	p.mu.Unlock()
	a.close(ctx, err)
}

// Await blocks until the canary of source's destination has passed once, or the
// destination was given up (Options.GiveUp). Run must be under way. A run that
// found no file to send waits here: without the canary nothing of its trail may
// be sent either. It returns queue.ErrUnknownSource, or ctx's error when that ends
// first.
func (p *Pool) Await(ctx context.Context, source string) error {
	d := p.dests[source]
	if d == nil {
		return queue.ErrUnknownSource
	}
	return d.breaker.Await(ctx)
}

// InFlight lists the files that are being attempted.
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

// flight is the progress of one attempt, for InFlight.
type flight struct {
	source, path string
	started      time.Time
	size, sent   atomic.Int64
	hashed       atomic.Int64
	phase        atomic.Value
}

func (f *flight) enter(p Phase) { f.phase.Store(p) }

// Release tries everything of source again that waits for a retry or an operator.
// A destination that is out of service is probed at once, and lets its files go
// when it works.
func (p *Pool) Release(source string) {
	if d := p.dests[source]; d != nil {
		d.breaker.ProbeNow()
		d.queue.Release(true)
	}
}

// Distrust reports an answer without the KMS key to a write that did not come
// from this pool: source's destination is stopped until its canary passes.
func (p *Pool) Distrust(source string, err error) {
	if d := p.dests[source]; d != nil {
		d.breaker.Observe(err)
	}
}

// Throttled reports that source's destination asked for fewer requests, whether
// or not the request was answered at a later try. It does not block.
func (p *Pool) Throttled(source string) {
	if d := p.dests[source]; d != nil {
		d.breaker.Throttled()
	}
}

// Destination returns what is known of the destination of source.
func (p *Pool) Destination(source string) breaker.Status {
	if d := p.dests[source]; d != nil {
		return d.status(time.Now())
	}
	return breaker.Status{}
}

// Parked returns how many paths of source have a failure that needs an operator,
// by class; classes without any are left out.
func (p *Pool) Parked(source string) map[archive.Class]int64 {
	if d := p.dests[source]; d != nil {
		return d.journal.Parked()
	}
	return nil
}

// Failing returns which files of source keep failing for causes that may pass.
func (p *Pool) Failing(source string) Failing {
	if d := p.dests[source]; d != nil {
		return d.failing.list(time.Now())
	}
	return Failing{}
}
