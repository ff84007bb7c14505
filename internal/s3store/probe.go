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
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
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

// prober sends the canary. It prepares and confirms writes by what the canary
// has shown.
type prober struct {
	o    *Options
	conn *s3conn.Conn
	req  *requests
	dest *destination
	enc  *encryption

	mu sync.Mutex // one canary at a time
}

// Probe is Store.Probe.
func (pr *prober) Probe(ctx context.Context) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.probe(ctx)
}

// canary is one object that is written several times.
type canary struct {
	key  string
	body []byte
	etag string
}

func (c *canary) put(cond archive.Condition) archive.Put {
	sum, sha := md5.Sum(c.body), sha256.Sum256(c.body)
	return archive.Put{
		Key: c.key, Body: bytes.NewReader(c.body), Size: int64(len(c.body)), MD5: sum, SHA256: sha, If: cond,
		Metadata: map[string]string{archive.MetaMD5: hex.EncodeToString(sum[:]), archive.MetaSHA256: hex.EncodeToString(sha[:])},
	}
}

func (pr *prober) probe(ctx context.Context) error {
	c := &canary{key: pr.canaryKey(), body: []byte("s3syncd canary\n")}
	found := pr.dest.unknown()
	steps := []func(context.Context, *canary, *Capabilities) error{
		pr.probeKey, pr.probeHead, pr.probeConditions, pr.probeMD5, pr.probeMissing,
	}
	for _, step := range steps {
		if err := step(ctx, c, &found); err != nil {
			return fmt.Errorf("canary: %w", err)
		}
	}
	found.CheckedAt = pr.conn.Now().UTC()
	before := pr.dest.Capabilities()
	pr.reportKey(before, found)
	pr.reportLacks(before, found)
	pr.dest.setCapabilities(found)
	if pr.o.OnKey != nil && before.PinnedKey != found.PinnedKey {
		pr.o.OnKey()
	}
	return nil
}

// probeKey writes the canary and checks what the server says of its key.
func (pr *prober) probeKey(ctx context.Context, c *canary, found *Capabilities) error {
	o, err := pr.putCanary(ctx, c.put(archive.Condition{}))
	if err != nil {
		return err
	}
	c.etag, found.BucketKey = o.ETag, o.BucketKey
	return pr.dest.pin(s3conn.OpPut, o, found)
}

// probeHead reads the canary's encryption and metadata back: what a server
// says of a write may be an echo.
func (pr *prober) probeHead(ctx context.Context, c *canary, found *Capabilities) error {
	o, err := pr.req.Head(ctx, c.key)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("an object that exists cannot be asked for (s3:GetObject): %w", err)
		}
		return err
	}
	want := c.put(archive.Condition{}).Metadata[archive.MetaMD5]
	if o.Metadata[archive.MetaMD5] != want {
		return &archive.Error{Class: archive.ClassConfiguration, Op: s3conn.OpHead, Err: fmt.Errorf("the server does not keep metadata: %s is %q, want %q", archive.MetaMD5, o.Metadata[archive.MetaMD5], want)}
	}
	return pr.dest.pin(s3conn.OpHead, o, found)
}

// probeConditions asks for what must not be done.
func (pr *prober) probeConditions(ctx context.Context, c *canary, found *Capabilities) (err error) {
	if found.IfNoneMatch, err = pr.refuses(ctx, c.put(archive.Condition{Absent: true}), archive.ErrPrecondition); err != nil {
		return err
	}
	found.IfMatch, err = pr.refuses(ctx, c.put(archive.Condition{ETag: "00000000000000000000000000000000"}), archive.ErrPrecondition)
	return err
}

// probeMD5 sends a wrong Content-MD5, which must not become an object.
func (pr *prober) probeMD5(ctx context.Context, c *canary, found *Capabilities) (err error) {
	p := c.put(archive.Condition{})
	p.MD5[0] ^= 0xff
	found.ContentMD5, err = pr.refuses(ctx, p, errChanged)
	return err
}

// errChanged stands for any error of class changed.
var errChanged = errors.New("refused as changed")

// refuses sends p and reports whether the server refused it as expected. A
// server that takes it, or does not know what it was asked for, does not; any
// other failure is returned.
func (pr *prober) refuses(ctx context.Context, p archive.Put, expected error) (bool, error) {
	_, err := pr.putCanary(ctx, p)
	switch {
	case err == nil, errors.Is(err, archive.ErrUnsupported):
		return false, nil
	case errors.Is(err, expected), errors.Is(expected, errChanged) && archive.ClassOf(err).Rereads():
		return true, nil
	}
	return false, err
}

// putCanary sends what Put would send, but ignores earlier capabilities.
func (pr *prober) putCanary(ctx context.Context, p archive.Put) (archive.Object, error) {
	in := &s3.PutObjectInput{
		ContentType: aws.String(contentBinary), Metadata: p.Metadata, StorageClass: types.StorageClass(pr.o.StorageClass),
	}
	return pr.req.putOnce(ctx, in, p)
}

// probeMissing learns what a missing key answers.
func (pr *prober) probeMissing(ctx context.Context, _ *canary, found *Capabilities) error {
	_, err := pr.req.headOnce(ctx, pr.canaryKey(), "")
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
func (pr *prober) reportKey(old, found Capabilities) {
	if old.PinnedKey != "" && old.PinnedKey != found.PinnedKey {
		pr.conn.Log.Warn("the configured key alias points to another key; new objects are written under it, older ones stay as they are until rekey",
			zap.String("bucket", pr.o.Bucket), zap.String("kms_key_id", pr.o.KMSKeyID),
			zap.String("before", old.PinnedKey), zap.String("now", found.PinnedKey))
	}
}

// reportLacks logs what the destination was found to lack since the last
// canary; a new store assumes that nothing lacks.
func (pr *prober) reportLacks(old, found Capabilities) {
	log := pr.conn.Log.With(zap.String("bucket", pr.o.Bucket), zap.String("prefix", pr.o.Prefix))
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
	if pr.enc.bucketKey != nil && !found.BucketKey && old.CheckedAt.IsZero() && pr.o.EndpointURL == "" {
		log.Warn("the server does not confirm the bucket key; every object costs a KMS request")
	}
}

// conditions reports whether both conditions of a write hold.
func (c Capabilities) conditions() bool { return c.IfNoneMatch && c.IfMatch }

// Ping is Store.Ping.
func (pr *prober) Ping(ctx context.Context) error {
	err := pr.ping(ctx)
	if err != nil && archive.ClassOf(err).Meaning().Effect == archive.EffectFails {
		pr.conn.CloseIdle() // The next one asks the resolver again.
	}
	return err
}

func (pr *prober) ping(ctx context.Context) error {
	_, err := pr.req.headOnce(ctx, pr.canaryKey(), "")
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission) && pr.dest.Capabilities().ListDenied:
		return nil
	}
	_, err = pr.conn.Explain(ctx, pr.canaryKey(), err)
	return err
}

func (pr *prober) canaryKey() string {
	return archive.NewMapper(pr.o.Prefix).TrailPrefix() + ".canary/" + pr.o.Instance + "-" + rand.Text()
}

// ready prepares a write: the alias is resolved, and conditions that the
// server does not know are checked here.
func (pr *prober) ready(ctx context.Context, op, key string, c archive.Condition) error {
	if isAlias(pr.enc.keyID) && pr.dest.Capabilities().PinnedKey == "" {
		if err := pr.resolve(ctx, ""); err != nil {
			return fmt.Errorf("resolve %s: %w", pr.enc.keyID, err)
		}
	}
	return pr.emulate(ctx, op, key, c)
}

// resolve runs the canary unless another goroutine has just pinned another key
// than stale.
func (pr *prober) resolve(ctx context.Context, stale string) error {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if pr.dest.Capabilities().PinnedKey != stale {
		return nil
	}
	return pr.probe(ctx)
}

// confirm turns an answer that does not name the configured key into an error
// that stops the destination. An alias that moved since the canary is resolved
// once more first.
func (pr *prober) confirm(ctx context.Context, op string, o archive.Object) error {
	err := pr.dest.confirmed(o)
	if err != nil && isAlias(pr.enc.keyID) && o.SSE == string(pr.enc.algorithm) && o.KMSKeyID != "" {
		if perr := pr.resolve(ctx, pr.dest.Capabilities().PinnedKey); perr == nil {
			err = pr.dest.confirmed(o)
		}
	}
	if err == nil {
		return nil
	}
	return &archive.Error{Class: archive.ClassEncryption, Op: op, Status: http.StatusOK, RequestID: o.RequestID, Err: err}
}

// emulate checks c by a HEAD where the server would ignore it. A write of
// someone else between the two is not noticed; there is no better on such a
// server.
func (pr *prober) emulate(ctx context.Context, op, key string, c archive.Condition) error {
	caps := pr.dest.Capabilities()
	if (!c.Absent || caps.IfNoneMatch) && (c.ETag == "" || caps.IfMatch) {
		return nil
	}
	return pr.compare(ctx, op, key, c)
}

// compare checks c by a HEAD.
func (pr *prober) compare(ctx context.Context, op, key string, c archive.Condition) error {
	o, err := pr.req.Head(ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.Absent {
			return nil
		}
		return err
	case err != nil:
		return err
	case c.Absent, o.ETag != c.ETag:
		return &archive.Error{Class: archive.ClassTransient, Op: op, Err: fmt.Errorf("%q: %w", key, archive.ErrPrecondition)}
	}
	return nil
}
