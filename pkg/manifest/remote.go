package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// remote reads the digests of one trail in the bucket.
type remote struct {
	pub      Publisher
	trail    string // where it stands, with a trailing slash
	instance string
}

// head is a digest in the bucket.
type head struct {
	name Name
	key  string // "": none
}

// each calls fn for every digest named at or after the given time, in either
// layout.
func (r remote) each(ctx context.Context, since time.Time, fn func(n Name, key string)) error {
	for _, prefix := range []string{r.trail + "digest_", r.trail + digestDirHive + "/digest_"} {
		from := ""
		if !since.IsZero() {
			from = prefix + since.UTC().Format(stampFormat)
		}
		err := r.pub.List(ctx, prefix, from, func(o state.Object) error {
			if n, ok := ParseName(o.Key); ok && n.Digest {
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

// newest returns the newest digest of the instance.
func (r remote) newest(ctx context.Context) (best head, err error) {
	err = r.each(ctx, time.Time{}, func(n Name, key string) {
		if n.Instance == r.instance && (best.key == "" || newer(n, best.name)) {
			best = head{name: n, key: key}
		}
	})
	return best, err
}

// newer reports whether digest a is newer than b: by sequence within a chain,
// by time between chains.
func newer(a, b Name) bool {
	if a.Chain == b.Chain {
		return a.Sequence > b.Sequence
	}
	return a.Time.After(b.Time)
}

// digest returns a digest and the SHA-256 of its bytes. A digest that cannot be
// read as one still has its hash.
func (r remote) digest(ctx context.Context, key string) (d Digest, sha string, err error) {
	body, _, err := r.pub.Get(ctx, key)
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	s := newSums()
	d, parse := ParseDigest(teeReader{r: body, s: s})
	err = body.Close()
	if parse != nil && !errors.Is(parse, ErrFormat) && !errors.Is(parse, ErrNewerFormat) {
		err = errors.Join(parse, err)
	}
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	return d, s.sha(), nil
}

// sum returns the SHA-256 of the object under key.
func (r remote) sum(ctx context.Context, key string) (sha string, o state.Object, err error) {
	body, o, err := r.pub.Get(ctx, key)
	if err != nil {
		return "", o, err
	}
	s := newSums()
	_, err = io.Copy(s, body)
	return s.sha(), o, errors.Join(err, body.Close())
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
	head   head              // the newest digest of the chain that the state does not know
	from   uint64            // the lowest sequence number of such a digest
	others map[string]head   // of each other chain of the instance, its newest digest
	firsts map[string]string // and the key of its first one
}

// surveyChains is how many other chains a survey remembers.
const surveyChains = 10_000

// survey lists the digests of the instance that were named since it was last
// looked for them. The digests of ch that the state does not know are foreign.
func (r remote) survey(ctx context.Context, ch state.Chain, foreign func(Name) bool) (*survey, error) {
	since := ch.LastNamed
	if prev, ok := ParseName(ch.PrevKey); ok {
		since = prev.Time
	}
	if !ch.LookedTo.IsZero() && ch.LookedTo.Before(since) {
		since = ch.LookedTo
	}
	s := &survey{others: map[string]head{}, firsts: map[string]string{}}
	err := r.each(ctx, since, func(n Name, key string) {
		switch {
		case n.Instance != r.instance:
		case n.Chain != ch.ID:
			s.other(n, key)
		case foreign(n):
			s.ahead(n, key)
		}
	})
	return s, err
}

func (s *survey) other(n Name, key string) {
	old, known := s.others[n.Chain]
	if !known && len(s.others) >= surveyChains {
		return
	}
	if !known || newer(n, old.name) {
		s.others[n.Chain] = head{name: n, key: key}
	}
	if n.Sequence == 1 {
		s.firsts[n.Chain] = key
	}
}

func (s *survey) ahead(n Name, key string) {
	if s.head.key == "" || newer(n, s.head.name) {
		s.head = head{name: n, key: key}
	}
	if s.from == 0 || n.Sequence < s.from {
		s.from = n.Sequence
	}
}

// leftBy returns the newest digest of the chain that left ch, if one did.
func (r remote) leftBy(ctx context.Context, ch state.Chain, s *survey) (by head, err error) {
	for chain, key := range s.firsts {
		d, _, err := r.digest(ctx, key)
		if err != nil && outage(ctx, err) {
			return head{}, err
		}
		if err == nil && d.AbandonsChain == ch.ID && (by.key == "" || newer(s.others[chain].name, by.name)) {
			by = s.others[chain]
		}
	}
	return by, nil
}
