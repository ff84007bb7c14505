package uploader

import (
	"context"
	"errors"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// keyState is what an attempt knows of what S3 holds under its key.
type keyState struct {
	d      *destination
	key    string
	flight *flight
	seen   remote.State // What this attempt was told when it resolved intents.
}

// ask finds out what S3 holds under the key. When something is known to be there
// (present) a refusal is an error; otherwise it may mean absence, which is enough
// for a write that is conditional on it and for nothing else.
func (k *keyState) ask(ctx context.Context, present bool) (remote.State, error) {
	k.flight.enter(PhaseAsk)
	o, err := k.d.gate.Head(ctx, k.key)
	s, forbiddenIsUnknown := remote.State{Asked: true}, k.d.src.HeadForbiddenMeansUnknown
	switch {
	case err == nil:
		s.Present, s.Object, s.Key = true, o, k.d.src.Accept(o)
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission) && !present && forbiddenIsUnknown != nil && forbiddenIsUnknown():
		s.Guessed = true
	default:
		return s, err
	}
	k.d.noteFound(s.Present)
	return s, nil
}

// convergence is a change of what S3 holds under a key that depends on what is
// there, and is tried again when that turns out to be something else.
type convergence struct {
	present bool // Something is known to be there.
	// ask reports whether S3 has to be asked before act. It is not called for a
	// state that S3 was just asked for.
	ask func(s remote.State) bool
	// act makes the change. Unless it is done, now is what S3 holds instead.
	act func(ctx context.Context, s remote.State) (done bool, now remote.State, err error)
}

// converge makes the change c, beginning with what S3 is believed to hold.
func (k *keyState) converge(ctx context.Context, s remote.State, c convergence) error {
	for range remote.Rounds {
		if !s.Asked && c.ask(s) {
			var err error
			if s, err = k.ask(ctx, c.present); err != nil {
				return err
			}
		}
		done, now, err := c.act(ctx, s)
		if done || err != nil {
			return err
		}
		s = now
	}
	return localfile.Local(archive.ClassTransient, "compare", remote.ErrUnsteady)
}
