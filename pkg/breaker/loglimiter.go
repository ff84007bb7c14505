package breaker

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// limitEvery is how often the log says of one kind of failure that there are
// more files.
const limitEvery = time.Minute

// LogKind is what the log lines have in common that a LogLimiter counts together.
type LogKind struct {
	Class archive.Class
	Again bool // Nothing is recorded: the file is tried again by itself.
	Local bool // This host failed, not the destination.
}

// LogLimiter keeps a failure that many files share from filling the log.
type LogLimiter struct {
	nameAll bool

	mu    sync.Mutex
	kinds map[LogKind]*counted
}

// counted is what the log said of one kind of failure.
type counted struct {
	since time.Time // Of the minute that is counted.
	named int       // Files that the log named in it.
	more  int       // And those that it did not name.
}

// NewLogLimiter returns a LogLimiter. With nameAll it lets every recorded failure
// through: a run that ends by itself names all that it gives up.
func NewLogLimiter(nameAll bool) *LogLimiter {
	return &LogLimiter{nameAll: nameAll, kinds: map[LogKind]*counted{}}
}

// files returns how many failed files of a kind the log names a minute. A
// refusal or an outage is one fault of many files; another failure is each
// file's own.
func (k LogKind) files() int {
	if k.Again || k.Class.OutOfService() {
		return 1
	}
	return 10
}

// Name reports whether the log names one more failed file of kind k.
func (l *LogLimiter) Name(k LogKind, now time.Time) bool {
	if l.nameAll && !k.Again {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.kinds[k]
	if c == nil || now.Sub(c.since) >= limitEvery && c.more == 0 {
		c = &counted{since: now}
		l.kinds[k] = c
	}
	if c.named >= k.files() {
		c.more++
		return false
	}
	c.named++
	return true
}

// Flush logs how many files failed that the log did not name.
func (l *LogLimiter) Flush(now time.Time, log *zap.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, c := range l.kinds {
		if now.Sub(c.since) < limitEvery {
			continue
		}
		delete(l.kinds, k)
		switch fields := []zap.Field{zap.String("class", string(k.Class)), zap.Int("files", c.more)}; {
		case c.more == 0:
		case k.Again:
			// While it lasts this line comes in place of one that names a file.
			l.kinds[k] = &counted{since: now, named: k.files()}
			log.Warn("more attempts were postponed likewise, they are tried again", fields...)
		default:
			log.Warn("more files failed likewise, the trail names each", fields...)
		}
	}
}
