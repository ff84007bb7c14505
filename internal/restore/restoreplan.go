package restore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// maxConflicts bounds how many files of a restore may stand where others need a
// directory.
const maxConflicts = 100_000

// planned is a file to restore, as a line of the plan.
type planned struct {
	Key     string  `json:"k"`
	Size    int64   `json:"s"` // -1: not known
	SHA256  string  `json:"h,omitempty"`
	MD5     string  `json:"d,omitempty"`
	Version string  `json:"v,omitempty"`
	Mode    string  `json:"m,omitempty"`
	MTime   string  `json:"t,omitempty"`
	UID     *uint32 `json:"u,omitempty"`
	GID     *uint32 `json:"g,omitempty"`
	Problem string  `json:"p,omitempty"` // why it cannot be restored
}

// planner turns the newest record of each key, in the order of the keys, into
// the plan.
type planner struct {
	*restorer
	dir   string // the key of Dir, "" for everything
	enc   *json.Encoder
	above []above // files of the plan whose key begins the current one
}

// above is a file of the plan that would stand where a directory is needed.
type above struct {
	key  string
	time string // of its record
}

// plan asks the trail what there is to restore, and writes it down. What a
// server could not answer is asked again for GiveUp.
func (r *restorer) plan(ctx context.Context) error {
	since := time.Now()
	for n := 0; ; n++ {
		err := r.planOnce(ctx)
		if err == nil || !trail.Temporary(err) || ctx.Err() != nil {
			return err
		}
		if time.Since(since) > r.o.GiveUp {
			return fmt.Errorf("%w for %v: %w", ErrOutage, r.o.GiveUp, err)
		}
		if !backoff.Pause(ctx, min(backoff.Jittered(n, archive.ClassOf(err)), maxPause)) {
			return ctx.Err()
		}
	}
}

func (r *restorer) planOnce(ctx context.Context) error {
	if err := r.spool.Truncate(0); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	if _, err := r.spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	w := bufio.NewWriterSize(r.spool, 1<<16)
	p := &planner{restorer: r, enc: json.NewEncoder(w)}
	r.excluded, r.files, r.sum = map[string]string{}, 0, Summary{}
	if err := r.check(ctx); err != nil {
		return err
	}
	if r.o.Dir != "" {
		key, err := r.mapper.Key(r.o.Dir)
		if err != nil && !errors.Is(err, archive.ErrKeyTooLong) {
			return err
		}
		p.dir = key
	}
	if err := p.ask(ctx); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	r.lastAnswer.Store(time.Now().UnixNano())
	return nil
}

// ask has the trail tell the newest record of each key. Documents that cannot be
// believed are passed over, and named in the summary.
func (p *planner) ask(ctx context.Context) error {
	q := trail.Query{
		At: p.o.At, KeyPrefix: p.mapper.Prefix(), Instance: p.o.Instance, TempDir: p.o.TempDir, Memory: p.o.Memory,
		Unproven: func(string) { p.sum.Unproven++ },
		Distrust: func(key string, err error) error {
			if trail.Temporary(err) || trail.Refused(err) {
				return err // The server said so, not the document.
			}
			p.fault(key, err)
			return nil
		},
	}
	if p.trust != nil {
		q.Believe = p.trust.believe
		q.Pending = func(e trail.Entry) bool {
			err := p.trust.unnamed(e)
			if err != nil && !p.trust.again[e.Key] {
				p.fault(e.Key, err)
			}
			return err == nil
		}
	}
	if p.dir != "" {
		q.KeyPrefix = p.dir
	}
	return p.trail.Newest(ctx, q, p.consider)
}

// consider takes the newest record of one key into the plan, unless its file was
// gone.
func (p *planner) consider(h trail.Held) error {
	rec := h.Record
	if p.dir != "" && rec.S3Key != p.dir && !strings.HasPrefix(rec.S3Key, p.dir+"/") {
		return nil
	}
	if h.Gone {
		return nil
	}
	name, ok := p.mapper.Path(rec.S3Key)
	if ok {
		if p.o.Wants != nil && !p.o.Wants(name) {
			return nil
		}
		if safefs.IsTargetTemp(path.Base(name)) {
			p.sum.LeftOut++
			return nil
		}
	}
	return p.add(rec)
}

// add writes down that the file of rec is to be restored.
func (p *planner) add(rec archive.Record) error {
	line := planned{
		Key: rec.S3Key, Size: -1, SHA256: rec.SHA256, MD5: rec.MD5, Version: rec.VersionID,
		Mode: rec.Mode, MTime: rec.MTime, UID: rec.UID, GID: rec.GID,
	}
	if rec.SizeBytes != nil {
		line.Size = *rec.SizeBytes
	}
	why, err := p.conflict(rec)
	if err != nil {
		return err
	}
	if line.Problem = why; why == "" {
		p.sum.Bytes += max(line.Size, 0)
	}
	p.files++
	if err := p.enc.Encode(line); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return nil
}

// conflict finds files that stand where rec needs a directory: between two
// checks a source the trail can have both. The newer one is restored, and the
// other one fails. It returns why rec itself is the other one.
func (p *planner) conflict(rec archive.Record) (why string, err error) {
	key := rec.S3Key
	for len(p.above) > 0 && !strings.HasPrefix(key, p.above[len(p.above)-1].key) {
		p.above = p.above[:len(p.above)-1]
	}
	for _, a := range p.above {
		if !strings.HasPrefix(key, a.key+"/") {
			continue
		}
		if a.time > rec.Timestamp && p.excluded[a.key] == "" {
			return fmt.Sprintf("at that time the trail has %s, newer, as a file", a.key), nil
		}
		if len(p.excluded) == maxConflicts {
			return "", fmt.Errorf("more than %d files of the trail stand where others need a directory", maxConflicts)
		}
		p.excluded[a.key] = fmt.Sprintf("at that time the trail has %s, newer, below it", key)
	}
	p.above = append(p.above, above{key: key, time: rec.Timestamp})
	return "", nil
}

// attributes are what the record of p says of the file beside its content.
// Where it says nothing, the object's metadata may.
func (p *planned) attributes(meta map[string]string) (a safefs.Attributes) {
	if mode, err := strconv.ParseUint(firstOf(p.Mode, meta[archive.MetaPermissions]), 8, 32); err == nil && mode <= 0o7777 {
		m := uint32(mode)
		a.Mode = &m
	}
	if at, ok := ParseMTime(p.MTime, meta[archive.MetaMtime]); ok {
		a.MTime = &at
	}
	a.UID, a.GID = p.UID, p.GID
	if a.UID == nil {
		a.UID = parseID(meta[archive.MetaOwner])
	}
	if a.GID == nil {
		a.GID = parseID(meta[archive.MetaGroup])
	}
	return a
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// ParseMTime reads the time of a record, or the seconds with a fraction of an
// object's metadata.
func ParseMTime(record, meta string) (time.Time, bool) {
	if record != "" {
		at, err := time.Parse(time.RFC3339Nano, record)
		return at, err == nil
	}
	whole, fraction, _ := strings.Cut(meta, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	ns, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 32)
	if err != nil {
		return time.Time{}, false
	}
	if strings.HasPrefix(whole, "-") {
		return time.Unix(sec, -int64(ns)), true
	}
	return time.Unix(sec, int64(ns)), true
}

func parseID(s string) *uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nil
	}
	id := uint32(n)
	return &id
}
