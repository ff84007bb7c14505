package uploader

import (
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/state"
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
}

// NewMetrics registers the series with reg. It is called once a process.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: "s3syncd_" + name, Help: help}, append([]string{"source"}, labels...))
	}
	return &Metrics{
		files:      counter("files_total", "Outcomes of files by status.", "status"),
		failures:   counter("failures_total", "Failures that a record was written of, by error class.", "class"),
		retries:    counter("retries_total", "Looks that are tried again, by error class.", "class"),
		bytes:      counter("bytes_uploaded_total", "Bytes of content acknowledged by S3."),
		hashed:     counter("hash_bytes_total", "Bytes of content hashed."),
		mismatches: counter("encryption_mismatches_total", "Answers that did not confirm the configured encryption."),
		conflicts:  counter("conflicts_total", "Files under whose key stands an object of another instance."),
		repaired:   counter("remote_repaired_files_total", "Objects that were missing or replaced in S3 and were put back."),
		shortLived: counter("short_lived_files_total", "Files that were gone shortly after they had been written, and uploaded in between."),
		rereads:    counter("rereads_total", "Files read again although their times did not change, by what was found.", "result"),
		health:     gauge("destination_state", "1 for the state that the destination is in.", "state"),
		parked:     gauge("parked_files", "Paths with a failure that needs a person, by error class.", "class"),
		blocked:    gauge("blocked_since_timestamp_seconds", "When the destination went out of service, by error class, 0 if it is not.", "class"),
		last:       gauge("last_upload_timestamp_seconds", "When a write was last acknowledged and recorded."),
		unresolved: gauge("unresolved_intents", "Interrupted writes that the server may still finish."),
		failing:    gauge("failing_files", "Files that fail again and again for causes that may pass, for a minute and longer."),
		stalled:    gauge("stalled_requests", "Requests to S3 under way that make no progress."),
		durable: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s3syncd_event_to_durable_seconds", Help: "From the first sight of a change to its recorded upload.",
			Buckets: []float64{0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600},
		}, []string{"source"}),
	}
}

// AddUnchanged counts files that a scan found unchanged by the index alone, and
// that therefore never came to a pool.
func (m *Metrics) AddUnchanged(source string, n int64) {
	m.files.WithLabelValues(source, string(state.StatusSkipped)).Add(float64(n))
}

// Forget removes all series of a source that is not archived any more, so that
// none of them stays at its last value. No pool may have that source.
func (m *Metrics) Forget(source string) {
	name := prometheus.Labels{"source": source}
	for _, c := range []*prometheus.CounterVec{
		m.files, m.failures, m.retries, m.bytes, m.hashed, m.mismatches, m.conflicts, m.repaired, m.shortLived, m.rereads,
	} {
		c.DeletePartialMatch(name)
	}
	for _, g := range []*prometheus.GaugeVec{m.health, m.parked, m.blocked, m.last, m.unresolved, m.stalled, m.failing} {
		g.DeletePartialMatch(name)
	}
	m.durable.DeletePartialMatch(name)
}

// sourceMetrics are the series of one source, all there from the start.
type sourceMetrics struct {
	m          *Metrics
	name       string
	mismatches prometheus.Counter
	conflicts  prometheus.Counter
	repaired   prometheus.Counter
	shortLived prometheus.Counter
	hashed     prometheus.Counter
	bytes      prometheus.Counter
	last       prometheus.Gauge
	stalled    prometheus.Gauge
	failing    prometheus.Gauge
	unresolved prometheus.Gauge
	durable    prometheus.Observer
}

// source makes all series of one source.
func (m *Metrics) source(name string) *sourceMetrics {
	for _, s := range state.Statuses() {
		m.files.WithLabelValues(name, string(s))
	}
	for _, c := range state.Classes() {
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
	return &sourceMetrics{
		m: m, name: name,
		mismatches: m.mismatches.WithLabelValues(name),
		conflicts:  m.conflicts.WithLabelValues(name),
		repaired:   m.repaired.WithLabelValues(name),
		shortLived: m.shortLived.WithLabelValues(name),
		hashed:     m.hashed.WithLabelValues(name),
		bytes:      m.bytes.WithLabelValues(name),
		last:       m.last.WithLabelValues(name),
		stalled:    m.stalled.WithLabelValues(name),
		failing:    m.failing.WithLabelValues(name),
		unresolved: m.unresolved.WithLabelValues(name),
		durable:    m.durable.WithLabelValues(name),
	}
}

// The results of rereads_total.
const (
	rereadSame    = "same"
	rereadChanged = "changed"
)

// reread counts a file that was read again although its times did not change.
func (m *sourceMetrics) reread(changed bool) {
	result := rereadSame
	if changed {
		result = rereadChanged
	}
	m.m.rereads.WithLabelValues(m.name, result).Inc()
}

func (m *sourceMetrics) file(s state.Status) { m.m.files.WithLabelValues(m.name, string(s)).Inc() }

func (m *sourceMetrics) failure(c state.Class) {
	m.m.failures.WithLabelValues(m.name, string(c)).Inc()
}

func (m *sourceMetrics) retry(c state.Class) { m.m.retries.WithLabelValues(m.name, string(c)).Inc() }

// uploaded counts a recorded upload of size bytes first seen at detected.
func (m *sourceMetrics) uploaded(status state.Status, size int64, detected, now time.Time) {
	m.file(status)
	m.bytes.Add(float64(size))
	m.last.Set(seconds(now))
	if !detected.IsZero() {
		m.durable.Observe(max(0, now.Sub(detected).Seconds()))
	}
}

// health shows the state of the destination.
func (m *sourceMetrics) health(st breaker.Status) {
	for _, h := range breaker.Healths() {
		v := 0.0
		if h == st.State {
			v = 1
		}
		m.m.health.WithLabelValues(m.name, string(h)).Set(v)
	}
	for _, c := range state.Classes() {
		v := 0.0
		if st.State != breaker.HealthOK && c == st.Class {
			v = seconds(st.Since)
		}
		m.m.blocked.WithLabelValues(m.name, string(c)).Set(v)
	}
}

// parked shows how many paths have a failure of class c that needs an operator.
func (m *sourceMetrics) parked(c state.Class, n int64) {
	m.m.parked.WithLabelValues(m.name, string(c)).Set(float64(n))
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// tallies count what is known of a source's paths.
type tallies struct {
	mu     sync.Mutex
	parked map[state.Class]int64
	skips  int64 // Decided by the index alone, not yet counted in the state.
}

// park moves one path from one class of failure to another; "" is none.
func (t *tallies) park(from, to state.Class) {
	if from == to {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if from != "" {
		t.parked[from] = max(0, t.parked[from]-1)
	}
	if to != "" {
		t.parked[to]++
	}
}

// byClass returns how many paths have a failure of each class that has any.
func (t *tallies) byClass() map[state.Class]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	parked := maps.Clone(t.parked)
	maps.DeleteFunc(parked, func(_ state.Class, n int64) bool { return n == 0 })
	return parked
}

func (t *tallies) skip() { t.returnSkips(1) }

// takeSkips returns the skips that are not yet counted in the state, for the
// caller to count.
func (t *tallies) takeSkips() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.skips
	t.skips = 0
	return n
}

// returnSkips takes back n skips that the state did not take.
func (t *tallies) returnSkips(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.skips += n
}
