package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// SourceSummary is what was compared with the tree.
type SourceSummary struct {
	Files int64 `json:"files"` // that the trail says are there
	Bytes int64 `json:"bytes"` // of them that were read

	since time.Time // what is gone since then may not have been published yet
}

// SourceOptions say how a tree is compared with the trail.
type SourceOptions struct {
	Instance string
	Mapper   archive.Mapper
	TempDir  string
	Memory   int64
	Progress func(done int64) // nil: not reported
}

// CheckSource compares the newest record of each file with the tree below root:
// the file is there and its content has the recorded hash. A file that changed
// after its record is a note, one that cannot be read a finding. What the tree
// has and the trail does not is not searched for: a dry run of sync shows it. Every
// file is read; memory stays small. An error says that it did not get to its
// end; v has what was found until then.
func (v *Result) CheckSource(ctx context.Context, t *trail.Trail, root *safefs.Root, o SourceOptions) error {
	var found, noted Findings
	sum := &SourceSummary{since: v.ToldTo(o.Instance)}
	q := trail.Query{Instance: o.Instance, TempDir: o.TempDir, Memory: o.Memory, Distrust: func(key string, err error) error {
		if !Unbelieved(err) {
			found.Add(Finding{Kind: FindingUnchecked, Key: key, Detail: notRead(key, err)})
		}
		return nil
	}}
	err := t.Newest(ctx, q, func(h trail.Held) error {
		r := h.Record
		path, ok := o.Mapper.Path(r.S3Key)
		if !ok || h.Gone {
			return nil
		}
		sum.Files++
		kind, detail, unread, err := compareFile(root, path, &r, sum)
		if err != nil {
			return err
		}
		f := Finding{Kind: kind, Instance: r.Instance, Chain: r.Chain, Key: r.S3Key, Detail: detail + " (record " + r.ID + ")"}
		switch {
		case kind == "":
		case kind == FindingSource, unread:
			found.Add(f)
		default:
			noted.Add(f)
		}
		if o.Progress != nil {
			o.Progress(sum.Files)
		}
		return nil
	})
	v.Tree = sum
	v.conclude(&found, &noted)
	return err
}

// compareFile compares one file with its record; kind "" is no difference, and
// unread says that it could not be compared.
func compareFile(root *safefs.Root, path string, r *archive.Record, sum *SourceSummary) (kind FindingKind, detail string, unread bool, err error) {
	o, err := root.Open(path)
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return "", "", false, err
	case errors.Is(err, fs.ErrNotExist):
		kind, detail := JudgeGone(root, path, sum.since)
		return kind, detail, false, nil
	case err != nil:
		return FindingUnchecked, "it could not be read: " + err.Error(), true, nil
	}
	defer func() { err = errors.Join(err, o.File.Close()) }()
	hash, size, err := hashBoth(o.File)
	if err != nil {
		return FindingUnchecked, "it could not be read: " + err.Error(), true, nil
	}
	sum.Bytes += size
	kind, detail = judgeFile(r, hash, size, time.Unix(0, o.Stat.CtimeNs))
	return kind, detail, false, nil
}

// judgeFile compares what a file holds with its record; kind "" is no
// difference.
func judgeFile(r *archive.Record, hash [2]string, size int64, changed time.Time) (FindingKind, string) {
	detail := bytesDiffer(r, hash)
	if detail == "" && r.SizeBytes != nil && size != *r.SizeBytes {
		detail = fmt.Sprintf("it has %d bytes, the record says %d", size, *r.SizeBytes)
	}
	recorded, err := time.Parse(time.RFC3339Nano, r.Timestamp)
	switch {
	case detail == "" && r.SHA256 == "" && r.MD5 == "":
		return NoteUnchecked, "no record has a hash of it"
	case detail == "":
		return "", ""
	case err == nil && changed.After(recorded):
		return NoteChangedSince, "it changed after its record: " + detail
	}
	return FindingSource, detail
}

// ToldTo returns when the newest digest ends of a chain of instance that continues
// and is not late; zero where there is none.
func (v *Result) ToldTo(instance string) (end time.Time) {
	for i := range v.Chains {
		c := &v.Chains[i]
		at, err := parseUTC(c.HeadTime)
		due, none := parseUTC(c.NextDigestDue)
		now, never := parseUTC(v.CheckedAt)
		if c.Instance == instance && errors.Join(err, none, never) == nil && !now.After(due.Add(silenceGrace)) && at.After(end) {
			end = at
		}
	}
	return end
}

// JudgeGone says what it means that a file is not in the tree: where the
// directory that held it has changed since a digest told the state of things,
// the next one may tell that the file is gone.
func JudgeGone(root *safefs.Root, path string, since time.Time) (FindingKind, string) {
	detail := "it is not in the tree, and the trail does not say that it was deleted"
	if since.IsZero() {
		return FindingSource, detail
	}
	for dir := path; dir != ""; {
		i := strings.LastIndexByte(dir, '/')
		dir = dir[:max(i, 0)]
		st, err := root.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != "" {
			continue
		}
		if err == nil && st.Mtime().After(since) {
			return NoteChangedSince, fmt.Sprintf("it is not in the tree, whose directory changed at %s, after the newest digest", archive.FormatTime(st.Mtime()))
		}
		break
	}
	return FindingSource, detail
}
