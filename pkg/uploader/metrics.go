package uploader

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/gate"
)

// Metrics are the uploader's series. One value serves all pools of a process.
type Metrics struct {
	files, failures, retries *prometheus.CounterVec
	bytes, hashed            *prometheus.CounterVec
	mismatches, conflicts    *prometheus.CounterVec
	repaired, shortLived     *prometheus.CounterVec
	rereads                  *prometheus.CounterVec
	health, parked, blocked  *prometheus.GaugeVec
	last, unresolved         *prometheus.GaugeVec
	stalled, failing         *prometheus.GaugeVec
	durable                  *prometheus.HistogramVec

	all []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}
}

// NewMetrics registers the series with reg. It is called once per process.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m, f := &Metrics{}, promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := f.NewCounterVec(prometheus.CounterOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := f.NewGaugeVec(prometheus.GaugeOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
		m.all = append(m.all, g)
		return g
	}
	m.files = counter("files_total", "Outcomes of files by status.", "status")
	m.failures = counter("failures_total", "Failures that a record was written of, by error class.", "class")
	m.retries = counter("retries_total", "Attempts at files that are repeated, by error class.", "class")
	m.bytes = counter("bytes_uploaded_total", "Bytes of content acknowledged by S3.")
	m.hashed = counter("hash_bytes_total", "Bytes of content hashed.")
	m.mismatches = counter("encryption_mismatches_total", "Answers that did not confirm the configured encryption.")
	m.conflicts = counter("conflicts_total", "Files whose key holds an object of another instance.")
	m.repaired = counter("remote_repaired_files_total", "Objects that were missing or replaced in S3 and were put back.")
	m.shortLived = counter("short_lived_files_total", "Files that were gone shortly after they had been written, and uploaded in between.")
	m.rereads = counter("rereads_total", "Files read again although their times did not change, by what was found.", "result")
	m.health = gauge("destination_state", "1 for the state that the destination is in.", "state")
	m.parked = gauge("parked_files", "Paths with a failure that needs an operator, by error class.", "class")
	m.blocked = gauge("blocked_since_timestamp_seconds", "When the destination went out of service, by error class, 0 if it is not.", "class")
	m.last = gauge("last_upload_timestamp_seconds", "When a write was last acknowledged and recorded.")
	m.unresolved = gauge("unresolved_intents", "Interrupted writes that the server may still finish.")
	m.failing = gauge("failing_files", "Files that fail again and again for causes that may pass, for a minute and longer.")
	m.stalled = gauge("stalled_requests", "Requests to S3 under way that make no progress.")
	m.durable = f.NewHistogramVec(prometheus.HistogramOpts{
		Name: "s3syncd_event_to_durable_seconds", Help: "From the first sight of a change to its recorded upload.",
		Buckets: []float64{0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600},
	}, []string{"source"})
	m.all = append(m.all, m.durable)
	return m
}

// AddUnchanged counts files that a scan found unchanged by the index alone, and
// that therefore never came to a pool.
func (m *Metrics) AddUnchanged(source string, n int64) {
	m.files.WithLabelValues(source, string(archive.StatusSkipped)).Add(float64(n))
}

// Forget removes all series of a source that is not archived any more, so that
// none of them stays at its last value. No pool may have that source.
func (m *Metrics) Forget(source string) {
	for _, vec := range m.all {
		vec.DeletePartialMatch(prometheus.Labels{"source": source})
	}
}

// sourceMetrics are the series of one source. It is the journal's Counter.
type sourceMetrics struct {
	m    *Metrics
	name string
}

// source makes all series of one source, so that each exists at zero.
func (m *Metrics) source(name string) sourceMetrics {
	for _, s := range archive.Statuses() {
		m.files.WithLabelValues(name, string(s))
	}
	for _, c := range archive.Classes() {
		m.failures.WithLabelValues(name, string(c))
		m.retries.WithLabelValues(name, string(c))
		m.parked.WithLabelValues(name, string(c))
		m.blocked.WithLabelValues(name, string(c))
	}
	for _, h := range breaker.Healths() {
		m.health.WithLabelValues(name, string(h))
	}
	for _, result := range []string{rereadSame, rereadChanged} {
		m.rereads.WithLabelValues(name, result)
	}
	for _, c := range []*prometheus.CounterVec{m.bytes, m.hashed, m.mismatches, m.conflicts, m.repaired, m.shortLived} {
		c.WithLabelValues(name)
	}
	for _, g := range []*prometheus.GaugeVec{m.last, m.unresolved, m.failing, m.stalled} {
		g.WithLabelValues(name)
	}
	m.durable.WithLabelValues(name)
	return sourceMetrics{m, name}
}

// The results of rereads_total.
const (
	rereadSame    = "same"
	rereadChanged = "changed"
)

// reread counts a file that was read again although its times did not change.
func (s sourceMetrics) reread(changed bool) {
	result := rereadSame
	if changed {
		result = rereadChanged
	}
	s.m.rereads.WithLabelValues(s.name, result).Inc()
}

// File is part of journal.Counter.
func (s sourceMetrics) File(st archive.Status) { s.m.files.WithLabelValues(s.name, string(st)).Inc() }

// Failure is part of journal.Counter.
func (s sourceMetrics) Failure(c archive.Class) {
	s.m.failures.WithLabelValues(s.name, string(c)).Inc()
}

// Uploaded is part of journal.Counter.
func (s sourceMetrics) Uploaded(st archive.Status, size int64, detected, now time.Time) {
	s.File(st)
	s.m.bytes.WithLabelValues(s.name).Add(float64(size))
	s.m.last.WithLabelValues(s.name).Set(seconds(now))
	if !detected.IsZero() {
		s.m.durable.WithLabelValues(s.name).Observe(max(0, now.Sub(detected).Seconds()))
	}
}

// Repaired is part of journal.Counter.
func (s sourceMetrics) Repaired() { s.m.repaired.WithLabelValues(s.name).Inc() }

// ShortLived is part of journal.Counter.
func (s sourceMetrics) ShortLived() { s.m.shortLived.WithLabelValues(s.name).Inc() }

func (s sourceMetrics) mismatch()             { s.m.mismatches.WithLabelValues(s.name).Inc() }
func (s sourceMetrics) retry(c archive.Class) { s.m.retries.WithLabelValues(s.name, string(c)).Inc() }

// set shows v in a gauge.
func (s sourceMetrics) set(g *prometheus.GaugeVec, v float64, labels ...string) {
	g.WithLabelValues(append([]string{s.name}, labels...)...).Set(v)
}

// health shows the state of the destination.
func (s sourceMetrics) health(st breaker.Status) {
	for _, h := range breaker.Healths() {
		v := 0.0
		if h == st.State {
			v = 1
		}
		s.set(s.m.health, v, string(h))
	}
	for _, c := range archive.Classes() {
		v := 0.0
		if st.State != breaker.HealthOK && c == st.Class {
			v = seconds(st.Since)
		}
		s.set(s.m.blocked, v, string(c))
	}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// checks are the requests that probe the destination. They count answers that
// do not confirm the KMS key.
type checks struct {
	store   *gate.Store
	metrics sourceMetrics
}

// Ping is part of breaker.Checks.
func (c checks) Ping(ctx context.Context) error { return c.count(c.store.Objects.Ping(ctx)) }

// Probe is part of breaker.Checks.
func (c checks) Probe(ctx context.Context) error { return c.count(c.store.Objects.Probe(ctx)) }

func (c checks) count(err error) error {
	if archive.ClassOf(err).Stops() {
		c.metrics.mismatch()
	}
	return err
}
