package preflight

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/ignore"
)

// The look of a check at the sources is short: a file system may not answer.
const (
	includeWait  = 3 * time.Second
	includeLimit = 200_000 // entries
)

// IncludeWarnings looks into each source that has an include, and says which of
// its patterns match no file there. It returns soon, though a file system does
// not answer.
func IncludeWarnings(ctx context.Context, c *config.Config) (warnings []string) {
	ctx, cancel := context.WithTimeout(ctx, includeWait)
	defer cancel()
	for i := range c.Sources {
		s := &c.Sources[i]
		if len(s.Include) == 0 {
			continue
		}
		found := make(chan []string, 1)
		go func() { // It ends with the look, or with the process.
			unused, err := ignore.UnusedIncludes(ctx, s.Path, s.Include, s.Exclude, includeLimit)
			if err != nil {
				unused = nil // What is not there says nothing of a pattern.
			}
			found <- unused
		}()
		select {
		case unused := <-found:
			if len(unused) > 0 {
				warnings = append(warnings, fmt.Sprintf("source %s: %s", s.Name, unusedText(unused)))
			}
		case <-ctx.Done():
		}
	}
	return warnings
}

// unusedText says which patterns of an include match no file.
func unusedText(unused []string) string {
	quoted := make([]string, len(unused))
	for i, u := range unused {
		quoted[i] = fmt.Sprintf("%q", u)
	}
	return "the source has no file that these patterns of include match: " + strings.Join(quoted, ", ") + " (they are relative to the source)"
}
