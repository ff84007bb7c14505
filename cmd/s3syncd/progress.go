package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/app"
	"github.com/s3syncd/s3syncd/internal/logsink"
)

// progress shows a sync run: a bar on a terminal, a line an outcome elsewhere.
// Its methods may be called from many goroutines.
type progress struct {
	out *logsink.Sink            // A run does not wait for who reads its lines.
	bar *progressbar.ProgressBar // nil: lines

	mu    sync.Mutex
	files int64 // that the scan has found to do
	done  int64
	bytes int64
}

func newProgress(out, errs io.Writer, terminal bool) *progress {
	p := &progress{out: logsink.New(out)}
	if terminal {
		p.bar = newBar(errs, "scanning")
	}
	return p
}

// newBar returns a bar of bytes whose total is not known yet.
func newBar(w io.Writer, about string) *progressbar.ProgressBar {
	return progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(w),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetDescription(about),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionFullWidth(),
		progressbar.OptionSpinnerType(14))
}

// Found adds a file that is to be looked at, of size bytes.
func (p *progress) Found(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files++
	p.bytes += size
	if p.bar != nil {
		p.bar.ChangeMax64(max(p.bytes, 1))
		p.describe()
	}
}

// Outcome shows what became of one file.
func (p *progress) Outcome(o app.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	if p.bar != nil {
		p.describe()
		_ = p.bar.Add64(o.Size) // The bar is decoration: a terminal that is gone changes nothing.
		return
	}
	name := strconv.Quote(o.Path)
	switch o.Status {
	case app.Uploaded:
		_, _ = fmt.Fprintf(p.out, "uploaded %s (%s)\n", name, admin.Bytes(o.Size)) // As above.
	case app.Skipped:
		_, _ = fmt.Fprintf(p.out, "skipped %s (unchanged)\n", name) // As above.
	case app.Deleted:
		_, _ = fmt.Fprintf(p.out, "deleted %s (gone here)\n", name) // As above.
	case app.Failed:
		_, _ = fmt.Fprintf(p.out, "failed %s: %v\n", name, o.Err) // As above.
	case app.Rekeyed:
		_, _ = fmt.Fprintf(p.out, "rekeyed %s (%s)\n", name, admin.Bytes(o.Size)) // As above.
	case app.PlannedRekey:
		_, _ = fmt.Fprintf(p.out, "would rekey %s (%s)\n", name, admin.Bytes(o.Size)) // As above.
	case app.Planned:
		_, _ = fmt.Fprintf(p.out, "would upload %s (%s)\n", name, admin.Bytes(o.Size)) // As above.
	}
}

func (p *progress) describe() {
	p.bar.Describe(fmt.Sprintf("%d of %d files", p.done, p.files))
}

// finish takes the bar off the screen, or writes the lines that are left.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Finish() // As above.
	}
	p.out.Close(logsink.Forever)
}
