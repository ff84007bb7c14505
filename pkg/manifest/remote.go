package manifest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// remote reads the digests of one trail in the bucket.
type remote struct {
	pub      Publisher
	trail    string // where it stands, with a trailing slash
	instance string
}

// head is a digest in the bucket.
type head struct {
	name trail.Name
	key  string // "": none
}

// each calls fn for every digest named at or after the given time, in either
// layout.
func (r remote) each(ctx context.Context, since time.Time, fn func(n trail.Name, key string)) error {
	for _, prefix := range []string{r.trail + "digest_", r.trail + trail.DigestDirHive + "/digest_"} {
		from := ""
		if !since.IsZero() {
			from = prefix + since.UTC().Format(trail.TimeFormat)
		}
		err := r.pub.List(ctx, prefix, from, func(o state.Object) error {
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

// chains returns the newest digests of each chain of the instance, the chain with
// the newest one first.
func (r remote) chains(ctx context.Context) ([]tops, error) {
	all := map[string]*tops{}
	err := r.each(ctx, time.Time{}, func(n trail.Name, key string) {
		if n.Instance != r.instance {
			return
		}
		t := all[n.Chain]
		if t == nil {
			if len(all) >= surveyChains {
				forgetOldest(all)
			}
			t = &tops{}
			all[n.Chain] = t
		}
		t.add(head{name: n, key: key})
	})
	list := make([]tops, 0, len(all))
	for _, t := range all {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b tops) int {
		return cmp.Or(b[0].name.Time.Compare(a[0].name.Time), strings.Compare(a[0].key, b[0].key))
	})
	return list, err
}

// forgetOldest forgets half of the chains, those whose digests are the oldest.
func forgetOldest(all map[string]*tops) {
	ids := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return cmp.Or((*all[a])[0].name.Time.Compare((*all[b])[0].name.Time), strings.Compare(a, b))
	})
	for _, id := range ids[:len(ids)/2] {
		delete(all, id)
	}
}

// digest returns a digest and the SHA-256 of its bytes. A digest that cannot be
// read as one still has its hash.
func (r remote) digest(ctx context.Context, key string) (d trail.Digest, sha string, err error) {
	body, _, err := r.pub.Get(ctx, key)
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

// sum returns the SHA-256 of the object under key.
func (r remote) sum(ctx context.Context, key string) (sha string, o state.Object, err error) {
	body, o, err := r.pub.Get(ctx, key)
	if err != nil {
		return "", o, err
	}
	s := trail.NewSum()
	_, err = io.Copy(s, body)
	return s.Hex(), o, errors.Join(err, body.Close())
}

// sumOf returns the SHA-256 of a digest, "" where it may not be read.
func (r remote) sumOf(ctx context.Context, h head, log *zap.Logger) (string, error) {
	_, sha, err := r.digest(ctx, h.key)
	if err != nil && !outage(ctx, err) {
		log.Warn("the digest at which the chain is left cannot be read", zap.String("key", h.key), zap.Error(err))
		return "", nil
	}
	return sha, err
}

// survey is what a listing of the trail's digests shows beside one chain.
type survey struct {
	ahead  tops              // the newest digests of the chain that the state does not know
	from   uint64            // the lowest sequence number of such a digest
	others map[string]*tops  // the newest digests of each other chain of the instance
	firsts map[string]string // and the key of its first one
}

// surveyChains is how many other chains a survey remembers.
const surveyChains = 10_000

// survey lists the digests of the instance that were named since it was last
// looked for them. The digests of ch that the state does not know are foreign.
func (r remote) survey(ctx context.Context, ch state.Chain, foreign func(trail.Name) bool) (*survey, error) {
	since := ch.LastNamed
	if prev, ok := trail.ParseName(ch.PrevKey); ok {
		since = prev.Time
	}
	if !ch.LookedTo.IsZero() && ch.LookedTo.Before(since) {
		since = ch.LookedTo
	}
	s := &survey{others: map[string]*tops{}, firsts: map[string]string{}}
	err := r.each(ctx, since, func(n trail.Name, key string) {
		switch {
		case n.Instance != r.instance:
		case n.Chain != ch.ID:
			s.other(n, key)
		case foreign(n):
			s.unknown(n, key)
		}
	})
	return s, err
}

func (s *survey) other(n trail.Name, key string) {
	t := s.others[n.Chain]
	if t == nil {
		if len(s.others) >= surveyChains {
			return
		}
		t = &tops{}
		s.others[n.Chain] = t
	}
	t.add(head{name: n, key: key})
	if n.Sequence == 1 {
		s.firsts[n.Chain] = key
	}
}

func (s *survey) unknown(n trail.Name, key string) {
	s.ahead.add(head{name: n, key: key})
	if s.from == 0 || n.Sequence < s.from {
		s.from = n.Sequence
	}
}

// Anybody who can write the bucket can put chains there. A host reads so much of
// them, the newest first: verifying looks at them all.
const (
	firstsRead = 1000
	aheadRead  = 8 << 20 // bytes of one digest that may be somebody else's
)

// leftBy returns the newest digests of the chains that say that they left ch, the
// newest chain first.
func (r remote) leftBy(ctx context.Context, ch state.Chain, s *survey) (by []tops, err error) {
	chains := slices.SortedFunc(maps.Keys(s.firsts), func(a, b string) int {
		return cmp.Or((*s.others[b])[0].name.Time.Compare((*s.others[a])[0].name.Time), strings.Compare(a, b))
	})
	for _, chain := range chains[:min(len(chains), firstsRead)] {
		data, err := r.read(ctx, s.firsts[chain], aheadRead)
		if err != nil && outage(ctx, err) {
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
