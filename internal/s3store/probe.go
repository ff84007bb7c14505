package s3store

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Capabilities is what the canary learned about a destination. It is kept in
// the state as JSON. The zero value has learned nothing.
type Capabilities struct {
	Destination string    `json:"destination"` // what it was learned about; another one ignores it
	KMSKeyID    string    `json:"kms_key_id"`  // as configured
	PinnedKey   string    `json:"pinned_key"`  // as the server names it; the key behind an alias
	CheckedAt   time.Time `json:"checked_at"`  // zero: not checked
	ListDenied  bool      `json:"list_denied"` // a missing key answers 403, as without s3:ListBucket
	ContentMD5  bool      `json:"content_md5"` // a wrong Content-MD5 is refused
	IfNoneMatch bool      `json:"if_none_match"`
	IfMatch     bool      `json:"if_match"`
	BucketKey   bool      `json:"bucket_key"` // the server confirms a bucket key
}

// Capabilities returns what is known of the destination.
func (s *Store) Capabilities() Capabilities {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.caps
}

// Restore takes up what an earlier process learned. It reports false, and
// changes nothing, when that was about another destination or key.
func (s *Store) Restore(c Capabilities) bool {
	if c.CheckedAt.IsZero() || c.Destination != s.destination() {
		return false
	}
	s.setCapabilities(c)
	return true
}

func (s *Store) setCapabilities(c Capabilities) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.caps = c
}

// unknown is what a store assumes before the canary: a server that can all.
func (s *Store) unknown() Capabilities {
	return Capabilities{Destination: s.destination(), KMSKeyID: s.o.KMSKeyID, IfNoneMatch: true, IfMatch: true, ContentMD5: true}
}

// Probe sends the canary: a few small requests to one new key with exactly the
// headers of a production write. Nil means that the destination can be reached,
// written to, read from, and that it encrypts under the configured key, whose
// name is pinned. A missing capability other than encryption is logged and
// worked around. The canary object stays.
func (s *Store) Probe(ctx context.Context) error {
	s.probeMu.Lock()
	defer s.probeMu.Unlock()
	return s.probe(ctx)
}

// canary is one object that is written several times.
type canary struct {
	key  string
	body []byte
	etag string
}

func (c *canary) put(cond state.Condition) state.Put {
	sum, sha := md5.Sum(c.body), sha256.Sum256(c.body)
	return state.Put{
		Key: c.key, Body: bytes.NewReader(c.body), Size: int64(len(c.body)), MD5: sum, SHA256: sha, If: cond,
		Metadata: map[string]string{state.MetaMD5: hex.EncodeToString(sum[:]), state.MetaSHA256: hex.EncodeToString(sha[:])},
	}
}

func (s *Store) probe(ctx context.Context) error {
	c := &canary{key: s.canaryKey(), body: []byte("s3syncd canary\n")}
	found := s.unknown()
	steps := []func(context.Context, *canary, *Capabilities) error{
		s.probeKey, s.probeHead, s.probeConditions, s.probeMD5, s.probeMissing,
	}
	for _, step := range steps {
		if err := step(ctx, c, &found); err != nil {
			return fmt.Errorf("canary: %w", err)
		}
	}
	found.CheckedAt = s.Now().UTC()
	before := s.Capabilities()
	s.reportKey(before, found)
	s.reportLacks(before, found)
	s.setCapabilities(found)
	if s.o.OnKey != nil && before.PinnedKey != found.PinnedKey {
		s.o.OnKey()
	}
	return nil
}

// probeKey writes the canary and checks what the server says of its key.
func (s *Store) probeKey(ctx context.Context, c *canary, found *Capabilities) error {
	o, err := s.putCanary(ctx, c.put(state.Condition{}))
	if err != nil {
		return err
	}
	c.etag, found.BucketKey = o.ETag, o.BucketKey
	return s.pin(opPut, o, found)
}

// pin checks an answer to the canary against the configuration itself, not
// against what was pinned before: an alias may have moved.
func (s *Store) pin(op string, o state.Object, found *Capabilities) error {
	named := o.KMSKeyID != "" && o.SSE == string(s.enc.algorithm)
	if named && isAlias(s.enc.keyID) && isKeyARN(o.KMSKeyID) && !isAlias(o.KMSKeyID) {
		found.PinnedKey = o.KMSKeyID
		return nil
	}
	if named && sameKey(s.enc.keyID, o.KMSKeyID, s.region()) {
		found.PinnedKey = o.KMSKeyID
		return nil
	}
	if err := s.confirmed(o); err != nil {
		return &state.Error{Class: state.ClassEncryption, Op: op, RequestID: o.RequestID, Err: err}
	}
	return &state.Error{
		Class: state.ClassEncryption, Op: op, RequestID: o.RequestID,
		Err: fmt.Errorf("the server encrypted %q under %s, which does not resolve %s", o.Key, o.KMSKeyID, s.enc.keyID),
	}
}

// probeHead reads the canary's encryption and metadata back: what a server
// says of a write may be an echo.
func (s *Store) probeHead(ctx context.Context, c *canary, found *Capabilities) error {
	o, err := s.Head(ctx, c.key)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("an object that exists cannot be asked for (s3:GetObject): %w", err)
		}
		return err
	}
	want := c.put(state.Condition{}).Metadata[state.MetaMD5]
	if o.Metadata[state.MetaMD5] != want {
		return &state.Error{Class: state.ClassConfiguration, Op: opHead, Err: fmt.Errorf("the server does not keep metadata: %s is %q, want %q", state.MetaMD5, o.Metadata[state.MetaMD5], want)}
	}
	return s.pin(opHead, o, found)
}

// probeConditions asks for what must not be done.
func (s *Store) probeConditions(ctx context.Context, c *canary, found *Capabilities) (err error) {
	if found.IfNoneMatch, err = s.refuses(ctx, c.put(state.Condition{Absent: true}), state.ErrPrecondition); err != nil {
		return err
	}
	found.IfMatch, err = s.refuses(ctx, c.put(state.Condition{ETag: "00000000000000000000000000000000"}), state.ErrPrecondition)
	return err
}

// probeMD5 sends a wrong Content-MD5, which must not become an object.
func (s *Store) probeMD5(ctx context.Context, c *canary, found *Capabilities) (err error) {
	p := c.put(state.Condition{})
	p.MD5[0] ^= 0xff
	found.ContentMD5, err = s.refuses(ctx, p, errChanged)
	return err
}

// errChanged stands for any error of class changed.
var errChanged = errors.New("refused as changed")

// refuses sends p and reports whether the server refused it as expected. A
// server that takes it, or does not know what it was asked for, does not; any
// other failure is returned.
func (s *Store) refuses(ctx context.Context, p state.Put, expected error) (bool, error) {
	_, err := s.putCanary(ctx, p)
	switch {
	case err == nil, errors.Is(err, state.ErrUnsupported):
		return false, nil
	case errors.Is(err, expected), errors.Is(expected, errChanged) && state.ClassOf(err).Rereads():
		return true, nil
	}
	return false, err
}

// putCanary sends what Put would send, but ignores earlier capabilities.
func (s *Store) putCanary(ctx context.Context, p state.Put) (state.Object, error) {
	in := &s3.PutObjectInput{
		ContentType: aws.String(contentBinary), Metadata: p.Metadata, StorageClass: types.StorageClass(s.o.StorageClass),
	}
	return s.putOnce(ctx, in, p)
}

// probeMissing learns what a missing key answers.
func (s *Store) probeMissing(ctx context.Context, _ *canary, found *Capabilities) error {
	_, err := s.headOnce(ctx, s.canaryKey(), "")
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		found.ListDenied = true
		return nil
	}
	return err
}

// reportKey logs an alias that moved.
func (s *Store) reportKey(old, found Capabilities) {
	if old.PinnedKey != "" && old.PinnedKey != found.PinnedKey {
		s.log.Warn("the configured key alias points to another key; new objects are written under it, older ones stay as they are until rekey",
			zap.String("bucket", s.o.Bucket), zap.String("kms_key_id", s.o.KMSKeyID),
			zap.String("before", old.PinnedKey), zap.String("now", found.PinnedKey))
	}
}

// reportLacks logs what the destination was found to lack since the last
// canary; a new store assumes that nothing lacks.
func (s *Store) reportLacks(old, found Capabilities) {
	log := s.log.With(zap.String("bucket", s.o.Bucket), zap.String("prefix", s.o.Prefix))
	if found.ListDenied && !old.ListDenied {
		log.Warn("s3:ListBucket is not granted, so a missing object answers 403; conditional writes decide instead")
	}
	if !found.ContentMD5 && old.ContentMD5 {
		log.Warn("the server does not check Content-MD5; the SHA-256 that goes with it has to do")
	}
	if !found.conditions() && old.conditions() {
		log.Warn("the server ignores conditional writes; a HEAD before each write takes their place",
			zap.Bool("if_none_match", found.IfNoneMatch), zap.Bool("if_match", found.IfMatch))
	}
	if s.enc.bucketKey != nil && !found.BucketKey && old.CheckedAt.IsZero() && s.o.EndpointURL == "" {
		log.Warn("the server does not confirm the bucket key; every object costs a KMS request")
	}
}

// conditions reports whether both conditions of a write hold.
func (c Capabilities) conditions() bool { return c.IfNoneMatch && c.IfMatch }

// Ping sends one HEAD for a key that does not exist: nil means that the
// destination answers this daemon's requests. It is the probe of a closed
// circuit, not of the key: that is Probe.
func (s *Store) Ping(ctx context.Context) error {
	err := s.ping(ctx)
	if err != nil && state.ClassOf(err).Meaning().Effect == state.EffectFails {
		s.CloseIdle() // The next one asks the resolver anew.
	}
	return err
}

func (s *Store) ping(ctx context.Context) error {
	_, err := s.headOnce(ctx, s.canaryKey(), "")
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission) && s.Capabilities().ListDenied:
		return nil
	}
	_, err = s.explain(ctx, s.canaryKey(), err)
	return err
}

func (s *Store) canaryKey() string {
	return s.trailPrefix() + ".canary/" + s.o.Instance + "-" + rand.Text()
}

// Resolved reports whether the configured key can be compared with that of an
// object: an alias has to be resolved by a canary first.
func (s *Store) Resolved() bool {
	return !isAlias(s.enc.keyID) || s.Capabilities().PinnedKey != ""
}

// ready prepares a write: the alias is resolved, and conditions that the
// server does not know are checked here.
func (s *Store) ready(ctx context.Context, op, key string, c state.Condition) error {
	if isAlias(s.enc.keyID) && s.Capabilities().PinnedKey == "" {
		if err := s.resolve(ctx, ""); err != nil {
			return fmt.Errorf("resolve %s: %w", s.enc.keyID, err)
		}
	}
	return s.emulate(ctx, op, key, c)
}

// resolve runs the canary unless another goroutine has just pinned another key
// than stale.
func (s *Store) resolve(ctx context.Context, stale string) error {
	s.probeMu.Lock()
	defer s.probeMu.Unlock()
	if s.Capabilities().PinnedKey != stale {
		return nil
	}
	return s.probe(ctx)
}

// confirm turns an answer that does not name the configured key into an error
// that stops the destination. An alias that moved since the canary is resolved
// once more first.
func (s *Store) confirm(ctx context.Context, op string, o state.Object) error {
	err := s.confirmed(o)
	if err != nil && isAlias(s.enc.keyID) && o.SSE == string(s.enc.algorithm) && o.KMSKeyID != "" {
		if perr := s.resolve(ctx, s.Capabilities().PinnedKey); perr == nil {
			err = s.confirmed(o)
		}
	}
	if err == nil {
		return nil
	}
	return &state.Error{Class: state.ClassEncryption, Op: op, Status: http.StatusOK, RequestID: o.RequestID, Err: err}
}
