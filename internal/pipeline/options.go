package pipeline

import (
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/trail"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// StoreOptions are those of the destination of c.
func (e *Session) StoreOptions(c config.Source, log *zap.Logger) s3store.Options {
	return s3store.Options{
		Region: c.Region, EndpointURL: e.Config.S3.EndpointURL, PathStyle: e.Config.S3.PathStyle,
		AllowInsecure: e.Config.S3.AllowInsecureEndpoint, ExpectedBucketOwner: c.ExpectedBucketOwner, Profile: c.Profile,
		Bucket: c.Bucket, Prefix: c.Prefix, Instance: e.Config.Instance,
		KMSKeyID: c.KMSKeyID, AcceptKeys: c.AcceptKMSKeys, SSE: c.SSE, BucketKey: c.BucketKey,
		EncryptionContext: c.EncryptionContext, StorageClass: c.StorageClass, ACL: e.Config.S3.ACL, Tags: c.Tags,
		ObjectLock: s3store.ObjectLock{Mode: e.Config.Manifest.ObjectLock.Mode, Days: e.Config.Manifest.ObjectLock.Days},
		Workers:    e.Config.Upload.Workers,
		Log:        log.Named("s3"), Metrics: e.Metrics.Store,
	}
}

func (e *Session) flusherOptions(s *Source) manifest.Options {
	m := e.Config.Manifest
	if m.DigestInterval == 0 {
		m.DigestInterval = never
	}
	return manifest.Options{
		Source: s.Config.Name, Instance: e.Config.Instance, Bucket: s.Config.Bucket, Mapper: s.Mapper,
		FlushInterval: m.FlushInterval, DigestInterval: m.DigestInterval, StopTimeout: e.Grace.Publish,
		MaxRecords: m.MaxRecords, Layout: trail.Layout(m.Layout),
		LocalDir:  e.CopiesOf(s.Config.Name),
		KeepLocal: m.KeepLocal, KeepLocalSize: m.KeepLocalSize,
		LateStart: e.once,
		Version:   e.Program.Version, ConfigSHA256: e.Config.SourceSHA256(s.number),
		Now:     s.Store.Now,
		Pending: func() (int64, time.Time) { p := s.Pending(); return p.Total(), p.Oldest },
		Log:     e.Log.Named("manifest"), Metrics: e.Metrics.manifest,
	}
}

// never is the interval of what is switched off.
const never = 100 * 365 * 24 * time.Hour

func (e *Session) poolOptions() uploader.Options {
	u := e.Config.Upload
	return uploader.Options{
		Workers: e.Budget.Workers, PartSize: u.PartSize, SinglePutMax: u.SinglePutMax,
		MemoryLimit: e.Budget.Buffers, BandwidthLimit: u.BandwidthLimit, Drain: e.Grace.Drain, ListSkips: e.ListSkips,
		Log: e.Log.Named("uploader"), Metrics: e.Metrics.uploader,
	}
}

// WatchOptions are those of the watcher of s.
func (e *Session) WatchOptions(s *Source) watcher.Options {
	w, memory := e.Config.Watch, placeMemoryOf(s)
	return watcher.Options{
		Source: s.Config.Name, Root: s.Root, Settle: s.Config.Settle, MaxDelay: s.Config.MaxDelay,
		RescanInterval: w.RescanInterval, PollInterval: w.PollInterval,
		Include: s.Config.Include, Exclude: s.Config.Exclude, IgnoreFiles: s.Config.IgnoreFiles,
		Hardlinks: safefs.LinkPolicy(s.Config.Hardlinks), Reserved: archive.ReservedDir, TooDeep: s.Mapper.TooDeep,
		Mirror: s.Config.Deletes == archive.DeletesMirror, MaxDeletes: s.Config.MaxDeletes,
		OnScan: s.onScan, OnAvailable: s.OnAvailable, OnMemory: memory.remember, Memory: memory.recall(),
		Log: e.Log, Metrics: e.Metrics.Watcher,
	}
}

// CopiesOf is where the host keeps copies of the trail of the named source.
func (e *Session) CopiesOf(name string) string {
	return filepath.Join(e.Config.Manifest.LocalDir, name)
}
