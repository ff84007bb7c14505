package uploader

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// loadPage is how many index entries are read in one short transaction.
const loadPage = 4096

// load reads what earlier runs left: the open intents, and how many paths have
// a failure that needs a person.
func (d *destination) load() error {
	intents, err := d.State.Intents()
	if err != nil {
		return fmt.Errorf("read intents of %s: %w", d.Name, err)
	}
	for i := range intents {
		n := d.open[intents[i].Key]
		if intents[i].Unresolved {
			n++
		}
		d.setOpen(intents[i].Key, n)
	}
	var page []state.Item
	for after := ""; ; after = page[len(page)-1].Path {
		if page, err = d.State.Range(after, loadPage, page[:0]); err != nil {
			return fmt.Errorf("read index of %s: %w", d.Name, err)
		}
		for i := range page {
			if c := page[i].Entry.FailClass; c != "" {
				d.countParked("", c)
			}
		}
		if len(page) < loadPage {
			return nil
		}
	}
}

// settleOpen queues the paths of interrupted writes, once the destination has
// answered for the first time. Everything else goes on meanwhile.
func (d *destination) settleOpen() {
	d.mu.Lock()
	done := d.settled
	d.settled = true
	d.mu.Unlock()
	if done {
		return
	}
	intents, err := d.State.Intents()
	if err != nil {
		d.log.Error("interrupted writes are not known, each is settled when its file is looked at", zap.Error(err))
		return
	}
	for i := range intents {
		in := &intents[i]
		d.q.OfferIfAbsent(queue.Job{Source: d.Name, Path: in.Path, Kind: archive.Settle, Trigger: in.Trigger, Detected: in.DetectedAt})
	}
	if len(intents) > 0 {
		d.log.Info("settling interrupted writes", zap.Int("writes", len(intents)))
	}
}

// settleKey settles the open intents of the key by asking what stands there. A
// write that the object shows is recorded as recovered; a multipart upload that
// is still open is left in l.resume; any other write stays unresolved until the
// next acknowledged one, because the server may still finish it.
func (l *look) settleKey(ctx context.Context) error {
	intents, err := l.State.Intent(l.key)
	if err != nil {
		return local(state.ClassTransient, "read intents", err)
	}
	if len(intents) == 0 {
		l.setClosed(l.key)
		return nil
	}
	if err := l.claim(ctx); err != nil {
		return err
	}
	s, err := l.ask(ctx, false)
	if err != nil {
		return err
	}
	l.seen = s
	open, unresolved := 0, 0
	for i := range intents {
		kept, err := l.settleOne(ctx, &intents[i], s)
		if err != nil {
			return err
		}
		if kept {
			open++
		}
		if kept && intents[i].Op != state.OpMultipart {
			unresolved++
		}
	}
	if open == 0 {
		l.setClosed(l.key)
	} else {
		l.setOpen(l.key, unresolved)
	}
	return nil
}

// settleOne settles one intent given what stands under its key.
func (l *look) settleOne(ctx context.Context, in *state.Intent, s standing) (kept bool, err error) {
	switch {
	case in.Op == state.OpDelete && !s.present && !s.refused:
		return false, l.commitDelete(ctx, in, state.Object{})
	case in.Op == state.OpDelete:
		return false, l.discard(ctx, in)
	}
	taken, err := wasTaken(ctx, l, in, s)
	switch {
	case err != nil:
		return true, err
	case taken:
		return false, l.commitUpload(ctx, in, s.object, true)
	case in.Op == state.OpCopy:
		return false, l.discard(ctx, in) // The next rekey sees for itself.
	case in.Op == state.OpMultipart:
		return l.settleUpload(ctx, in)
	case in.Unresolved:
		return true, nil
	}
	err = l.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *state.Intent) { i.Unresolved = true })
	if err != nil {
		return true, local(state.ClassTransient, "note the unresolved write", err)
	}
	return true, nil
}

// settleUpload keeps one multipart upload that is open, to be taken up again,
// and gives any other up.
func (l *look) settleUpload(ctx context.Context, in *state.Intent) (kept bool, err error) {
	if in.UploadID == "" {
		// The listing of a bucket does not say who opened an upload and for what:
		// it is not looked for, as it could be somebody else's.
		l.log.Info("a multipart upload may have been opened whose id is not known: it has no parts, and a lifecycle rule removes it",
			zap.String("key", in.Key))
	}
	if in.UploadID == "" || l.resume != nil {
		return false, l.discard(ctx, in)
	}
	l.resume = in
	return true, nil
}

// dropResume gives up a multipart upload that this look did not take up again.
func (l *look) dropResume(ctx context.Context) error {
	if l.resume == nil {
		return nil
	}
	in := l.resume
	l.resume = nil
	return l.discard(ctx, in)
}

// recordParked gives the cause for which a destination waits for a person its
// record: that of the file that has waited longest. The others wait with it.
func (p *Pool) recordParked(ctx context.Context, d *destination) {
	st := d.state()
	if st.State != HealthParked && st.State != HealthStopped || p.o.GiveUp > 0 || d.told.Equal(st.Since) {
		return
	}
	job, ok := p.q.Source(d.Name).Waiting()
	if !ok {
		return
	}
	l := &look{destination: d, p: p, job: job, f: &flight{started: time.Now()}}
	l.key, _ = d.keyOf(&job) // A path without a key has a failure of its own, later.
	recorded, err := l.recordFailure(ctx, st.Err, false)
	if err != nil {
		return // The state cannot be written now: the next tick tries again.
	}
	d.told = st.Since
	if recorded {
		l.end.status = state.StatusFailed
		l.outcome(st.Err, true)
	}
}

// flushSkips adds the skips that the index alone decided to the next digest.
func (d *destination) flushSkips(ctx context.Context) {
	d.mu.Lock()
	n := d.skips
	d.skips = 0
	d.mu.Unlock()
	if n == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := d.State.AddCounts(ctx, nil, n); err != nil {
		d.mu.Lock()
		d.skips += n
		d.mu.Unlock()
		d.log.Warn("skips are not counted yet, the next attempt adds them", zap.Error(err))
	}
}
