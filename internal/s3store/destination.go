package s3store

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// destination is what is known of the bucket: which key it encrypts under, and
// what it can do.
type destination struct {
	o     *Options
	conn  *s3conn.Conn
	enc   *encryption
	marks marks

	mu   sync.Mutex // guards caps
	caps Capabilities
}

// destination names what capabilities were learned about: the bucket as it is
// reached now, whatever part of that the environment says.
func (d *destination) name() string {
	o, effective := d.o, d.conn.Client.Options()
	var b strings.Builder
	for _, p := range []string{
		effective.Region, aws.ToString(effective.BaseEndpoint), o.Profile, o.ExpectedBucketOwner, o.Bucket, o.Prefix,
		o.KMSKeyID, o.SSE, o.StorageClass, strconv.FormatBool(o.BucketKey), o.ACL, d.marks.tags.Encode(),
	} {
		fmt.Fprintf(&b, "%q ", p)
	}
	for _, k := range slices.Sorted(maps.Keys(o.EncryptionContext)) {
		fmt.Fprintf(&b, "%q=%q ", k, o.EncryptionContext[k])
	}
	return strings.TrimSpace(b.String())
}

// Capabilities is Store.Capabilities.
func (d *destination) Capabilities() Capabilities {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.caps
}

// Restore is Store.Restore.
func (d *destination) Restore(c Capabilities) bool {
	if c.CheckedAt.IsZero() || c.Destination != d.name() {
		return false
	}
	d.setCapabilities(c)
	return true
}

func (d *destination) setCapabilities(c Capabilities) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.caps = c
}

// unknown is what a store assumes before the canary: a server that can all.
func (d *destination) unknown() Capabilities {
	return Capabilities{Destination: d.name(), KMSKeyID: d.o.KMSKeyID, IfNoneMatch: true, IfMatch: true, ContentMD5: true}
}

// pin checks an answer to the canary against the configuration itself, not
// against what was pinned before: an alias may have moved.
func (d *destination) pin(op string, o archive.Object, found *Capabilities) error {
	named := o.KMSKeyID != "" && o.SSE == string(d.enc.algorithm)
	if named && isAlias(d.enc.keyID) && isKeyARN(o.KMSKeyID) && !isAlias(o.KMSKeyID) {
		found.PinnedKey = o.KMSKeyID
		return nil
	}
	if named && sameKey(d.enc.keyID, o.KMSKeyID, d.conn.Region()) {
		found.PinnedKey = o.KMSKeyID
		return nil
	}
	if err := d.confirmed(o); err != nil {
		return &archive.Error{Class: archive.ClassEncryption, Op: op, RequestID: o.RequestID, Err: err}
	}
	return &archive.Error{
		Class: archive.ClassEncryption, Op: op, RequestID: o.RequestID,
		Err: fmt.Errorf("the server encrypted %q under %s, which does not resolve %s", o.Key, o.KMSKeyID, d.enc.keyID),
	}
}

// Resolved is Store.Resolved.
func (d *destination) Resolved() bool {
	return !isAlias(d.enc.keyID) || d.Capabilities().PinnedKey != ""
}

// confirmed reports whether an answer to a write names the algorithm and the
// key that were asked for.
func (d *destination) confirmed(o archive.Object) error {
	switch {
	case o.SSE == "":
		return fmt.Errorf("the server did not confirm encryption of %q", o.Key)
	case o.SSE != string(d.enc.algorithm):
		return fmt.Errorf("the server encrypted %q with %s instead of %s", o.Key, o.SSE, d.enc.algorithm)
	case o.KMSKeyID == "":
		return fmt.Errorf("the server did not name the key that it encrypted %q under", o.Key)
	case !d.matchesConfigured(o.KMSKeyID):
		return fmt.Errorf("the server encrypted %q under %s instead of %s", o.Key, o.KMSKeyID, d.enc.keyID)
	}
	return nil
}

// matchesConfigured reports whether serverKey is the configured key, which for
// an alias is the one that the canary found behind it.
func (d *destination) matchesConfigured(serverKey string) bool {
	if pinned := d.Capabilities().PinnedKey; isAlias(d.enc.keyID) && pinned != "" {
		return serverKey == pinned
	}
	return sameKey(d.enc.keyID, serverKey, d.conn.Region())
}

// MatchesKey is Store.MatchesKey.
func (d *destination) MatchesKey(serverKey string) bool {
	if d.matchesConfigured(serverKey) {
		return true
	}
	for _, k := range d.o.AcceptKeys {
		if sameKey(k, serverKey, d.conn.Region()) {
			return true
		}
	}
	return false
}

// KeyVerdict is Store.KeyVerdict.
func (d *destination) KeyVerdict(o archive.Object) archive.KeyVerdict {
	const kms, dsse = string(types.ServerSideEncryptionAwsKms), string(types.ServerSideEncryptionAwsKmsDsse)
	switch {
	case o.SSE != kms && o.SSE != dsse:
		return archive.KeyMissing
	case o.SSE == kms && d.o.SSE == dsse, !d.MatchesKey(o.KMSKeyID):
		return archive.KeyOther
	}
	return archive.KeyOK
}

// supported returns c without what the server does not know; emulate has
// checked that part.
func (d *destination) supported(c archive.Condition) archive.Condition {
	caps := d.Capabilities()
	if !caps.IfNoneMatch {
		c.Absent = false
	}
	if !caps.IfMatch {
		c.ETag = ""
	}
	return c
}
