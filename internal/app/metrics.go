package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// metrics are those of every stage and the process's own.
type metrics struct {
	watcher  *watcher.Metrics
	uploader *uploader.Metrics
	manifest *manifest.Metrics
	s3store  *s3store.Metrics

	wrongKey       *prometheus.GaugeVec
	reloadOK       prometheus.Gauge
	reloadOKSecond prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, b Build, db *state.DB, sources func() []snapshot) *metrics {
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(db, sources),
	)
	auto := promauto.With(reg)
	auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "s3syncd_build_info", Help: "Which program this is; always 1.",
	}, []string{"version", "revision", "goversion"}).WithLabelValues(b.Version, b.Revision, b.GoVersion).Set(1)
	m := &metrics{
		watcher:  watcher.NewMetrics(reg),
		uploader: uploader.NewMetrics(reg),
		manifest: manifest.NewMetrics(reg),
		s3store:  s3store.NewMetrics(reg),
		wrongKey: auto.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_wrong_key_objects",
			Help: "Indexed objects that are encrypted under a key that is neither configured nor accepted.",
		}, []string{"source"}),
		reloadOK: auto.NewGauge(prometheus.GaugeOpts{
			Name: "s3syncd_config_last_reload_successful", Help: "Whether the last read of the configuration succeeded.",
		}),
		reloadOKSecond: auto.NewGauge(prometheus.GaugeOpts{
			Name: "s3syncd_config_last_reload_success_timestamp_seconds",
			Help: "When the configuration was last read without a fault, in Unix seconds.",
		}),
	}
	m.reloaded(true, time.Now())
	return m
}

// reloaded says how the last read of the configuration ended.
func (m *metrics) reloaded(ok bool, now time.Time) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadOKSecond.Set(float64(now.Unix()))
}

// snapshot is what the gauges show of one source.
type snapshot struct {
	name         string
	files, bytes int64 // in the index
	work         pending
}

// collector reads the gauges of the state and the queues when somebody
// scrapes, so that they are never older than the answer.
type collector struct {
	db      *state.DB
	sources func() []snapshot

	files, bytes, depth, oldest, journal, free, writable *prometheus.Desc
}

func newCollector(db *state.DB, sources func() []snapshot) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("s3syncd_"+name, help, labels, nil)
	}
	return &collector{
		db: db, sources: sources,
		files:    desc("indexed_files", "Files that the index holds as stored in S3.", "source"),
		bytes:    desc("indexed_bytes", "Bytes of the files that the index holds as stored in S3.", "source"),
		depth:    desc("queue_depth", "Paths on their way, by state.", "source", "state"),
		oldest:   desc("oldest_pending_timestamp_seconds", "When the oldest path on its way was first seen to have changed, 0 for none.", "source"),
		journal:  desc("journal_bytes", "Size of the state file."),
		free:     desc("state_free_bytes", "Free space on the file system of the state directory."),
		writable: desc("state_writable", "1 while the state can be written, 0 while its disk is full or fails: nothing is uploaded then."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.files, c.bytes, c.depth, c.oldest, c.journal, c.free, c.writable} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, s := range c.sources() {
		gauge(c.files, float64(s.files), s.name)
		gauge(c.bytes, float64(s.bytes), s.name)
		gauge(c.depth, float64(s.work.settling), s.name, "settling")
		gauge(c.depth, float64(s.work.queued), s.name, "queued")
		gauge(c.depth, float64(s.work.inFlight), s.name, "in_flight")
		gauge(c.depth, float64(s.work.delayed), s.name, "delayed")
		oldest := 0.0
		if !s.work.oldest.IsZero() {
			oldest = float64(s.work.oldest.UnixMilli()) / 1000
		}
		gauge(c.oldest, oldest, s.name)
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
