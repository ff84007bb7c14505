package s3store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Check names one thing that an examination tries.
type Check string

// The checks, in the order in which they are tried.
const (
	CheckList        Check = "list"
	CheckMissing     Check = "missing-key"  // what the answer for a missing key is
	CheckPut         Check = "put"          // one PutObject with the headers of production
	CheckEncryption  Check = "encryption"   // the server names the configured key
	CheckHead        Check = "head"         // the object can be asked for, and has its metadata
	CheckGet         Check = "get"          // and read
	CheckConditions  Check = "conditions"   // If-Match and If-None-Match are honored
	CheckMD5         Check = "content-md5"  // a wrong Content-MD5 is refused
	CheckCreate      Check = "multipart"    // a multipart upload can be opened
	CheckPart        Check = "part"         // and sent to
	CheckListParts   Check = "list-parts"   // and asked for what it holds
	CheckComplete    Check = "complete"     // and finished
	CheckAbort       Check = "abort"        // and given up
	CheckListUploads Check = "list-uploads" // open uploads can be found
	CheckVersions    Check = "versions"     // versions are kept, and can be listed
	CheckLock        Check = "object-lock"  // a document can have a retention
	CheckDelete      Check = "delete"       // what was written can be deleted
)

// Trial is how one check ended.
type Trial struct {
	Check  Check
	Err    error  // nil: it works
	Lack   string // what the server does not do, which is worked around
	Skip   string // why it was not tried
	Detail string // what was learned
}

// Examination is what an examination of a destination found.
type Examination struct {
	Trials []Trial
	// Left are the keys of what it wrote and could not remove.
	Left      []string
	Key       string // the KMS key as the server names it, "" unless confirmed
	Versioned bool
	Offset    time.Duration // how far the server's clock is ahead
}

// examiner is one examination under way.
type examiner struct {
	Examination

	o       *Options
	conn    *s3conn.Conn
	req     *requests
	dest    *destination
	prober  *prober
	uploads *uploads
	store   *Store // for deletions

	canary  *canary
	written []string
	found   Capabilities

	body, wanted int64 // of the largest part: what is sent, and what production sends
}

// examineLock is the retention of the document that proves that there can be
// one: it outlives the examination by no more.
const examineLock = time.Minute

// examineBody is the largest body that an examination sends.
const examineBody = 64 << 20

// minPart is the smallest part that S3 takes but for the last.
const minPart = 5 << 20

// Examine tries everything that a daemon does at this destination with small
// objects below _manifests/.canary/, and then removes them where that is
// granted; with deletes also what a mirror does, on an object of its own in the
// prefix. Body is the largest body that production sends: one part has that size,
// up to 64 MiB, because a proxy may have a limit of its own. A check that needs what another did not bring is skipped. It blocks
// for as long as its requests take; what cannot be reached is asked once more by
// each check only until the first gets no answer.
func (s *Store) Examine(ctx context.Context, deletes bool, body int64) Examination {
	e := &examiner{
		o: s.o, conn: s.conn, req: s.requests, dest: s.dest, prober: s.prober, uploads: s.uploads, store: s, found: s.dest.unknown(), body: min(max(body, minPart), examineBody), wanted: body,
		canary: &canary{key: s.prober.canaryKey(), body: []byte("s3syncd preflight\n")},
	}
	s.prober.mu.Lock()
	defer s.prober.mu.Unlock()
	for _, step := range []func(context.Context){
		e.list, e.missing, e.put, e.read, e.conditions, e.multipart, e.listUploads, e.versions, e.lock,
	} {
		if step(ctx); e.unanswered() != nil {
			return e.Examination
		}
	}
	e.cleanUp(ctx, deletes)
	e.Offset = s.conn.ClockOffset()
	return e.Examination
}

// unanswered returns the error of the first check that got no answer.
func (e *Examination) unanswered() error {
	for _, t := range e.Trials {
		if t.Err != nil && NoAnswer(t.Err) {
			return t.Err
		}
	}
	return nil
}

// NoAnswer reports whether err says that no answer came, or only that the
// request should come later.
func NoAnswer(err error) bool {
	e, ok := errors.AsType[*archive.Error](err)
	return !ok || e.Class.Throttles() || e.Status >= 500 ||
		e.Status == 0 && (e.Class.Passes() || e.Class.Meaning().EveryRequest)
}

// unconfirmedKey: nothing more is sent.
const unconfirmedKey = "the server has not confirmed the key"

func (e *examiner) note(c Check, err error) bool {
	e.Trials = append(e.Trials, Trial{Check: c, Err: err})
	return err == nil
}

func (e *examiner) skip(why string, checks ...Check) {
	for _, c := range checks {
		e.Trials = append(e.Trials, Trial{Check: c, Skip: why})
	}
}

// newKey returns the key of another object to write, and remembers it.
func (e *examiner) newKey() string {
	k := e.prober.canaryKey()
	e.written = append(e.written, k)
	return k
}

func (e *examiner) list(ctx context.Context) {
	_, err := e.conn.Client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{
		Bucket: aws.String(e.o.Bucket), Prefix: aws.String(archive.NewMapper(e.o.Prefix).Prefix()), ExpectedBucketOwner: e.conn.Owner(), MaxKeys: aws.Int32(1),
	})
	e.note(CheckList, e.wrap(ctx, s3conn.OpList, "", err))
}

// wrap is fault for nil errors too.
func (e *examiner) wrap(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	return e.conn.Fault(ctx, op, key, err)
}

func (e *examiner) missing(ctx context.Context) {
	_, err := e.req.headOnce(ctx, e.prober.canaryKey(), "")
	t := Trial{Check: CheckMissing}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		t.Detail = "a missing object answers 404"
	case errors.Is(err, fs.ErrPermission):
		e.found.ListDenied = true
		t.Lack = "a missing object answers 403: conditional writes have to decide"
	default:
		t.Err = err
	}
	e.Trials = append(e.Trials, t)
}

func (e *examiner) put(ctx context.Context) {
	e.written = append(e.written, e.canary.key)
	o, err := e.prober.putCanary(ctx, e.canary.put(archive.Condition{}))
	if !e.note(CheckPut, err) {
		e.skip("nothing could be written", CheckEncryption)
		return
	}
	e.canary.etag = o.ETag
	e.Versioned = o.VersionID != "" && o.VersionID != "null"
	if err := e.dest.pin(s3conn.OpPut, o, &e.found); err != nil {
		e.encrypted(err)
	}
}

// readable reports whether a canary was written.
func (e *examiner) readable() bool { return e.canary.etag != "" }

// read asks for the canary and reads it. What a server says of a write may be an
// echo: encryption is confirmed by both.
func (e *examiner) read(ctx context.Context) {
	if !e.readable() {
		e.skip("nothing could be written", CheckHead, CheckGet)
		return
	}
	o, err := e.req.headOnce(ctx, e.canary.key, "")
	if want := e.canary.put(archive.Condition{}).Metadata[archive.MetaMD5]; err == nil && o.Metadata[archive.MetaMD5] != want {
		err = &archive.Error{Class: archive.ClassConfiguration, Op: s3conn.OpHead, Err: fmt.Errorf("the server does not keep metadata: %s is %q, want %q", archive.MetaMD5, o.Metadata[archive.MetaMD5], want)}
	}
	asked := e.note(CheckHead, err)
	if !slices.ContainsFunc(e.Trials, func(t Trial) bool { return t.Check == CheckEncryption }) {
		if asked {
			err = e.dest.pin(s3conn.OpHead, o, &e.found)
		} else {
			err = nil // The answer to the write has to do.
		}
		e.encrypted(err)
	}
	e.note(CheckGet, e.compareBody(ctx))
}

// encrypted notes whether the key was confirmed.
func (e *examiner) encrypted(err error) {
	t := Trial{Check: CheckEncryption, Err: err}
	if err == nil {
		e.Key, t.Detail = e.found.PinnedKey, "under "+e.found.PinnedKey
		e.dest.setCapabilities(e.found) // Multipart answers are compared with it.
	}
	e.Trials = append(e.Trials, t)
}

func (e *examiner) compareBody(ctx context.Context) error {
	r, _, err := e.req.Get(ctx, e.canary.key)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r, 1<<10))
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && !bytes.Equal(body, e.canary.body) {
		err = &archive.Error{Class: archive.ClassConfiguration, Op: s3conn.OpGet, Err: fmt.Errorf("%q was written with %d bytes and read with %d others", e.canary.key, len(e.canary.body), len(body))}
	}
	return err
}

// conditions asks for what must not be done.
func (e *examiner) conditions(ctx context.Context) {
	if e.Key == "" {
		e.skip(unconfirmedKey, CheckConditions, CheckMD5)
		return
	}
	t := Trial{Check: CheckConditions}
	if t.Err = e.prober.probeConditions(ctx, e.canary, &e.found); t.Err == nil && !e.found.conditions() {
		t.Lack = "conditional writes are ignored: a HEAD before each write takes their place"
	}
	e.Trials = append(e.Trials, t)
	t = Trial{Check: CheckMD5}
	if t.Err = e.prober.probeMD5(ctx, e.canary, &e.found); t.Err == nil && !e.found.ContentMD5 {
		t.Lack = "a wrong Content-MD5 is not refused: the SHA-256 that goes with it has to do"
	}
	e.Trials = append(e.Trials, t)
	e.dest.setCapabilities(e.found)
}

// multipart sends two parts as a file above single_put_max goes, and gives
// another upload up.
func (e *examiner) multipart(ctx context.Context) {
	after := []Check{CheckPart, CheckListParts, CheckComplete, CheckAbort}
	if e.Key == "" {
		e.skip(unconfirmedKey, append([]Check{CheckCreate}, after...)...)
		return
	}
	key := e.newKey()
	id, _, err := e.uploads.Create(ctx, key, nil)
	if !e.note(CheckCreate, err) {
		e.skip("no upload could be opened", after...)
		return
	}
	parts, whole, err := e.twoParts(ctx, key, id)
	if err != nil {
		err = fmt.Errorf("a body of %d bytes: %w", e.body, err)
	}
	part := Trial{Check: CheckPart, Err: err, Detail: fmt.Sprintf("a body of %d bytes", e.body)}
	if err == nil && e.wanted > e.body {
		part.Lack = fmt.Sprintf("bodies of up to %d bytes were tried, files here are sent in bodies of up to %d: a limit in between shows only then", e.body, e.wanted)
	}
	if e.Trials = append(e.Trials, part); err == nil {
		_, err = e.uploads.ListParts(ctx, key, id)
		e.note(CheckListParts, err)
		_, err = e.uploads.Complete(ctx, archive.Complete{Key: key, UploadID: id, Parts: parts, Size: e.body + 1, CRC32: whole})
		e.note(CheckComplete, err)
		id, _, err = e.uploads.Create(ctx, key, nil)
	} else {
		e.skip("no part could be sent", CheckListParts, CheckComplete)
		err = nil
	}
	if err == nil {
		err = e.uploads.Abort(ctx, key, id)
	}
	e.note(CheckAbort, err)
}

func (e *examiner) twoParts(ctx context.Context, key, id string) (parts []archive.Part, whole uint32, err error) {
	body := make([]byte, e.body+1)
	_, _ = rand.Read(body) // Never fails.
	for i, b := range [][]byte{body[:e.body], body[e.body:]} {
		p, err := e.uploads.UploadPart(ctx, key, id, int32(i)+1, bytes.NewReader(b), int64(len(b)), crc32.ChecksumIEEE(b))
		if err != nil {
			return nil, 0, err
		}
		parts = append(parts, p)
	}
	return parts, crc32.ChecksumIEEE(body), nil
}

func (e *examiner) listUploads(ctx context.Context) {
	_, err := e.conn.Client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{
		Bucket: aws.String(e.o.Bucket), Prefix: aws.String(archive.NewMapper(e.o.Prefix).Prefix()), ExpectedBucketOwner: e.conn.Owner(), MaxUploads: aws.Int32(1),
	})
	e.note(CheckListUploads, e.wrap(ctx, s3conn.OpUploads, "", err))
}

func (e *examiner) versions(ctx context.Context) {
	_, err := e.conn.Client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{
		Bucket: aws.String(e.o.Bucket), Prefix: aws.String(archive.NewMapper(e.o.Prefix).Prefix()), ExpectedBucketOwner: e.conn.Owner(), MaxKeys: aws.Int32(1),
	})
	t := Trial{Check: CheckVersions, Err: e.wrap(ctx, s3conn.OpVersions, "", err)}
	if e.readable() && !e.Versioned {
		t.Lack = "the bucket keeps no versions: what is overwritten or deleted is gone"
	}
	e.Trials = append(e.Trials, t)
}

// lock writes a document with a short retention.
func (e *examiner) lock(ctx context.Context) {
	switch {
	case e.o.ObjectLock.Mode == "":
		return
	case e.Key == "":
		e.skip(unconfirmedKey, CheckLock)
		return
	}
	c := &canary{key: e.prober.canaryKey(), body: e.canary.body}
	in := &s3.PutObjectInput{
		ContentType: aws.String(contentBinary), ObjectLockMode: types.ObjectLockMode(e.o.ObjectLock.Mode),
		ObjectLockRetainUntilDate: aws.Time(e.conn.Now().Add(examineLock)),
	}
	_, err := e.req.putOnce(ctx, in, c.put(archive.Condition{Absent: true}))
	if e.note(CheckLock, err) {
		e.Left = append(e.Left, c.key)
	}
}

// cleanUp deletes what was written, and reports whether that is granted.
func (e *examiner) cleanUp(ctx context.Context, deletes bool) {
	if !e.readable() {
		if deletes {
			e.skip("nothing could be written", CheckDelete)
		}
		return
	}
	var refused error
	if deletes && e.Key != "" {
		refused = e.mirror(ctx)
	}
	for _, k := range e.written {
		if _, err := e.store.Delete(ctx, k, archive.Condition{}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			e.Left = append(e.Left, k)
			if !deletes {
				refused = err
			}
		}
	}
	e.note(CheckDelete, refused)
}

// mirror deletes an object of the data, as a mirrored source does.
func (e *examiner) mirror(ctx context.Context) error {
	c := &canary{
		key:  archive.NewMapper(e.o.Prefix).Prefix() + ".s3syncd-preflight-" + strings.ToLower(e.o.Instance+"-"+rand.Text()),
		body: e.canary.body,
	}
	_, err := e.prober.putCanary(ctx, c.put(archive.Condition{Absent: true}))
	if err != nil {
		return err
	}
	if _, err = e.store.Delete(ctx, c.key, archive.Condition{}); err != nil {
		e.Left = append(e.Left, c.key)
	}
	return err
}
