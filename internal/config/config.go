// Package config turns a YAML file and the environment into one checked struct.
//
// Parsing is strict: an unknown or repeated key, a wrong type and a value out
// of range are faults, and all faults of a file are reported at once, each with
// its position, its dotted path and the form that is accepted. A Config that
// Load, Parse or FromFlags returned is complete (defaults filled in, settings
// inherited, paths cleaned) and consistent, and is never changed afterwards:
// it may be read from any goroutine.
//
// Credentials are never part of a configuration, so a Config may be printed,
// hashed and published as it is.
package config

import (
	"time"

	"github.com/s3syncd/s3syncd/internal/loopback"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Config is the effective configuration.
type Config struct {
	Instance string // the host's name unless configured; [A-Za-z0-9._-]+
	StateDir string // absolute and clean
	S3       S3
	Sources  []Source // at least one
	Watch    Watch
	Upload   Upload
	Manifest Manifest
	Admin    Admin
	Log      Log

	// Warnings are complete sentences about what is legal but probably not
	// meant. They are not part of Canonical.
	Warnings []string

	from     *report  // knows where each setting was written
	prefixes []string // of the sources, as they were written: with {instance}
}

// S3 is what all sources share about the server.
type S3 struct {
	Region                string // "": the AWS environment decides
	EndpointURL           string // "": AWS
	AllowInsecureEndpoint bool
	PathStyle             bool // true where EndpointURL is set, unless configured
	ExpectedBucketOwner   string
	ACL                   string // canned, of every write; "": none is sent
}

// Source is one directory and where it is archived. Settle, MaxDelay, Region
// and ExpectedBucketOwner are the effective values: the source's own, else
// those of Watch and S3.
type Source struct {
	Name                string // unique; the base name of Path unless configured
	Path                string // absolute and clean; it need not exist
	Bucket              string
	Prefix              string // {instance} replaced, no slash at either end; may be ""
	KMSKeyID            string // never ""
	AcceptKMSKeys       []string
	TakesOver           []string // chains of this instance whose hosts are gone for good
	SSE                 string   // aws:kms | aws:kms:dsse
	BucketKey           bool
	EncryptionContext   map[string]string
	StorageClass        string            // "": the server's default
	Tags                map[string]string // of every object
	Include             []string
	Exclude             []string
	IgnoreFiles         bool
	Symlinks            string // skip | follow
	Hardlinks           string // same-owner | allow | skip
	Deletes             string // keep | mirror
	MaxDeletes          int
	CrossMounts         bool
	Identity            string // inode | size-mtime: what shows that a file has not changed
	Settle              time.Duration
	MaxDelay            time.Duration
	Region              string
	ExpectedBucketOwner string
	Profile             string // of the shared AWS configuration; "": the AWS environment decides
}

// PrefixOf returns the Prefix that source i has on the host of this name, with
// the same configuration.
func (c *Config) PrefixOf(i int, instance string) string { return prefixOf(c.prefixes[i], instance) }

// Watch is when the program searches for changes. An interval of 0 is off.
type Watch struct {
	Settle              time.Duration
	MaxDelay            time.Duration
	RescanInterval      time.Duration
	PollInterval        time.Duration
	RemoteCheckInterval time.Duration
	Reread              time.Duration // the goal for reading every file again; later after a pause or an outage. 0: never
}

// Upload bounds the uploads of all sources together. Sizes are bytes.
type Upload struct {
	Workers        int
	PartSize       int64
	SinglePutMax   int64
	MemoryLimit    int64 // at least PartSize and one BufferSize
	BandwidthLimit int64 // bytes a second; 0: none
}

// Manifest is how the audit trail is published and kept.
type Manifest struct {
	FlushInterval  time.Duration
	DigestInterval time.Duration // 0: only at flush, stop and the end of sync
	MaxUnpublished int64         // records
	MaxRecords     int           // records in one manifest
	Layout         string        // flat | hive
	ListSkipped    string        // sync | all | none
	LocalDir       string        // StateDir/manifests unless configured
	KeepLocal      time.Duration // 0: no limit by age
	KeepLocalSize  int64         // bytes; 0: no limit by size
	Sign           string        // none | ed25519:FILE | kms:KEY
	ObjectLock     ObjectLock
}

// ObjectLock is the retention of what is written under _manifests/.
type ObjectLock struct {
	Mode string // GOVERNANCE | COMPLIANCE; "": none, and Days is 0
	Days int
}

// Admin is the HTTP listener and the control socket.
type Admin struct {
	Listen    string // host:port; "": no listener
	Page      bool
	WebConfig string // absolute; "": neither TLS nor authentication
	Socket    string // absolute; control.sock in $RUNTIME_DIRECTORY, else in StateDir, unless configured

	defaultSocket bool // Socket was derived; Canonical leaves it open
}

// DerivedSocket reports whether Socket was not configured: a daemon that was
// started with other directories listens elsewhere.
func (a *Admin) DerivedSocket() bool { return a.defaultSocket }

// Loopback reports whether only this machine reaches Listen.
func (a *Admin) Loopback() bool {
	return loopback.Address(a.Listen)
}

// SocketTooLong reports whether Socket was derived and is too long for one.
func (a *Admin) SocketTooLong() bool { return a.defaultSocket && len(a.Socket) > maxSocketBytes }

// Log is what is logged and how.
type Log struct {
	Level  string // debug | info | warn | error
	Format string // json | console
}

// BufferSize is the largest file that is read into memory whole, in bytes.
// Upload.MemoryLimit has room for one beside one part.
const BufferSize = 8 * mib

// MaxFileSize bounds a configuration file, in bytes.
const MaxFileSize = 256 * kib

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// defaults returns the configuration of an empty file, as far as it does not
// depend on the host, the environment or other settings.
func defaults() *Config {
	return &Config{
		StateDir: "/var/lib/s3syncd",
		Watch: Watch{
			Settle: 2 * time.Second, MaxDelay: 15 * time.Minute,
			RescanInterval: time.Hour, PollInterval: time.Minute, RemoteCheckInterval: 24 * time.Hour,
			Reread: 30 * day,
		},
		Upload: Upload{Workers: 16, PartSize: 16 * mib, SinglePutMax: 64 * mib, MemoryLimit: 128 * mib},
		Manifest: Manifest{
			FlushInterval: 5 * time.Minute, DigestInterval: time.Hour,
			MaxUnpublished: 1_000_000, MaxRecords: 50_000,
			Layout: "flat", ListSkipped: "sync",
			KeepLocal: 30 * day, KeepLocalSize: gib, Sign: "none",
		},
		Admin: Admin{Listen: "127.0.0.1:9810"},
		Log:   Log{Level: "info", Format: "json"},
	}
}

// defaultSource returns a source of which nothing is configured.
func defaultSource() Source {
	return Source{
		SSE: "aws:kms", BucketKey: true,
		Symlinks: archive.SymlinksSkip, Hardlinks: string(safefs.LinksSameOwner), Deletes: archive.DeletesKeep, MaxDeletes: 100, CrossMounts: true, Identity: "inode",
	}
}
