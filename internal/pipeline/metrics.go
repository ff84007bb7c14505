package pipeline

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// Metrics are those of every stage and the process's own.
type Metrics struct {
	Watcher  *watcher.Metrics
	uploader *uploader.Metrics
	manifest *manifest.Metrics
	Store    *s3conn.Metrics

	WrongKey       *prometheus.GaugeVec
	reloadOK       prometheus.Gauge
	reloadOKSecond prometheus.Gauge
	settings       *prometheus.GaugeVec
	maxDelay       *prometheus.GaugeVec
	maxUnpublished prometheus.Gauge
	memoryLimit    prometheus.Gauge

	sources map[string]bool // those that have series; only the pipeline's goroutine uses it
}

// NewMetrics registers the metrics of a run whose pipeline, while there is one, is
// shown by sources.
func NewMetrics(reg prometheus.Registerer, b host.Build, db *state.DB, sources func() []Snapshot) *Metrics {
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(db, sources),
	)
	auto := promauto.With(reg)
	auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "s3syncd_build_info", Help: "Which program this is; always 1.",
	}, []string{"version", "revision", "goversion"}).WithLabelValues(b.Version, b.Revision, b.GoVersion).Set(1)
	gauge := func(name, help string) prometheus.Gauge {
		return auto.NewGauge(prometheus.GaugeOpts{Name: "s3syncd_" + name, Help: help})
	}
	gauges := func(name, help, label string) *prometheus.GaugeVec {
		return auto.NewGaugeVec(prometheus.GaugeOpts{Name: "s3syncd_" + name, Help: help}, []string{label})
	}
	m := &Metrics{
		Watcher:  watcher.NewMetrics(reg),
		uploader: uploader.NewMetrics(reg),
		manifest: manifest.NewMetrics(reg),
		Store:    s3conn.NewMetrics(reg),
		WrongKey: gauges("wrong_key_objects", "Indexed objects that are encrypted under a key that is neither configured nor accepted.", "source"),
		reloadOK: gauge("config_last_reload_successful", "Whether the last read of the configuration succeeded."),
		reloadOKSecond: gauge("config_last_reload_success_timestamp_seconds",
			"When the configuration was last read without a fault, in Unix seconds."),
		// What the alert rules compare with, so that they hold for any configuration.
		settings:       gauges("setting_seconds", "Intervals as they are configured, 0 for none.", "setting"),
		maxDelay:       gauges("max_delay_seconds", "How long a file may keep changing before it is uploaded all the same, for each 64 MiB.", "source"),
		maxUnpublished: gauge("max_unpublished_records", "So many records without a published manifest pause the uploads of a source."),
		memoryLimit:    gauge("upload_memory_limit_bytes", "Most memory for all buffers of uploads together."),
		sources:        map[string]bool{},
	}
	m.Reloaded(true, time.Now())
	return m
}

// Reloaded says how the last read of the configuration ended.
func (m *Metrics) Reloaded(ok bool, now time.Time) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadOKSecond.Set(float64(now.Unix()))
}

// Configured shows the settings that alert rules compare with, and makes the
// series of the sources of cfg.
func (m *Metrics) Configured(cfg *config.Config, b host.Budget) {
	for name, d := range map[string]time.Duration{
		"rescan_interval": cfg.Watch.RescanInterval, "remote_check_interval": cfg.Watch.RemoteCheckInterval,
		"flush_interval": cfg.Manifest.FlushInterval, "digest_interval": cfg.Manifest.DigestInterval,
	} {
		m.settings.WithLabelValues(name).Set(d.Seconds())
	}
	m.maxUnpublished.Set(float64(cfg.Manifest.MaxUnpublished))
	m.memoryLimit.Set(float64(b.Buffers))
	for _, s := range cfg.Sources {
		m.sources[s.Name] = true
		m.maxDelay.WithLabelValues(s.Name).Set(s.MaxDelay.Seconds())
		m.WrongKey.WithLabelValues(s.Name)
	}
}

// Only removes the series of every source that cfg does not have: an alert on
// one that is gone for good would never end.
func (m *Metrics) Only(cfg *config.Config) {
	for name := range m.sources {
		if slices.ContainsFunc(cfg.Sources, func(s config.Source) bool { return s.Name == name }) {
			continue
		}
		m.Watcher.Forget(name)
		m.uploader.Forget(name)
		m.manifest.Forget(name)
		m.WrongKey.DeleteLabelValues(name)
		m.maxDelay.DeleteLabelValues(name)
		delete(m.sources, name)
	}
}

// Snapshot is what the gauges show of one source.
type Snapshot struct {
	Name         string
	Files, Bytes int64 // in the index
	Work         Pending
	Withheld     bool // missing files do not count as deleted
	HungSince    time.Time
}

// collector reads the gauges of the state and the queues at each
// scrape, so that they are never older than the answer.
type collector struct {
	db      *state.DB
	sources func() []Snapshot

	files, bytes, depth, oldest, withheld, hung, journal, free, writable *prometheus.Desc
}

func newCollector(db *state.DB, sources func() []Snapshot) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("s3syncd_"+name, help, labels, nil)
	}
	return &collector{
		db: db, sources: sources,
		files:    desc("indexed_files", "Files that the index holds as stored in S3.", "source"),
		bytes:    desc("indexed_bytes", "Bytes of the files that the index holds as stored in S3.", "source"),
		depth:    desc("queue_depth", "Paths on their way, by state.", "source", "state"),
		oldest:   desc("oldest_pending_timestamp_seconds", "When the oldest path on its way was first seen to have changed, 0 for none.", "source"),
		withheld: desc("deletes_withheld", "1 while another directory, or one without a mount that was inside it, is in the source's place: nothing counts as deleted.", "source"),
		hung:     desc("source_hung_since_timestamp_seconds", "When the check of the source began that has not ended, 0 while it answers.", "source"),
		journal:  desc("journal_bytes", "Size of the state file."),
		free:     desc("state_free_bytes", "Free space on the file system of the state directory."),
		writable: desc("state_writable", "1 while the state can be written, 0 while its disk is full or fails: nothing is uploaded then."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.files, c.bytes, c.depth, c.oldest, c.withheld, c.hung, c.journal, c.free, c.writable} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range c.sources() {
		gauge(c.files, float64(s.Files), s.Name)
		gauge(c.bytes, float64(s.Bytes), s.Name)
		gauge(c.depth, float64(s.Work.Settling), s.Name, "settling")
		gauge(c.depth, float64(s.Work.Queued), s.Name, "queued")
		gauge(c.depth, float64(s.Work.InFlight), s.Name, "in_flight")
		gauge(c.depth, float64(s.Work.Delayed), s.Name, "delayed")
		gauge(c.oldest, seconds(s.Work.Oldest), s.Name)
		gauge(c.hung, seconds(s.HungSince), s.Name)
		withheld := 0.0
		if s.Withheld {
			withheld = 1
		}
		gauge(c.withheld, withheld, s.Name)
	}
	gauge(c.journal, float64(c.db.Size()))
	n, err := c.db.FreeBytes()
	if err == nil {
		gauge(c.free, float64(n))
	}
	writable := 1.0
	if c.db.Failing() != nil || err == nil && n < stateReserve {
		writable = 0
	}
	gauge(c.writable, writable)
}

// seconds is t as a gauge has it, 0 for the zero time.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
