package uploader

import (
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// asIndexed reports whether size and times of the file are those of the index.
func (l *look) asIndexed() bool {
	return l.known && l.entry.Stored && l.entry.Fence.SameContent(l.fence)
}

// handOver leaves a file that is not as the index describes it, and was only to
// be read again, to whoever knows what is excluded, settling or out of sight.
func (l *look) handOver() error {
	if l.Requeue != nil {
		l.Requeue(l.job.Path)
	}
	return nil
}

// changedUnseen reports whether a file that is read again has another content
// although size and times are those of the index.
func (l *look) changedUnseen() bool {
	return l.job.Kind == archive.Reread && l.asIndexed() && !l.entry.Doubted && !l.sameAsIndex()
}

// countReread counts a file that was read again although its times say that it
// is unchanged.
func (l *look) countReread() {
	changed := l.changedUnseen()
	l.metrics.reread(changed)
	if changed {
		l.log.Warn("content changed although size and times did not: a store through a mapping, or a failing disk; the file is uploaded as it is now",
			zap.String("path", l.job.Path))
	}
}
