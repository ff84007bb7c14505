package s3conn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/loopback"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// FallbackZone is the region for compatible servers, which sign with any.
const FallbackZone = "us-east-1"

const (
	maxAttempts  = 3
	maxBackoff   = 5 * time.Second
	minIdleConns = 10
	writeBuffer  = 16 << 10 // of a connection: a small file and its headers go out in one write
)

// Options say where a destination is and how it is reached.
type Options struct {
	Region              string // "": as the AWS environment says
	EndpointURL         string // "": AWS, or as the AWS environment says
	PathStyle           bool
	AllowInsecure       bool // http:// to an address that is not a loopback one
	Profile             string
	Bucket              string
	ExpectedBucketOwner string

	Workers       int           // how many requests run at once; idle connections are kept for all
	StallLimit    time.Duration // ends an attempt whose body moved no byte, or whose answer did not begin
	CompleteLimit time.Duration // the same for answers that a server may need minutes for

	// OnThrottled, optional, is called for each attempt that the server asked to
	// slow down at. It must not block.
	OnThrottled func()

	Log     *zap.Logger
	Metrics *Metrics
}

// Conn is the connection to one destination: the client, and all that its
// requests have in common.
type Conn struct {
	o         Options
	Client    *s3.Client
	Wire      *wire // for PutObject
	observer  *observer
	transport *http.Transport
	watched   *watchdog // around transport
	Creds     *CredentialSource
	Log       *zap.Logger
	Clock     *Clock
	Reask     *Reasker
}

// Dial reads the AWS environment and prepares the use of one destination. It
// makes no request.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	c := &Conn{o: o, Log: o.Log, Clock: &Clock{metrics: o.Metrics, log: o.Log}, Reask: &Reasker{}}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// connect builds the HTTP transport and the SDK client.
func (c *Conn) connect(ctx context.Context) error {
	cfg, err := c.loadConfig(ctx)
	if err != nil {
		return err
	}
	base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return fmt.Errorf("s3store: unexpected HTTP client %T", cfg.HTTPClient)
	}
	c.transport = base.GetTransport()
	c.watched = &watchdog{next: c.transport, stall: c.o.StallLimit, complete: c.o.CompleteLimit}
	c.Creds = &CredentialSource{Current: cfg.Credentials, Metrics: c.o.Metrics, Loaded: time.Now()}
	c.Creds.Load = func(ctx context.Context) (aws.CredentialsProvider, error) {
		cfg, err := c.loadConfig(ctx)
		return cfg.Credentials, err
	}
	c.observer = &observer{metrics: c.o.Metrics, clock: c.Clock, throttled: c.o.OnThrottled}
	c.Client = s3.NewFromConfig(cfg, c.configure)
	if err := c.checkClient(); err != nil {
		return err
	}
	c.Wire, err = c.newWire(ctx, c.Client.Options())
	return err
}

// loadConfig reads the AWS environment: variables, profile, AWS_CA_BUNDLE.
func (c *Conn) loadConfig(ctx context.Context) (aws.Config, error) {
	idle := max(minIdleConns, c.o.Workers+c.o.Workers/2)
	options := []func(*config.LoadOptions) error{
		config.WithAppID(userAgent),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.MaxIdleConns = idle
			t.MaxIdleConnsPerHost = idle
			t.ForceAttemptHTTP2 = false
			t.WriteBufferSize = writeBuffer
			t.DialContext = loopback.Dialer(t.DialContext)
		})),
	}
	if c.o.Region != "" {
		options = append(options, config.WithRegion(c.o.Region))
	}
	if c.o.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.o.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return cfg, fmt.Errorf("read the AWS environment: %w", err)
	}
	return cfg, nil
}

// configure sets every option of the client that the environment must not
// decide.
func (c *Conn) configure(o *s3.Options) {
	if c.o.EndpointURL != "" {
		o.BaseEndpoint = aws.String(c.o.EndpointURL)
	}
	o.UsePathStyle = c.o.PathStyle || c.o.EndpointURL == "" && o.BaseEndpoint != nil
	if o.Region == "" && o.BaseEndpoint != nil {
		o.Region = FallbackZone
	}
	if r := strings.NewReplacer("-fips-", "-", "fips-", "", "-fips", "").Replace(o.Region); r != o.Region {
		o.Region, o.EndpointOptions.UseFIPSEndpoint = r, aws.FIPSEndpointStateEnabled // As the SDK reads such names.
	}
	o.Credentials = c.Creds
	o.HTTPClient = &http.Client{
		Transport: c.watched,
		// A redirect would take the body and the key to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	o.Retryer = NewRetryer(c.Creds, c.Clock)
	// The transport does not wait for the server's word before a body, and some
	// proxies refuse every request that asks for it.
	o.ContinueHeaderThresholdBytes = -1
	o.DisableClockSkewCorrection = true // It believes any Date; c.clock does not.
	o.HTTPSignerV4 = &clockSigner{clock: c.Clock, next: v4.NewSigner(func(so *v4.SignerOptions) { so.DisableURIPathEscaping = true })}
	o.RetryMaxAttempts = 0 // As the retryer says, not the environment.
	// Every body goes out with a checksum that is already known.
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	// Readers compare hashes of their own, and the SDK would need more rights.
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Deserialize.Add(c.observer, middleware.Before)
	})
}

// NewRetryer returns the few quick attempts inside one request. There is no
// quota: after an outage it would fail requests that never ran. Waiting longer
// is the caller's part.
func NewRetryer(creds *CredentialSource, c *Clock) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = maxAttempts
		o.MaxBackoff = maxBackoff
		o.RateLimiter = ratelimit.None
		o.Retryables = append([]retry.IsErrorRetryable{
			retry.IsErrorRetryableFunc(neverRetry),
			retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
				if refusedCredentials(err) && creds.renewed() {
					return aws.TrueTernary
				}
				return aws.UnknownTernary
			}),
			retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
				if skewed(err, c, time.Now().Add(-maxBackoff)) {
					return aws.TrueTernary
				}
				return aws.UnknownTernary
			}),
		}, o.Retryables...)
	})
}

// refusedCredentials reports whether a server did not take the credentials: they
// may have been replaced since they were read.
func refusedCredentials(err error) bool {
	a := answerOf(err)
	return a.code != "SignatureDoesNotMatch" && a.status != 0 && classOfCode(a.code).Meaning().EveryRequest
}

// neverRetry holds back the attempts that would fail alike: the file changed,
// or the chain has no credentials.
func neverRetry(err error) aws.Ternary {
	_, local := errors.AsType[*bodyError](err)
	_, creds := errors.AsType[*credentialError](err)
	if local || creds {
		return aws.FalseTernary
	}
	return aws.UnknownTernary
}

// checkClient checks what only the resolved client shows.
func (c *Conn) checkClient() error {
	o := c.Client.Options()
	if o.Region == "" {
		return Invalid("no region is configured, and the AWS environment has none")
	}
	if strings.ContainsFunc(o.Region, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("s3store: the region %q has a character that no request can carry", o.Region)
	}
	return CheckEndpoint(aws.ToString(o.BaseEndpoint), c.o.AllowInsecure)
}

// Region is Store.Region.
func (c *Conn) Region() string { return c.Client.Options().Region }

// CheckEndpoint refuses an endpoint that would send data and keys in the clear
// to another host.
func CheckEndpoint(endpoint string, allowInsecure bool) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return Invalid("endpoint: %w", err)
	case u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		return Invalid("endpoint must be https://host or http://host, without a user")
	case u.Scheme == "http" && !allowInsecure && !loopback.Host(u.Hostname()):
		return Invalid("endpoint %s is not encrypted and not on this host", u.Redacted())
	}
	return nil
}

// Fault classifies err, and has refused credentials looked up again for the
// next request.
func (c *Conn) Fault(ctx context.Context, op, key string, err error) error {
	err = Classify(op, key, err)
	if archive.ClassOf(err).Meaning().EveryRequest {
		if rerr := c.Creds.Renew(ctx, time.Now()); rerr != nil {
			return &archive.Error{Class: archive.ClassCredentials, Op: op, Err: errors.Join(err, rerr)}
		}
	}
	return err
}

// Owner returns the expected owner of the bucket as requests carry it.
func (c *Conn) Owner() *string { return Optional(c.o.ExpectedBucketOwner) }

// CloseIdle is Store.CloseIdle.
func (c *Conn) CloseIdle() { c.transport.CloseIdleConnections() }

// Close is Store.Close.
func (c *Conn) Close() {
	c.CloseIdle()
	c.o.Metrics.forget(c.Creds, c.Clock)
}

// KeepCredentials is Store.KeepCredentials.
func (c *Conn) KeepCredentials(ctx context.Context) error {
	if e := c.o.Metrics.expiryOf(c.Creds); e.IsZero() || time.Now().Before(e) {
		return nil
	}
	_, err := c.Creds.Retrieve(ctx)
	return err
}

// ClockOffset is Store.ClockOffset.
func (c *Conn) ClockOffset() time.Duration { return c.Clock.offset() }

// Now is Store.Now.
func (c *Conn) Now() time.Time { return time.Now().Add(c.Clock.offset()) }

// Expire makes the connection doubt what it has learned about its credentials: a
// refusal has them read again at once, and asked about at once.
func (c *Conn) Expire() {
	c.Creds.mu.Lock()
	c.Creds.Loaded = time.Now().Add(-time.Hour)
	c.Creds.mu.Unlock()
	c.Reask.mu.Lock()
	c.Reask.when = time.Time{}
	c.Reask.mu.Unlock()
}

// Optional returns nil for "", which leaves a field out of a request.
func Optional(v string) *string {
	if v == "" {
		return nil
	}
	return aws.String(v)
}
