package config

import (
	"math"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// option is one key of a block. Exactly one of the fields behind key is set.
type option struct {
	key     string
	value   value
	list    *list
	dict    *dict
	block   []option
	sources bool // the list of sources, one block each
}

// list is an option that is a list of strings.
type list struct {
	p    *[]string
	item text // how one of them is checked; its p is not used
}

// dict is an option that maps strings to strings.
type dict struct{ p *map[string]string }

// options binds every key of a configuration to its field, in the order of the
// file. Those of the sources are in Source.options.
func (c *Config) options() []option {
	return []option{
		{key: "instance", value: text{p: &c.Instance, form: instanceForm, check: checkInstance}},
		{key: "state_dir", value: absolutePath(&c.StateDir, false)},
		{key: "s3", block: c.S3.options()},
		{key: "sources", sources: true},
		{key: "watch", block: c.Watch.options()},
		{key: "upload", block: c.Upload.options()},
		{key: "manifest", block: c.Manifest.options()},
		{key: "admin", block: []option{
			{key: "listen", value: text{p: &c.Admin.Listen, optional: true, form: listenForm, check: checkListen}},
			{key: "page", value: boolean{&c.Admin.Page}},
			{key: "web_config", value: absolutePath(&c.Admin.WebConfig, true)},
			{key: "socket", value: text{p: &c.Admin.Socket, optional: true, form: socketForm, check: checkSocket}},
		}},
		{key: "log", block: []option{
			{key: "level", value: enum{&c.Log.Level, []string{"debug", "info", "warn", "error"}}},
			{key: "format", value: enum{&c.Log.Format, []string{"json", "console"}}},
		}},
	}
}

func (s *S3) options() []option {
	return []option{
		{key: "region", value: region(&s.Region)},
		{key: "endpoint_url", value: text{p: &s.EndpointURL, optional: true, form: endpointForm, check: checkEndpoint}},
		{key: "allow_insecure_endpoint", value: boolean{&s.AllowInsecureEndpoint}},
		{key: "path_style", value: boolean{&s.PathStyle}},
		{key: "expected_bucket_owner", value: account(&s.ExpectedBucketOwner)},
		{key: "acl", value: enum{&s.ACL, []string{"", "bucket-owner-full-control", "bucket-owner-read", "private"}}},
	}
}

func (w *Watch) options() []option {
	return []option{
		{key: "settle", value: duration{p: &w.Settle, min: minSettle}},
		{key: "max_delay", value: duration{p: &w.MaxDelay, min: minMaxDelay}},
		{key: "rescan_interval", value: interval(&w.RescanInterval)},
		{key: "poll_interval", value: interval(&w.PollInterval)},
		{key: "remote_check_interval", value: interval(&w.RemoteCheckInterval)},
		{key: "reread", value: interval(&w.Reread)},
	}
}

func (u *Upload) options() []option {
	return []option{
		{key: "workers", value: integer[int]{&u.Workers, 1, 256}},
		{key: "part_size", value: size{&u.PartSize, 5 * mib, 5 * gib}},
		{key: "single_put_max", value: size{&u.SinglePutMax, 1, 5 * gib}},
		{key: "memory_limit", value: size{&u.MemoryLimit, 5*mib + BufferSize, math.MaxInt64}},
		{key: "bandwidth_limit", value: size{&u.BandwidthLimit, 0, math.MaxInt64}},
	}
}

func (m *Manifest) options() []option {
	return []option{
		{key: "flush_interval", value: duration{p: &m.FlushInterval, min: time.Second}},
		{key: "digest_interval", value: duration{p: &m.DigestInterval, min: time.Second, max: 31 * day, zero: true}}, // No reader believes a longer promise.
		{key: "max_unpublished", value: integer[int64]{&m.MaxUnpublished, 1, 1_000_000_000}},
		{key: "max_records", value: integer[int]{&m.MaxRecords, 1, 10_000_000}},
		{key: "layout", value: enum{&m.Layout, []string{"flat", "hive"}}},
		{key: "list_skipped", value: enum{&m.ListSkipped, []string{"sync", "all", "none"}}},
		{key: "local_dir", value: absolutePath(&m.LocalDir, true)},
		{key: "keep_local", value: interval(&m.KeepLocal)},
		{key: "keep_local_size", value: size{&m.KeepLocalSize, 0, math.MaxInt64}},
		{key: "sign", value: text{p: &m.Sign, form: signForm, check: checkSign}},
		{key: "object_lock", block: []option{
			{key: "mode", value: enum{&m.ObjectLock.Mode, []string{"", "GOVERNANCE", "COMPLIANCE"}}},
			{key: "days", value: integer[int]{&m.ObjectLock.Days, 0, 3650}},
		}},
	}
}

// options binds the keys of one source.
func (s *Source) options() []option {
	pattern := text{form: "a gitignore pattern", check: checkPattern}
	key := text{form: kmsForm, check: checkKMSKey}
	chain := text{form: chainForm, check: checkChain}
	return []option{
		{key: "name", value: text{p: &s.Name, form: nameForm, check: checkName}},
		{key: "path", value: absolutePath(&s.Path, false)},
		{key: "bucket", value: text{p: &s.Bucket, form: bucketForm, check: checkBucket}},
		{key: "prefix", value: text{p: &s.Prefix, optional: true, form: prefixForm, check: checkPrefix}},
		{key: "kms_key_id", value: text{p: &s.KMSKeyID, form: kmsForm, check: checkKMSKey}},
		{key: "accept_kms_keys", list: &list{&s.AcceptKMSKeys, key}},
		{key: "takes_over", list: &list{&s.TakesOver, chain}},
		{key: "sse", value: enum{&s.SSE, []string{"aws:kms", "aws:kms:dsse"}}},
		{key: "bucket_key", value: boolean{&s.BucketKey}},
		{key: "encryption_context", dict: &dict{&s.EncryptionContext}},
		{key: "storage_class", value: text{p: &s.StorageClass, optional: true, form: storageClassForm, check: checkStorageClass}},
		{key: "tags", dict: &dict{&s.Tags}},
		{key: "include", list: &list{&s.Include, pattern}},
		{key: "exclude", list: &list{&s.Exclude, pattern}},
		{key: "ignore_files", value: boolean{&s.IgnoreFiles}},
		{key: "symlinks", value: enum{&s.Symlinks, []string{archive.SymlinksSkip, archive.SymlinksFollow}}},
		{key: "hardlinks", value: enum{&s.Hardlinks, []string{string(safefs.LinksSameOwner), string(safefs.LinksAllow), string(safefs.LinksSkip)}}},
		{key: "deletes", value: enum{&s.Deletes, []string{archive.DeletesKeep, archive.DeletesMirror}}},
		{key: "max_deletes", value: integer[int]{&s.MaxDeletes, 0, 1_000_000_000}},
		{key: "cross_mounts", value: boolean{&s.CrossMounts}},
		{key: "identity", value: enum{&s.Identity, []string{"inode", "size-mtime"}}},
		{key: "settle", value: duration{p: &s.Settle, min: minSettle}},
		{key: "max_delay", value: duration{p: &s.MaxDelay, min: minMaxDelay}},
		{key: "region", value: region(&s.Region)},
		{key: "expected_bucket_owner", value: account(&s.ExpectedBucketOwner)},
		{key: "profile", value: text{p: &s.Profile, optional: true, form: "the name of a profile in the shared AWS configuration"}},
	}
}

const (
	minSettle   = 10 * time.Millisecond
	minMaxDelay = 100 * time.Millisecond
)

func interval(p *time.Duration) value { return duration{p: p, min: time.Second, zero: true} }

func absolutePath(p *string, optional bool) value {
	return text{p: p, optional: optional, form: "an absolute path", check: checkAbsolute}
}

func region(p *string) value {
	return text{p: p, optional: true, form: "a region such as us-east-1", check: checkRegion}
}

func account(p *string) value {
	return text{p: p, optional: true, digits: true, form: "an AWS account number of 12 digits", check: checkAccount}
}

func find(options []option, key string) (option, bool) {
	for _, o := range options {
		if o.key == key {
			return o, true
		}
	}
	return option{}, false
}

func keys(options []option) []string {
	list := make([]string, len(options))
	for i, o := range options {
		list[i] = o.key
	}
	return list
}

// names lists the keys of a block for a message.
func names(options []option) string { return strings.Join(keys(options), ", ") }

// allKeys returns the dotted path of every option, those of a source below
// sources[].
func allKeys(options []option, block string) []string {
	var list []string
	for _, o := range options {
		key := join(block, o.key)
		list = append(list, key)
		list = append(list, allKeys(o.block, key)...)
		if o.sources {
			list = append(list, allKeys((&Source{}).options(), key+"[]")...)
		}
	}
	return list
}

func join(block, key string) string {
	if block == "" {
		return key
	}
	return block + "." + key
}

func lastKey(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// keyText returns a key that is not known as a path shows it: as it is where it
// looks like one of ours, else quoted.
func keyText(key string) string {
	if matches(key, 64, "_-") {
		return key
	}
	return quote(key)
}
