package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/signer"
	"github.com/s3syncd/s3syncd/pkg/manifest"
)

// metaSigners is where the state keeps which key signs and which one signed before.
const metaSigners = "signers"

// signersFact is what the state keeps of manifest.sign, which is no secret.
type signersFact struct {
	Current string `json:"current"`
	Before  string `json:"before,omitempty"`
}

// Signers returns what signs the digests of c, and what signed them before and
// announces the new key; each is nil where there is none. A key of before that
// cannot be used any more is no error: readers have to be given the new one.
func (e *Session) Signers(ctx context.Context, c config.Source) (sign, before manifest.Signer, err error) {
	if sign, err = e.OpenSigner(ctx, e.Config.Manifest.Sign, c); err != nil || sign == nil {
		return nil, nil, err
	}
	fact, err := e.rememberSigner(ctx, e.Config.Manifest.Sign)
	if err != nil || fact.Before == "" {
		return sign, nil, err
	}
	before, err = e.OpenSigner(ctx, fact.Before, c)
	if err != nil {
		e.Log.Warn("the key that signed before cannot announce the new one; readers must be given the new public key",
			zap.String("source", c.Name), zap.String("before", fact.Before), zap.Error(err))
		return sign, nil, nil
	}
	return sign, before, nil
}

// rememberSigner stores that spec signs from now on.
func (e *Session) rememberSigner(ctx context.Context, spec string) (signersFact, error) {
	var fact signersFact
	data, err := e.DB.Meta(metaSigners)
	if err != nil {
		return fact, err
	}
	if data != nil {
		if err := json.Unmarshal(data, &fact); err != nil {
			return fact, fmt.Errorf("the stored signer: %w", err)
		}
	}
	if fact.Current == spec {
		return fact, nil
	}
	fact = signersFact{Current: spec, Before: fact.Current}
	if data, err = json.Marshal(fact); err != nil {
		return fact, err
	}
	return fact, e.DB.SetMeta(ctx, metaSigners, data)
}

// OpenSigner returns the signer that spec, a value of manifest.sign, names; nil
// for none.
func (e *Session) OpenSigner(ctx context.Context, spec string, c config.Source) (manifest.Signer, error) {
	if file, ok := strings.CutPrefix(spec, "ed25519:"); ok {
		s, err := host.LoadKey(file, e.Config)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	key, ok := strings.CutPrefix(spec, "kms:")
	if !ok {
		return nil, nil //nolint:nilnil // No signer is not an error.
	}
	s, err := signer.OpenKMS(ctx, signer.KMSOptions{
		KeyID: key, Region: c.Region, Profile: c.Profile,
		AllowInsecure: e.Config.S3.AllowInsecureEndpoint, Metrics: e.Metrics.Store,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}
