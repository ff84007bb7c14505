package state

import (
	"bytes"
	"context"
	"slices"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Begin draws an attempt number and stores in, so that its write can be recognized
// even if the answer is lost. It returns ErrKeyBusy while another intent on in.Key is open and not Unresolved.
func (s *Source) Begin(ctx context.Context, in archive.Intent) (attempt uint64, err error) {
	err = s.update(ctx, "begin "+in.Key, func(st *sourceTxn) error {
		open, err := readIntents(st, intentPrefix(in.Key))
		if err != nil {
			return err
		}
		for i := range open {
			if !open[i].Unresolved {
				return refuse(ErrKeyBusy)
			}
		}
		in.Attempt = st.NextAttempt
		st.NextAttempt++
		return st.putIntent(&in)
	})
	if err != nil {
		return 0, err
	}
	return in.Attempt, nil
}

// Attempt changes an open intent. The change may be called more than once, each
// time on what is stored; it cannot change Key and Attempt. ErrNoIntent: no
// such intent is open.
func (s *Source) Attempt(ctx context.Context, attempt uint64, key string, change func(*archive.Intent)) error {
	return s.update(ctx, "change the intent on "+key, func(st *sourceTxn) error {
		id := intentKey(key, attempt)
		value := st.intents.Get(id)
		if value == nil {
			return refuse(ErrNoIntent)
		}
		in, err := decodeIntent(id, value)
		if err != nil {
			return err
		}
		change(&in)
		in.Key, in.Attempt = key, attempt
		return st.putIntent(&in)
	})
}

// DropIntent removes an intent. One that is gone already is no error.
func (s *Source) DropIntent(ctx context.Context, key string, attempt uint64) error {
	return s.update(ctx, "drop the intent on "+key, func(st *sourceTxn) error {
		return remove(st.intents, intentKey(key, attempt))
	})
}

func (st *sourceTxn) putIntent(in *archive.Intent) error {
	return putJSON(st.intents, intentKey(in.Key, in.Attempt), toIntentWire(in))
}

// Intents returns all open intents, oldest first.
func (s *Source) Intents() ([]archive.Intent, error) { return s.intents(nil) }

// Intent returns the open intents on one object key, oldest first.
func (s *Source) Intent(key string) ([]archive.Intent, error) { return s.intents(intentPrefix(key)) }

func (s *Source) intents(prefix []byte) (found []archive.Intent, err error) {
	err = s.view("intents", func(st *sourceTxn) error {
		found, err = readIntents(st, prefix)
		return err
	})
	slices.SortFunc(found, func(a, b archive.Intent) int { return int(int64(a.Attempt - b.Attempt)) })
	return found, err
}

// readIntents decodes the intents whose storage keys begin with prefix.
func readIntents(st *sourceTxn, prefix []byte) ([]archive.Intent, error) {
	var found []archive.Intent
	c := st.intents.Cursor()
	for key, value := c.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, value = c.Next() {
		in, err := decodeIntent(key, value)
		if err != nil {
			return nil, err
		}
		found = append(found, in)
	}
	return found, nil
}

// decodeIntent reads an intent. Its object key comes from its storage key,
// because JSON would change one that is not UTF-8.
func decodeIntent(key, value []byte) (archive.Intent, error) {
	var w intentWire
	if err := codec.DecodeJSON(key, value, &w); err != nil {
		return archive.Intent{}, err
	}
	if len(key) < 12 {
		return archive.Intent{}, codec.Damaged("intent %x: the key is too short", key)
	}
	in := w.intent()
	in.Key = string(key[4 : len(key)-8])
	return in, nil
}
