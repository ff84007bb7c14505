package s3conn

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
)

func TestAStoreThatIsClosedLeavesTheGauges(t *testing.T) {
	m := NewMetrics(prometheus.NewPedanticRegistry())
	soon, later := time.Unix(2_000_000_000, 0), time.Unix(3_000_000_000, 0)
	first, second := &CredentialSource{}, &CredentialSource{}
	a, b := &Clock{metrics: m, log: zap.NewNop()}, &Clock{metrics: m, log: zap.NewNop()}
	now := time.Unix(1_900_000_000, 0)
	m.setExpiry(first, soon)
	m.setExpiry(second, later)
	for range clockAgree + 1 { // The last proves what was tried before it.
		a.observe(clockAnswer{sent: now, received: now, date: now.Add(-time.Hour), signed: a.Signs(), verdict: clockTaken})
		b.observe(clockAnswer{sent: now, received: now, date: now.Add(time.Minute), signed: b.Signs(), verdict: clockTaken})
	}
	if got := testutil.ToFloat64(m.expiry); got != float64(soon.Unix()) {
		t.Errorf("expiry %v, want the first, %v", got, soon.Unix())
	}
	if got := testutil.ToFloat64(m.ClockOffset); got > -3590 {
		t.Errorf("offset %v, want that of the clock which differs most", got)
	}
	m.forget(first, a)
	if got := testutil.ToFloat64(m.expiry); got != float64(later.Unix()) {
		t.Errorf("expiry %v after the first is closed, want %v", got, later.Unix())
	}
	if got := testutil.ToFloat64(m.ClockOffset); got < 55 || got > 65 {
		t.Errorf("offset %v after the first is closed, want about 60", got)
	}
	m.forget(second, b)
	if e, o := testutil.ToFloat64(m.expiry), testutil.ToFloat64(m.ClockOffset); e != 0 || o != 0 {
		t.Errorf("expiry %v, offset %v after both are closed, want 0", e, o)
	}
}

func TestKeepCredentialsRenewsOnlyWhatRanOut(t *testing.T) {
	asked := 0
	expires := time.Now().Add(time.Hour)
	m := NewMetrics(prometheus.NewPedanticRegistry())
	s := &Conn{o: Options{Metrics: m}, Creds: &CredentialSource{
		Metrics: m,
		Current: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			asked++
			return aws.Credentials{AccessKeyID: "A", SecretAccessKey: "S", CanExpire: true, Expires: expires}, nil
		}),
	}}
	keep := func(want int) {
		t.Helper()
		if err := s.KeepCredentials(t.Context()); err != nil {
			t.Fatal(err)
		}
		if asked != want {
			t.Fatalf("the provider was asked %d times, want %d", asked, want)
		}
	}
	keep(0) // No request was made yet.
	if _, err := s.Creds.Retrieve(t.Context()); err != nil {
		t.Fatal(err)
	}
	keep(1)
	m.setExpiry(s.Creds, time.Now().Add(-time.Second))
	keep(2)
	if got := testutil.ToFloat64(m.expiry); got != float64(expires.Unix()) {
		t.Errorf("expiry %v after the renewal, want %v", got, expires.Unix())
	}
}
