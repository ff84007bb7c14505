package trail

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// TimeFormat is the time in a document's name, UTC.
const TimeFormat = "20060102_150405"

// DigestDirHive holds the digests in layout hive. Query engines pass over names
// that begin with an underscore.
const DigestDirHive = "_digests"

// KeysDir holds the public keys that signatures are checked with.
const KeysDir = "keys"

// Name is what a manifest's or digest's name says.
type Name struct {
	Digest   bool
	Time     time.Time // UTC, whole seconds
	Instance string
	Chain    string
	Sequence uint64
	N        int // manifests: 1 for the first of its digest; digests: 0
	Hive     bool
}

var namePattern = regexp.MustCompile(`^(manifest|digest)_([0-9]{8}_[0-9]{6})_(` + NamePart + `)_([0-9a-f]{8})_([0-9]{8,20})(?:-([1-9][0-9]{0,8}))?\.(json|jsonl\.gz)$`)

// String returns the base name. ParseName reads it back.
func (n Name) String() string {
	s := fmt.Sprintf("%s_%s_%s_%08d", n.Time.UTC().Format(TimeFormat), n.Instance, n.Chain, n.Sequence)
	if n.Digest {
		return "digest_" + s + ".json"
	}
	if n.N > 1 {
		s += "-" + strconv.Itoa(n.N)
	}
	if n.Hive {
		return "manifest_" + s + ".jsonl.gz"
	}
	return "manifest_" + s + ".json"
}

// Path returns the document's path below the trail's prefix, with slashes.
func (n Name) Path() string {
	switch {
	case !n.Hive:
		return n.String()
	case n.Digest:
		return path.Join(DigestDirHive, n.String())
	}
	return path.Join("dt="+n.Time.UTC().Format(time.DateOnly), "instance="+n.Instance, n.String())
}

// ParseName reads the name of a manifest or digest, with or without the
// directories before it, and reports whether it is one. Hive is only known of a
// manifest: a digest has the same name in both layouts.
func ParseName(s string) (n Name, ok bool) {
	m := namePattern.FindStringSubmatch(path.Base(s))
	if m == nil {
		return Name{}, false
	}
	at, err := time.Parse(TimeFormat, m[2])
	if err != nil {
		return Name{}, false
	}
	seq, err := strconv.ParseUint(m[5], 10, 64)
	if err != nil {
		return Name{}, false
	}
	n = Name{Digest: m[1] == "digest", Time: at, Instance: m[3], Chain: m[4], Sequence: seq, Hive: m[7] == "jsonl.gz"}
	if !n.Digest {
		n.N = 1
	}
	if m[6] != "" {
		if n.N, err = strconv.Atoi(m[6]); err != nil {
			return Name{}, false
		}
	}
	// One document has one name: -1, an overlong number and the like are not ours.
	if path.Base(s) != n.String() {
		return Name{}, false
	}
	return n, true
}

// Before reports whether n precedes m in their chain.
func (n Name) Before(m Name) bool {
	if n.Sequence != m.Sequence {
		return n.Sequence < m.Sequence
	}
	if n.Digest != m.Digest {
		return m.Digest
	}
	return n.N < m.N
}

// ConfigName returns the name of a configuration object.
func ConfigName(sha string) string { return "config_" + sha + ".json" }

// NotBefore returns now in whole seconds, or last where now lies a little before
// it: the time in names goes back only with an event.
func NotBefore(now, last time.Time) time.Time {
	now = now.UTC().Truncate(time.Second)
	if now.Before(last) && !archive.GoesBack(last, now) {
		return last.UTC().Truncate(time.Second)
	}
	return now
}

// ConfigPattern matches the names of configuration objects.
var ConfigPattern = regexp.MustCompile(`^config_[0-9a-f]{64}\.json$`)

// NamePart is what an instance may consist of.
const NamePart = `[A-Za-z0-9._-]+`

// SignatureSuffix ends the name of a digest's signature, in place of .json.
const SignatureSuffix = ".sig"

// Layout is how manifests are encoded and where they stand.
type Layout string

// The layouts.
const (
	LayoutFlat Layout = "flat" // JSON arrays beside the digests
	LayoutHive Layout = "hive" // gzipped JSON lines, partitioned by day and instance
)

// The reasons for a digest.
const (
	ReasonStart    = "start"    // a run begins
	ReasonInterval = "interval" // DigestInterval has passed
	ReasonFlush    = "flush"    // someone asked
	ReasonStop     = "stop"     // the process ends in order; silence follows
	ReasonFinal    = "final"    // the chain ends
)
