package host

import (
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/config"
)

func TestTheBudgetFitsTheLimit(t *testing.T) {
	const mib = 1 << 20
	defaults := config.Upload{Workers: 16, PartSize: 16 * mib, MemoryLimit: 128 * mib}
	small := config.Upload{Workers: 1, PartSize: 5 * mib, MemoryLimit: 13 * mib}
	for name, tt := range map[string]struct {
		upload config.Upload
		limit  int64
		want   string // of the error
	}{
		"no limit":                   {defaults, 0, ""},
		"plenty":                     {defaults, 1 << 30, ""},
		"just enough for everything": {defaults, 256 * mib, ""},
		"a small container":          {defaults, 128 * mib, ""},
		"smaller":                    {defaults, 96 * mib, ""},
		"too small":                  {defaults, 64 * mib, "lower upload.part_size"},
		"too small, small parts":     {small, 80 * mib, ""},
		"far too small":              {small, 32 * mib, "needs"},
		"nothing":                    {small, 1, "needs"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := BudgetOf(tt.upload, tt.limit)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("budgetOf() = %+v, %v, want %q", b, err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b.Workers < 1 || b.Workers > tt.upload.Workers || b.Buffers > tt.upload.MemoryLimit || b.Buffers < tt.upload.PartSize+config.BufferSize {
				t.Errorf("budgetOf() = %+v of %+v", b, tt.upload)
			}
			if sum := b.Buffers + int64(b.Workers)*memoryWorker + memoryRest; tt.limit > 0 && sum > tt.limit-tt.limit/10 {
				t.Errorf("budgetOf() = %+v: %d MiB in all do not fit %d MiB", b, sum/mib, tt.limit/mib)
			}
			if tt.limit == 0 && b != (Budget{tt.upload.MemoryLimit, tt.upload.Workers}) {
				t.Errorf("budgetOf() without a limit = %+v", b)
			}
		})
	}
}
