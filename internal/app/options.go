package app

import (
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

func (e *environment) storeOptions(c config.Source, log *zap.Logger) s3store.Options {
	return s3store.Options{
		Region: c.Region, EndpointURL: e.cfg.S3.EndpointURL, PathStyle: e.cfg.S3.PathStyle,
		AllowInsecure: e.cfg.S3.AllowInsecureEndpoint, ExpectedBucketOwner: c.ExpectedBucketOwner, Profile: c.Profile,
		Bucket: c.Bucket, Prefix: c.Prefix, Instance: e.cfg.Instance,
		KMSKeyID: c.KMSKeyID, AcceptKeys: c.AcceptKMSKeys, SSE: c.SSE, BucketKey: c.BucketKey,
		EncryptionContext: c.EncryptionContext, StorageClass: c.StorageClass, ACL: e.cfg.S3.ACL, Tags: c.Tags,
		ObjectLock: s3store.ObjectLock{Mode: e.cfg.Manifest.ObjectLock.Mode, Days: e.cfg.Manifest.ObjectLock.Days},
		Workers:    e.cfg.Upload.Workers,
		Log:        log.Named("s3"), Metrics: e.metrics.s3store,
	}
}

func (e *environment) flusherOptions(s *source) manifest.Options {
	m := e.cfg.Manifest
	if m.DigestInterval == 0 {
		m.DigestInterval = never
	}
	return manifest.Options{
		Source: s.cfg.Name, Instance: e.cfg.Instance, Bucket: s.cfg.Bucket, Mapper: s.mapper,
		FlushInterval: m.FlushInterval, DigestInterval: m.DigestInterval, StopTimeout: e.grace.Publish,
		MaxRecords: m.MaxRecords, Layout: manifest.Layout(m.Layout),
		LocalDir:  e.copiesOf(s.cfg.Name),
		KeepLocal: m.KeepLocal, KeepLocalSize: m.KeepLocalSize,
		LateStart: e.once,
		Version:   e.program.Version, ConfigSHA256: e.cfg.SourceSHA256(s.number),
		Now:     s.store.Now,
		Pending: func() (int64, time.Time) { p := s.pending(); return p.total(), p.oldest },
		Log:     e.log.Named("manifest"), Metrics: e.metrics.manifest,
	}
}

// never is the interval of what is switched off.
const never = 100 * 365 * 24 * time.Hour

func (e *environment) poolOptions() uploader.Options {
	u := e.cfg.Upload
	return uploader.Options{
		Workers: e.budget.Workers, PartSize: u.PartSize, SinglePutMax: u.SinglePutMax,
		MemoryLimit: e.budget.Buffers, BandwidthLimit: u.BandwidthLimit, Drain: e.grace.Drain, ListSkips: e.listSkips,
		Log: e.log.Named("uploader"), Metrics: e.metrics.uploader,
	}
}

func (e *environment) watchOptions(s *source) watcher.Options {
	w, memory := e.cfg.Watch, placeMemoryOf(s)
	return watcher.Options{
		Source: s.cfg.Name, Root: s.root, Settle: s.cfg.Settle, MaxDelay: s.cfg.MaxDelay,
		RescanInterval: w.RescanInterval, PollInterval: w.PollInterval,
		Include: s.cfg.Include, Exclude: s.cfg.Exclude, IgnoreFiles: s.cfg.IgnoreFiles,
		Hardlinks: safefs.LinkPolicy(s.cfg.Hardlinks), Reserved: state.ReservedDir, TooDeep: s.mapper.TooDeep,
		Mirror: s.cfg.Deletes == archive.DeletesMirror, MaxDeletes: s.cfg.MaxDeletes,
		OnScan: s.onScan, OnAvailable: s.onAvailable, OnMemory: memory.remember, Memory: memory.recall(),
		Log: e.log, Metrics: e.metrics.watcher,
	}
}

// copiesOf is where the host keeps copies of the trail of the named source.
func (e *environment) copiesOf(name string) string {
	return filepath.Join(e.cfg.Manifest.LocalDir, name)
}
