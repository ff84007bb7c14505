package trail

import (
	"context"
	"slices"
)

// believer says why a digest is not to be believed, as Query.Believe does.
type believer = func(e Entry, d *Digest, sha string) error

// digests calls fn for each of some digests that are sorted by sequence. One
// that is not what its name says is ErrFormat. Of several with one sequence,
// only the one that follows its predecessor is shown, else the first; believe,
// where it is set, says which are not to be believed.
func (t *Trail) digests(ctx context.Context, list []Entry, believe believer, fn func(e Entry, d *Digest, sha string, err error) error) error {
	fetch := func(ctx context.Context, i int) (*candidate, error) {
		d, sha, err := t.Digest(ctx, list[i].Key)
		if err == nil {
			err = list[i].Name.Says(&d)
		}
		if err == nil && believe != nil {
			err = believe(list[i], &d, sha)
		}
		return &candidate{at: list[i], d: d, sha: sha}, err
	}
	var best *candidate // of the present sequence number
	prev := ""
	tell := func() error {
		if best == nil {
			return nil
		}
		if best.err != nil {
			return fn(best.at, nil, "", best.err)
		}
		prev = best.sha
		return fn(best.at, &best.d, best.sha, nil)
	}
	err := EachEntry(ctx, list, fetch, func(*candidate) {}, func(i int, c *candidate, err error) error {
		if err != nil {
			c = &candidate{at: list[i], err: err}
		}
		if best != nil && best.at.Name.Sequence != c.at.Name.Sequence {
			if err := tell(); err != nil {
				return err
			}
			best = nil
		}
		if c.betterThan(best, prev) {
			best = c
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tell()
}

// candidate is a digest that may be the one of its sequence number.
type candidate struct {
	at  Entry
	d   Digest
	sha string
	err error
}

// betterThan reports whether c takes the place of best: it can be read, and
// best cannot or does not follow prev as c does.
func (c *candidate) betterThan(best *candidate, prev string) bool {
	switch {
	case best == nil:
		return true
	case c.err != nil:
		return false
	case best.err != nil:
		return true
	}
	return c.follows(prev) && !best.follows(prev)
}

func (c *candidate) follows(prev string) bool {
	return c.d.PreviousDigestSHA256 != nil && *c.d.PreviousDigestSHA256 == prev
}

// Succession returns the chains of one instance in the order in which they
// follow one another: by time, and none before the one that it leaves.
func (t *Trail) Succession(ctx context.Context, chains []ChainIndex, distrust func(ctx context.Context, key string, err error) error) ([]ChainIndex, error) {
	if len(chains) < 2 {
		return chains, nil
	}
	at, leaves := map[string]int{}, map[string]string{}
	var firsts []Entry
	for i := range chains {
		at[chains[i].ID] = i
		if d := chains[i].Digests; len(d) > 0 && d[0].Name.Sequence == 1 {
			firsts = append(firsts, d[0])
		}
	}
	fetch := func(ctx context.Context, i int) (string, error) {
		d, _, err := t.Digest(ctx, firsts[i].Key)
		return d.AbandonsChain, err
	}
	err := EachEntry(ctx, firsts, fetch, func(string) {}, func(i int, left string, err error) error {
		if err != nil {
			return distrust(ctx, firsts[i].Key, err)
		}
		leaves[firsts[i].Name.Chain] = left
		return nil
	})
	if err != nil {
		return nil, err
	}
	ordered := make([]ChainIndex, 0, len(chains))
	placed := map[string]bool{}
	for i := range chains {
		var before []int // the chain, the one that it leaves, and so on
		for id := chains[i].ID; !placed[id]; id = leaves[id] {
			j, ok := at[id]
			if !ok {
				break
			}
			placed[id] = true
			before = append(before, j)
		}
		for _, j := range slices.Backward(before) {
			ordered = append(ordered, chains[j])
		}
	}
	return ordered, nil
}
