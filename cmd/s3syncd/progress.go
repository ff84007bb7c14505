package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

// bar is a progress bar on a terminal. A nil bar shows nothing: there is no
// terminal. It is decoration: a terminal that is gone changes nothing.
type bar struct{ shown *progressbar.ProgressBar }

// newBar returns a bar on w, nil where w is no terminal. A total of -1 is not
// known yet; unit says what is counted.
func newBar(w io.Writer, about string, total int64, unit ...progressbar.Option) *bar {
	if !isTerminal(w) {
		return nil
	}
	return &bar{progressbar.NewOptions64(total, append(unit,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(about),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
		progressbar.OptionSpinnerType(14))...)}
}

func (b *bar) total(n int64) {
	if b != nil {
		b.shown.ChangeMax64(max(n, 1))
	}
}

func (b *bar) add(n int64) {
	if b != nil {
		_ = b.shown.Add64(n)
	}
}

func (b *bar) set(n int64) {
	if b != nil {
		_ = b.shown.Set64(n)
	}
}

func (b *bar) describe(done, files int64) {
	if b != nil {
		b.shown.Describe(fmt.Sprintf("%d of %d files", done, files))
	}
}

// clear makes room for a line of text.
func (b *bar) clear() {
	if b != nil {
		_ = b.shown.Clear()
	}
}

// finish takes the bar off the screen.
func (b *bar) finish() {
	if b != nil {
		_ = b.shown.Finish()
	}
}

// progress shows work on files: a bar of bytes on a terminal, a line an outcome
// elsewhere. Its methods may be called from many goroutines.
type progress struct {
	out *logsink.Sink // A run does not wait for who reads its lines.
	bar *bar          // nil: lines

	mu    sync.Mutex
	files int64 // that are known to be to do
	done  int64
	bytes int64
}

// newProgress returns the progress of work that begins with what about says.
func newProgress(io streams, about string) *progress {
	return &progress{
		out: logsink.New(io.out),
		bar: newBar(io.err, about, -1, progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true)),
	}
}

// Found adds a file of size bytes that has to be checked.
func (p *progress) Found(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
	p.bytes += size
	p.bar.total(p.bytes)
	p.bar.describe(p.done, p.files)
}

// Outcome shows what became of one file.
func (p *progress) Outcome(o pipeline.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.bar.describe(p.done, p.files)
	p.bar.add(o.Size)
	if p.bar != nil {
		return
	}
	name := strconv.Quote(o.Path)
	switch o.Status {
	case pipeline.Uploaded:
		say(p.out, "uploaded %s (%s)\n", name, admin.Bytes(o.Size))
	case pipeline.Skipped:
		say(p.out, "skipped %s (unchanged)\n", name)
	case pipeline.Deleted:
		say(p.out, "deleted %s (gone here)\n", name)
	case pipeline.Failed:
		say(p.out, "failed %s: %v\n", name, o.Err)
	case pipeline.Rekeyed:
		say(p.out, "rekeyed %s (%s)\n", name, admin.Bytes(o.Size))
	case pipeline.PlannedRekey:
		say(p.out, "would rekey %s (%s)\n", name, admin.Bytes(o.Size))
	case pipeline.Planned:
		say(p.out, "would upload %s (%s)\n", name, admin.Bytes(o.Size))
	}
}

// finish takes the bar off the screen, or writes the lines that are left.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.finish()
	p.out.Close(logsink.Forever)
}

// verifyProgress shows on a terminal how far a verification is.
type verifyProgress struct {
	errs io.Writer

	mu   sync.Mutex
	bar  *bar // nil: no terminal, or nothing to show yet
	what string
}

// Trail begins another trail.
func (p *verifyProgress) Trail(string) { p.finish() }

// Documents shows the documents of the trail.
func (p *verifyProgress) Documents(done, total int64) { p.show("documents", done, total) }

// Objects shows the objects.
func (p *verifyProgress) Objects(done int64) { p.show("objects", done, -1) }

// Files shows the files.
func (p *verifyProgress) Files(done int64) { p.show("files", done, -1) }

func (p *verifyProgress) show(what string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.what != what {
		p.bar.finish()
		p.what, p.bar = what, newBar(p.errs, what, total, progressbar.OptionShowCount())
	}
	p.bar.set(done)
}

// finish takes the bar off the screen.
func (p *verifyProgress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.finish()
	p.what, p.bar = "", nil
}
