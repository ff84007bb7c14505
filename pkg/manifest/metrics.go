package manifest

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Results of publishing, the label result.
const (
	resultPublished = "published" // everything sealed is acknowledged
	resultFailed    = "failed"    // something waits for another try
	resultForked    = "forked"    // the chain could not be continued
)

// Metrics are the metrics of all sources' flushers.
type Metrics struct {
	flushes     *prometheus.CounterVec
	unpublished *prometheus.GaugeVec
	last        *prometheus.GaugeVec
	sequence    *prometheus.GaugeVec
	abandoned   *prometheus.GaugeVec
	unsigned    *prometheus.GaugeVec
	oldest      *prometheus.GaugeVec
}

// NewMetrics registers the metrics with reg. Call it once per process.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		flushes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "s3syncd_manifest_flushes_total",
			Help: "Attempts to publish the sealed documents of a source's audit trail, by result.",
		}, []string{"source", "result"}),
		unpublished: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_manifest_unpublished_records",
			Help: "Audit records that no acknowledged manifest holds yet.",
		}, []string{"source"}),
		last: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_last_manifest_timestamp_seconds",
			Help: "When the last manifest or digest was acknowledged, 0 for never.",
		}, []string{"source"}),
		sequence: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_manifest_sequence",
			Help: "Sequence number of the last sealed digest of the chain, 0 for none.",
		}, []string{"source"}),
		abandoned: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_chain_abandoned",
			Help: "1 if another chain of this instance has left the chain of this host since it began: two hosts write as one.",
		}, []string{"source"}),
		unsigned: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_unsigned_digests",
			Help: "Published digests that still wait for their signature.",
		}, []string{"source"}),
		oldest: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "s3syncd_oldest_unsigned_digest_timestamp_seconds",
			Help: "When the oldest digest that waits for its signature was sealed, 0 for none.",
		}, []string{"source"}),
	}
}

// Forget removes all series of a source that is not archived any more, so that
// none of them stays at its last value. No Flusher may have that source.
func (m *Metrics) Forget(source string) {
	name := prometheus.Labels{"source": source}
	m.flushes.DeletePartialMatch(name)
	for _, g := range []*prometheus.GaugeVec{m.unpublished, m.last, m.sequence, m.abandoned, m.unsigned, m.oldest} {
		g.DeletePartialMatch(name)
	}
}

// sourceMetrics are the series of one source. Creating them makes every series
// of the closed set exist at zero.
type sourceMetrics struct {
	published, failed, forked prometheus.Counter
	abandoned                 prometheus.Gauge
	unpublished               prometheus.Gauge
	last                      prometheus.Gauge
	sequence                  prometheus.Gauge
	unsigned, oldest          prometheus.Gauge
}

func (m *Metrics) source(name string) sourceMetrics {
	return sourceMetrics{
		published:   m.flushes.WithLabelValues(name, resultPublished),
		failed:      m.flushes.WithLabelValues(name, resultFailed),
		forked:      m.flushes.WithLabelValues(name, resultForked),
		unpublished: m.unpublished.WithLabelValues(name),
		last:        m.last.WithLabelValues(name),
		sequence:    m.sequence.WithLabelValues(name),
		abandoned:   m.abandoned.WithLabelValues(name),
		unsigned:    m.unsigned.WithLabelValues(name),
		oldest:      m.oldest.WithLabelValues(name),
	}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / float64(time.Second)
}

// gauges shows what the state says of a chain.
func (m *sourceMetrics) gauges(ch archive.Chain) {
	m.unpublished.Set(float64(ch.Unpublished))
	m.sequence.Set(float64(max(ch.Sequence, 1) - 1))
}
