package uploader

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// write writes an intent and sends the content as d says. The attempt has ended
// when done is true; otherwise the condition did not hold, and now is what S3
// holds instead.
func (a *attempt) write(ctx context.Context, d remote.Decision) (done bool, now remote.State, err error) {
	f := &a.file
	in := &archive.Intent{
		Op: archive.OpPut, Path: a.job.Path, Key: a.key, Fence: f.Fence, Attributes: f.Attributes, Racy: f.Racy,
		MD5: f.Reading.MD5, SHA256: f.Reading.SHA256, Trigger: a.job.Trigger, DetectedAt: a.job.Detected,
		Replaces: d.Replaces, Rekey: a.job.Kind == archive.Rekey, Reread: a.changedUnseen(),
	}
	if f.Reading.PartSize > 0 {
		in.Op, in.PartSize = archive.OpMultipart, f.Reading.PartSize
	}
	if in, err = a.intents.write(ctx, in); err != nil {
		return false, now, err
	}

	a.flight.enter(PhaseSend)
	a.flight.sent.Store(0)
	var o archive.Object
	if in.Op == archive.OpMultipart {
		o, err = transfer{a, in}.send(ctx, d.Cond)
	} else {
		section := f.Reading.Section(f.Opened.File, 0, f.Reading.Size)
		o, err = a.d.gate.Put(ctx, archive.Put{
			Key: a.key, MD5: f.Reading.MD5, SHA256: f.Reading.SHA256, Metadata: metadata(a.d.src, in), If: d.Cond,
		}, localfile.NewBody(ctx, section, f.Reading.Size, a.p.limiter, &a.flight.sent))
	}
	switch {
	case err == nil:
		return true, now, a.intents.stored(ctx, in, o)
	case errors.Is(err, archive.ErrPrecondition):
		return a.intents.surprised(ctx, in, d.Cond.Absent)
	case errors.Is(err, archive.ErrNoUpload), errors.Is(err, fs.ErrNotExist) && d.Cond.ETag != "" && !localfile.IsLocal(err):
		return a.intents.surprised(ctx, in, false)
	default:
		return false, now, a.broken(ctx, in, err)
	}
}

// broken ends a write that failed. Where the server certainly has not taken it
// the intent is dropped; otherwise it stays, and the next attempt resolves it.
func (a *attempt) broken(ctx context.Context, in *archive.Intent, err error) error {
	taken := ambiguous(err)
	fails := archive.ClassOf(err).Meaning().Effect == archive.EffectFails
	if fails && !localfile.IsLocal(err) && ctx.Err() == nil && a.file.Opened != nil && a.file.Unchanged() != nil {
		err = localfile.Changed("send") // A body of another length looks like a broken connection.
	}
	if taken {
		return err
	}
	return errors.Join(err, a.intents.discard(ctx, in))
}

// metadata is the user metadata of the object that in announces.
func metadata(src *Source, in *archive.Intent) map[string]string {
	meta := map[string]string{
		archive.MetaMD5:         hex.EncodeToString(in.MD5[:]),
		archive.MetaSHA256:      hex.EncodeToString(in.SHA256[:]),
		archive.MetaMtime:       formatMtime(in.Fence.Mtime()),
		archive.MetaPermissions: fmt.Sprintf("%04o", in.Attributes.Mode&0o7777),
		archive.MetaOwner:       strconv.FormatUint(uint64(in.Attributes.UID), 10),
		archive.MetaGroup:       strconv.FormatUint(uint64(in.Attributes.GID), 10),
	}
	identify(meta, src, in)
	return meta
}

// identify names the write that in announces in an object's metadata.
func identify(meta map[string]string, src *Source, in *archive.Intent) {
	meta[archive.MetaID] = archive.ObjectID{Instance: src.Instance, Chain: in.Chain, Attempt: in.Attempt}.String()
	delete(meta, archive.MetaHost)
	if src.Host != "" {
		meta[archive.MetaHost] = src.Host
	}
}

// formatMtime renders a time as seconds since 1970 with a fraction.
func formatMtime(t time.Time) string {
	sign, sec, ns := "", t.Unix(), t.Nanosecond()
	if sec < 0 {
		if ns > 0 {
			sec, ns = sec+1, 1e9-ns
		}
		sign, sec = "-", -sec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, ns)
}
