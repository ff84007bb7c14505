package s3conn

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The operations that this package sends, a closed set.
const (
	OpHead     = "HeadObject"
	OpGet      = "GetObject"
	OpPut      = "PutObject"
	OpDelete   = "DeleteObject"
	OpList     = "ListObjectsV2"
	OpCreate   = "CreateMultipartUpload"
	OpPart     = "UploadPart"
	OpComplete = "CompleteMultipartUpload"
	OpAbort    = "AbortMultipartUpload"
	OpParts    = "ListParts"
)

// The operations that only single commands send, never the daemon. They are
// counted, and have no histogram that would cost the daemon's series.
const (
	OpCopy     = "CopyObject"
	OpPartCopy = "UploadPartCopy"
	OpTags     = "GetObjectTagging"
	OpUploads  = "ListMultipartUploads"
	OpVersions = "ListObjectVersions"
)

func operations() []string {
	return []string{OpHead, OpGet, OpPut, OpDelete, OpList, OpCreate, OpPart, OpComplete, OpAbort, OpParts}
}

// Metrics are the series of all stores of one process.
type Metrics struct {
	requests    *prometheus.CounterVec
	duration    map[string]prometheus.Observer
	expiry      prometheus.Gauge
	ClockOffset prometheus.Gauge

	ClockCorrections *prometheus.CounterVec

	mu       sync.Mutex
	expiries map[*CredentialSource]time.Time
	offsets  map[*Clock]time.Duration // those that are not 0
}

// NewMetrics registers the metrics of this package. It is called once for a
// registry; every store of the process shares the result.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	duration := f.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "s3syncd_s3_request_duration_seconds",
		Help:    "Time from the start of a request to S3 to the head of its answer, each attempt by itself.",
		Buckets: []float64{0.05, 0.25, 1, 5, 30}, // Few: ten operations share the process's budget of series.
	}, []string{"op"})
	m := &Metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "s3syncd_s3_requests_total",
			Help: "Requests sent to S3, each attempt by itself, by HTTP status (none: no answer).",
		}, []string{"op", "code"}),
		duration: map[string]prometheus.Observer{},
		expiry: f.NewGauge(prometheus.GaugeOpts{
			Name: "s3syncd_credentials_expiry_timestamp_seconds",
			Help: "When the first of the credentials in use must have been renewed, 0 for never.",
		}),
		ClockOffset: f.NewGauge(prometheus.GaugeOpts{
			Name: "s3syncd_clock_offset_seconds",
			Help: "How far the clock of S3 is ahead of this host's; of several servers, the one that differs most.",
		}),
		ClockCorrections: f.NewCounterVec(prometheus.CounterOpts{
			Name: "s3syncd_clock_corrections_total",
			Help: "Corrections of this host's clock by what servers say: adopted, dropped because they did not help any more, ignored because requests are accepted without them.",
		}, []string{"result"}),
		expiries: map[*CredentialSource]time.Time{},
		offsets:  map[*Clock]time.Duration{},
	}
	for _, result := range []string{clockAdopted, clockDropped, clockIgnored} {
		m.ClockCorrections.WithLabelValues(result)
	}
	for _, op := range operations() {
		m.duration[op] = duration.WithLabelValues(op)
	}
	return m
}

// request counts one attempt; a status of 0 means that there was no answer.
func (m *Metrics) request(op string, status int, took time.Duration) {
	m.requests.WithLabelValues(op, statusLabel(status)).Inc()
	if d, ok := m.duration[op]; ok {
		d.Observe(took.Seconds())
	}
}

// statusLabel keeps the label's values a closed set, whatever a server answers.
func statusLabel(status int) string {
	switch {
	case status == 0:
		return "none"
	case http.StatusText(status) == "":
		return "other"
	}
	return strconv.Itoa(status)
}

// setExpiry notes when the credentials of c expire, zero for never.
func (m *Metrics) setExpiry(c *CredentialSource, t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.expiries[c].Equal(t) {
		return
	}
	m.expiries[c] = t
	m.showExpiry()
}

// showExpiry sets the gauge. The caller holds m.mu.
func (m *Metrics) showExpiry() {
	var first time.Time
	for _, e := range m.expiries {
		if !e.IsZero() && (first.IsZero() || e.Before(first)) {
			first = e
		}
	}
	if first.IsZero() {
		m.expiry.Set(0)
		return
	}
	m.expiry.Set(float64(first.Unix()))
}

// expiryOf returns when the credentials of c must have been renewed, zero for
// never or not known yet.
func (m *Metrics) expiryOf(c *CredentialSource) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expiries[c]
}

// setOffset notes how far the clock that c compares this host's with is ahead.
func (m *Metrics) setOffset(c *Clock, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d == 0 {
		delete(m.offsets, c)
	} else {
		m.offsets[c] = d
	}
	m.showOffset()
}

// showOffset sets the gauge. The caller holds m.mu.
func (m *Metrics) showOffset() {
	var most time.Duration
	for _, d := range m.offsets {
		if d.Abs() > most.Abs() {
			most = d
		}
	}
	m.ClockOffset.Set(most.Seconds())
}

// forget takes what a store that is closed has noted out of the gauges.
func (m *Metrics) forget(creds *CredentialSource, c *Clock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.expiries, creds)
	delete(m.offsets, c)
	m.showExpiry()
	m.showOffset()
}
