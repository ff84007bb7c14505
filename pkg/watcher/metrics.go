package watcher

import (
	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Metrics are the series of all watchers of a process.
type Metrics struct {
	events, overflows, rescans, missed   *prometheus.CounterVec
	watched, polled, lastScan, available *prometheus.GaugeVec
	skipped, degraded                    *prometheus.GaugeVec
	duration                             *prometheus.HistogramVec
}

// NewMetrics registers the metrics. It is called once per process.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
	}
	return &Metrics{
		events:    counter("events_total", "Events of the kernel by operation.", "op"),
		overflows: counter("event_overflows_total", "Times that events were lost; each is followed by a scan."),
		rescans:   counter("rescans_total", "Completed scans of the whole source by what asked for them.", "trigger"),
		missed:    counter("rescan_missed_files_total", "Changes and removals that a scan found and no event reported."),
		watched:   gauge("watched_directories", "Directories with a watch."),
		polled:    gauge("polled_directories", "Directories that are polled, because they cannot be watched or events do not suffice."),
		lastScan:  gauge("last_successful_scan_timestamp_seconds", "When the last complete scan ended, 0 for none."),
		available: gauge("source_available", "1 while the source's directory is there and in use."),
		skipped:   gauge("skipped_files", "Files and directories that the last scan left out by reason.", "reason"),
		degraded:  gauge("watcher_degraded", "1 while a limit of the system keeps directories from being watched."),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s3syncd_rescan_duration_seconds", Help: "Time that a completed scan of the whole source took.",
			Buckets: []float64{0.1, 1, 10, 60, 600, 3600},
		}, []string{"source"}),
	}
}

// Forget removes all series of a source that is not archived any more, so that
// none of them keeps its last value. No watcher may have that source.
func (m *Metrics) Forget(source string) {
	name := prometheus.Labels{"source": source}
	for _, c := range []*prometheus.CounterVec{m.events, m.overflows, m.rescans, m.missed} {
		c.DeletePartialMatch(name)
	}
	for _, g := range []*prometheus.GaugeVec{m.watched, m.polled, m.lastScan, m.available, m.skipped, m.degraded} {
		g.DeletePartialMatch(name)
	}
	m.duration.DeletePartialMatch(name)
}

type sourceMetrics struct {
	write, create, remove, rename, chmod prometheus.Counter
	overflows, missed                    prometheus.Counter
	rescans                              map[archive.Trigger]prometheus.Counter
	watched, polled, lastScan            prometheus.Gauge
	available, degraded                  prometheus.Gauge
	skipped                              map[string]prometheus.Gauge
	duration                             prometheus.Observer
}

// triggers are those of scans; others count as archive.TriggerRescan.
func triggers() []archive.Trigger {
	return []archive.Trigger{archive.TriggerStartup, archive.TriggerRescan, archive.TriggerHangup, archive.TriggerSync, archive.TriggerPoll, triggerOverflow}
}

func (m *Metrics) source(name string) *sourceMetrics {
	s := &sourceMetrics{
		write: m.events.WithLabelValues(name, "write"), create: m.events.WithLabelValues(name, "create"),
		remove: m.events.WithLabelValues(name, "remove"), rename: m.events.WithLabelValues(name, "rename"),
		chmod:     m.events.WithLabelValues(name, "chmod"),
		overflows: m.overflows.WithLabelValues(name), missed: m.missed.WithLabelValues(name),
		watched: m.watched.WithLabelValues(name), polled: m.polled.WithLabelValues(name),
		lastScan: m.lastScan.WithLabelValues(name), available: m.available.WithLabelValues(name),
		degraded: m.degraded.WithLabelValues(name), duration: m.duration.WithLabelValues(name),
		rescans: make(map[archive.Trigger]prometheus.Counter), skipped: make(map[string]prometheus.Gauge),
	}
	for _, t := range triggers() {
		s.rescans[t] = m.rescans.WithLabelValues(name, string(t))
	}
	for _, r := range []string{"excluded", "unreadable", "special", "symlink", "hardlink", "reserved", "held_delete", "pseudo", "limit"} {
		s.skipped[r] = m.skipped.WithLabelValues(name, r)
	}
	return s
}

// watches returns those that the watches keep.
func (s *sourceMetrics) watches() watches.Metrics {
	return watches.Metrics{Event: s.event, Overflows: s.overflows, Watched: s.watched, Polled: s.polled, Degraded: s.degraded}
}

func (s *sourceMetrics) event(op fsnotify.Op) {
	switch {
	case op.Has(fsnotify.Write):
		s.write.Inc()
	case op.Has(fsnotify.Create):
		s.create.Inc()
	case op.Has(fsnotify.Remove):
		s.remove.Inc()
	case op.Has(fsnotify.Rename):
		s.rename.Inc()
	default:
		s.chmod.Inc()
	}
}

// scanned counts a scan of the whole source that ended.
func (s *sourceMetrics) scanned(trigger archive.Trigger, r *ScanResult) {
	s.missed.Add(float64(r.Missed))
	if !r.Complete {
		return
	}
	s.rescans[trigger].Inc()
	s.duration.Observe(r.End.Sub(r.Start).Seconds())
	s.lastScan.Set(float64(r.End.UnixMilli()) / 1e3)
	for reason, n := range map[string]int64{
		"excluded": r.Excluded, "unreadable": r.Unreadable, "special": r.Special,
		"symlink": r.Symlinks, "hardlink": r.Hardlinks, "reserved": r.Reserved,
		"held_delete": r.Held, "pseudo": r.Pseudo, "limit": r.Limited,
	} {
		s.skipped[reason].Set(float64(n))
	}
}
