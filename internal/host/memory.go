package host

import (
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/cgroup"
	"github.com/s3syncd/s3syncd/internal/config"
)

// What a process needs beside the buffers of uploads, at rest and for each
// worker (a connection with its TLS state, an attempt, a stack), and which part of
// the limit of its control groups stays free for what the kernel counts there.
const (
	memoryRest   = 48 << 20
	memoryWorker = 1 << 20
	memorySpare  = 10 // percent
	workersLeast = 2
)

// Budget is how much of upload.memory_limit and upload.workers is used.
type Budget struct {
	Buffers int64
	Workers int
}

// MemoryLimit returns the bytes that this process may use by its control
// groups, 0 where they set no limit.
func MemoryLimit() int64 {
	limit, _ := cgroup.MemoryLimit(os.DirFS("/"))
	return limit
}

// BudgetOf returns what is configured, or what fits below limit, 0 being none.
// It fails where the least does not fit.
func BudgetOf(u config.Upload, limit int64) (Budget, error) {
	b := Budget{Buffers: u.MemoryLimit, Workers: u.Workers}
	if limit <= 0 {
		return b, nil
	}
	room := limit - limit*memorySpare/100 - memoryRest
	least := u.PartSize + config.BufferSize
	// An eighth of the room is enough for workers: buffers are what they wait for.
	b.Workers = max(min(b.Workers, int(room/8/memoryWorker)), min(workersLeast, b.Workers))
	b.Buffers = min(b.Buffers, room-int64(b.Workers)*memoryWorker)
	if b.Buffers < least {
		need := (least + memoryRest + int64(min(workersLeast, u.Workers))*memoryWorker) * 100 / (100 - memorySpare)
		return b, fmt.Errorf("the control groups of this process allow it %s of memory, and it needs %s with upload.part_size %s: "+
			"raise the limit of the container or the unit (MemoryMax=), or lower upload.part_size",
			admin.Bytes(limit), admin.Bytes(need), admin.Bytes(u.PartSize))
	}
	return b, nil
}

// Fit returns the budget of this process, and logs where it is less than what is
// configured.
func Fit(cfg *config.Config, log *zap.Logger) (Budget, error) {
	limit := MemoryLimit()
	b, err := BudgetOf(cfg.Upload, limit)
	if err == nil && (b.Buffers < cfg.Upload.MemoryLimit || b.Workers < cfg.Upload.Workers) {
		log.Info("the control groups of this process limit its memory: less is used than is configured",
			zap.String("limit", admin.Bytes(limit)), zap.String("upload.memory_limit", admin.Bytes(b.Buffers)), zap.Int("upload.workers", b.Workers))
	}
	return b, err
}
