// Package survey reads what digests the bucket has of an instance: other chains,
// and those of the own chain that the state does not know.
package survey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Bucket reads the digests of one trail in the bucket.
type Bucket struct {
	Pub      trail.Library
	Trail    string // where it is, with a trailing slash
	Instance string
}

// Head is a digest in the bucket.
type Head struct {
	Name trail.Name
	Key  string // "": none
}

// each calls fn for every digest named at or after the given time, in either
// layout.
func (r Bucket) each(ctx context.Context, since time.Time, fn func(n trail.Name, key string)) error {
	for _, prefix := range []string{r.Trail + "digest_", r.Trail + trail.DigestDirHive + "/digest_"} {
		from := ""
		if !since.IsZero() {
			from = prefix + since.UTC().Format(trail.TimeFormat)
		}
		err := r.Pub.List(ctx, prefix, from, func(o archive.Object) error {
			if n, ok := trail.ParseName(o.Key); ok && n.Digest {
				fn(n, o.Key)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
	}
	return nil
}

// Chains returns the newest digests of each chain of the instance, the chain with
// the newest one first.
func (r Bucket) Chains(ctx context.Context) ([]Newest, error) {
	all := map[string]*Newest{}
	err := r.each(ctx, time.Time{}, func(n trail.Name, key string) {
		if n.Instance != r.Instance {
			return
		}
		t := all[n.Chain]
		if t == nil {
			if len(all) >= surveyChains {
				forgetOldest(all)
			}
			t = &Newest{}
			all[n.Chain] = t
		}
		t.add(Head{Name: n, Key: key})
	})
	list := make([]Newest, 0, len(all))
	for _, t := range all {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Newest) int {
		return cmp.Or(b[0].Name.Time.Compare(a[0].Name.Time), strings.Compare(a[0].Key, b[0].Key))
	})
	return list, err
}

// forgetOldest forgets half of the chains, those whose digests are the oldest.
func forgetOldest(all map[string]*Newest) {
	ids := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or((*all[a])[0].Name.Time.Compare((*all[b])[0].Name.Time), strings.Compare(a, b))
	})
	for _, id := range ids[:len(ids)/2] {
		delete(all, id)
	}
}

// Digest returns a digest and the SHA-256 of its bytes. A digest that cannot be
// read as one still has its hash.
func (r Bucket) Digest(ctx context.Context, key string) (d trail.Digest, sha string, err error) {
	body, _, err := r.Pub.Get(ctx, key)
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	s := trail.NewSum()
	d, parse := trail.ParseDigest(io.TeeReader(body, s))
	err = body.Close()
	if parse != nil && !errors.Is(parse, trail.ErrFormat) && !errors.Is(parse, trail.ErrNewerFormat) {
		err = errors.Join(parse, err)
	}
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	return d, s.Hex(), nil
}

// Sum returns the SHA-256 of the object under key.
func (r Bucket) Sum(ctx context.Context, key string) (sha string, o archive.Object, err error) {
	body, o, err := r.Pub.Get(ctx, key)
	if err != nil {
		return "", o, err
	}
	s := trail.NewSum()
	_, err = io.Copy(s, body)
	return s.Hex(), o, errors.Join(err, body.Close())
}

// SumOf returns the SHA-256 of a digest, "" where it may not be read.
func (r Bucket) SumOf(ctx context.Context, h Head, log *zap.Logger) (string, error) {
	_, sha, err := r.Digest(ctx, h.Key)
	if err != nil && !Outage(ctx, err) {
		log.Warn("the digest at which the chain is left cannot be read", zap.String("key", h.Key), zap.Error(err))
		return "", nil
	}
	return sha, err
}

// Survey is what a listing of the trail's digests shows beside one chain.
type Survey struct {
	Ahead  Newest             // the newest digests of the chain that the state does not know
	From   uint64             // the lowest sequence number of such a digest
	others map[string]*Newest // the newest digests of each other chain of the instance
	firsts map[string]string  // and the key of its first one
}

// surveyChains is how many other chains a survey remembers.
const surveyChains = 10_000

// Survey lists the digests of the instance that were named since it was last
// looked for them. The digests of ch that the state does not know are foreign.
func (r Bucket) Survey(ctx context.Context, ch archive.Chain, foreign func(trail.Name) bool) (*Survey, error) {
	since := ch.LastNamed
	if prev, ok := trail.ParseName(ch.PrevKey); ok {
		since = prev.Time
	}
	if !ch.LookedTo.IsZero() && ch.LookedTo.Before(since) {
		since = ch.LookedTo
	}
	s := &Survey{others: map[string]*Newest{}, firsts: map[string]string{}}
	err := r.each(ctx, since, func(n trail.Name, key string) {
		switch {
		case n.Instance != r.Instance:
		case n.Chain != ch.ID:
			s.other(n, key)
		case foreign(n):
			s.unknown(n, key)
		}
	})
	return s, err
}

func (s *Survey) other(n trail.Name, key string) {
	t := s.others[n.Chain]
	if t == nil {
		if len(s.others) >= surveyChains {
			return
		}
		t = &Newest{}
		s.others[n.Chain] = t
	}
	t.add(Head{Name: n, Key: key})
	if n.Sequence == 1 {
		s.firsts[n.Chain] = key
	}
}

func (s *Survey) unknown(n trail.Name, key string) {
	s.Ahead.add(Head{Name: n, Key: key})
	if s.From == 0 || n.Sequence < s.From {
		s.From = n.Sequence
	}
}

// Anybody who can write the bucket can put chains there. A host reads so much of
// them, the newest first: verifying reads them all.
const (
	FirstsRead = 1000
	AheadRead  = 8 << 20 // bytes of one digest that may be another writer's
)

// LeftBy returns the newest digests of the chains that say that they left ch, the
// newest chain first.
func (r Bucket) LeftBy(ctx context.Context, ch archive.Chain, s *Survey) (by []Newest, err error) {
	chains := slices.SortedFunc(maps.Keys(s.firsts), func(a, b string) int {
		return cmp.Or((*s.others[b])[0].Name.Time.Compare((*s.others[a])[0].Name.Time), strings.Compare(a, b))
	})
	for _, chain := range chains[:min(len(chains), FirstsRead)] {
		data, err := r.Read(ctx, s.firsts[chain], AheadRead)
		if err != nil && Outage(ctx, err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		if d, err := trail.DecodeDigest(data); err == nil && d.AbandonsChain == ch.ID {
			by = append(by, *s.others[chain])
		}
	}
	return by, nil
}

// Newest are the newest digests of one chain in the bucket, the newest first.
type Newest []Head

// topDigests is how many of them are read: the newest ones of a run that was
// killed may have no signature.
const topDigests = 8

// add records a digest.
func (t *Newest) add(h Head) {
	at, _ := slices.BinarySearchFunc(*t, h, func(a, b Head) int {
		return cmp.Or(cmp.Compare(b.Name.Sequence, a.Name.Sequence), b.Name.Time.Compare(a.Name.Time), strings.Compare(b.Key, a.Key))
	})
	if at < topDigests {
		*t = slices.Insert((*t)[:min(len(*t), topDigests-1)], at, h)
	}
}

// Read returns a small object's bytes; a larger one is ErrFormat.
func (r Bucket) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	body, _, err := r.Pub.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", trail.ErrFormat, key, limit)
	}
	return data, nil
}

// Outage reports whether a request failed in a way that passes by itself, or with
// other credentials. A server that refuses or does not know it is asked in vain.
func Outage(ctx context.Context, err error) bool {
	switch c := archive.ClassOf(err); {
	case c.Passes():
		return ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, archive.ErrUnsupported)
	case c.Meaning().EveryRequest:
		return true
	}
	return ctx.Err() != nil
}

// SeqKey stands for the digest of this number among names.
func SeqKey(seq uint64) string { return fmt.Sprintf("#%d", seq) }

// AskTimeout bounds what Begin asks the bucket: a start does not wait for an
// outage to end.
const AskTimeout = 10 * time.Second
