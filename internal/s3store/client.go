package s3store

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

	"github.com/s3syncd/s3syncd/internal/loopback"
)

const (
	maxAttempts  = 3
	maxBackoff   = 5 * time.Second
	minIdleConns = 10
	writeBuffer  = 16 << 10    // of a connection: a small file and its headers go out in one write
	fallbackZone = "us-east-1" // For compatible servers, which sign with any region.
)

// connect builds the HTTP transport and the SDK client.
func (s *Store) connect(ctx context.Context) error {
	cfg, err := s.loadConfig(ctx)
	if err != nil {
		return err
	}
	base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return fmt.Errorf("s3store: unexpected HTTP client %T", cfg.HTTPClient)
	}
	s.transport = base.GetTransport()
	s.watched = &watchdog{next: s.transport, stall: s.o.StallLimit, complete: s.o.CompleteLimit}
	s.creds = &credentialSource{current: cfg.Credentials, metrics: s.o.Metrics, loaded: time.Now()}
	s.creds.load = func(ctx context.Context) (aws.CredentialsProvider, error) {
		cfg, err := s.loadConfig(ctx)
		return cfg.Credentials, err
	}
	s.observer = &observer{metrics: s.o.Metrics, clock: s.clock, throttled: s.o.OnThrottled}
	s.client = s3.NewFromConfig(cfg, s.configure)
	if err := s.checkClient(); err != nil {
		return err
	}
	s.wire, err = s.newWire(ctx, s.client.Options())
	return err
}

// loadConfig reads the AWS environment: variables, profile, AWS_CA_BUNDLE.
func (s *Store) loadConfig(ctx context.Context) (aws.Config, error) {
	idle := max(minIdleConns, s.o.Workers+s.o.Workers/2)
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
	if s.o.Region != "" {
		options = append(options, config.WithRegion(s.o.Region))
	}
	if s.o.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(s.o.Profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return cfg, fmt.Errorf("read the AWS environment: %w", err)
	}
	return cfg, nil
}

// configure sets every option of the client that the environment must not
// decide.
func (s *Store) configure(o *s3.Options) {
	if s.o.EndpointURL != "" {
		o.BaseEndpoint = aws.String(s.o.EndpointURL)
	}
	o.UsePathStyle = s.o.PathStyle || s.o.EndpointURL == "" && o.BaseEndpoint != nil
	if o.Region == "" && o.BaseEndpoint != nil {
		o.Region = fallbackZone
	}
	if r := strings.NewReplacer("-fips-", "-", "fips-", "", "-fips", "").Replace(o.Region); r != o.Region {
		o.Region, o.EndpointOptions.UseFIPSEndpoint = r, aws.FIPSEndpointStateEnabled // As the SDK reads such names.
	}
	o.Credentials = s.creds
	o.HTTPClient = &http.Client{
		Transport: s.watched,
		// A redirect would take the body and the key to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	o.Retryer = newRetryer(s.creds, s.clock)
	// The transport does not wait for the server's word before a body, and some
	// proxies refuse every request that asks for it.
	o.ContinueHeaderThresholdBytes = -1
	o.DisableClockSkewCorrection = true // It believes any Date; s.clock does not.
	o.HTTPSignerV4 = &clockSigner{clock: s.clock, next: v4.NewSigner(func(so *v4.SignerOptions) { so.DisableURIPathEscaping = true })}
	o.RetryMaxAttempts = 0 // As the retryer says, not the environment.
	// Every body goes out with a checksum that is already known.
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	// Readers compare hashes of their own, and the SDK would need more rights.
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Deserialize.Add(s.observer, middleware.Before)
	})
}

// newRetryer returns the few quick attempts inside one request. There is no
// quota: after an outage it would fail requests that never ran. Waiting longer
// is the caller's part.
func newRetryer(creds *credentialSource, c *clock) aws.Retryer {
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
func (s *Store) checkClient() error {
	o := s.client.Options()
	if o.Region == "" {
		return invalid("no region is configured, and the AWS environment has none")
	}
	if strings.ContainsFunc(o.Region, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("s3store: the region %q has a character that no request can carry", o.Region)
	}
	return checkEndpoint(aws.ToString(o.BaseEndpoint), s.o.AllowInsecure)
}

func (s *Store) region() string { return s.client.Options().Region }

// Region returns the region that requests are signed for.
func (s *Store) Region() string { return s.region() }

// checkEndpoint refuses an endpoint that would send data and keys in the clear
// to another host.
func checkEndpoint(endpoint string, allowInsecure bool) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return invalid("endpoint: %w", err)
	case u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		return invalid("endpoint must be https://host or http://host, without a user")
	case u.Scheme == "http" && !allowInsecure && !loopback.Host(u.Hostname()):
		return invalid("endpoint %s is not encrypted and not on this host", u.Redacted())
	}
	return nil
}
