package signer

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/s3syncd/s3syncd/internal/loopback"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// The requests that a signer makes, as errors name them.
const (
	opSign      = "kms:Sign"
	opPublicKey = "kms:GetPublicKey"
)

// defaultSignTimeout is short: publishing does not wait long for a signature.
const defaultSignTimeout = 5 * time.Second

// algorithmECDSA is what the trail calls ECDSA_SHA_256.
const algorithmECDSA = "ecdsa-sha256"

// KMSOptions say which key signs.
type KMSOptions struct {
	KeyID         string // of an asymmetric key ECC_NIST_P256 for SIGN_VERIFY: id, ARN or alias
	Region        string // ""; the ARN's, else the AWS environment's
	Profile       string // "": the AWS environment's
	AllowInsecure bool   // an http endpoint that is not on this host
	// Timeout bounds one call of the signer, with its retries. 0: five seconds.
	Timeout time.Duration
	Metrics *s3conn.Metrics
}

// KMS signs with a key that never leaves KMS. It is safe for concurrent
// use. The endpoint is that of the AWS environment (AWS_ENDPOINT_URL_KMS).
type KMS struct {
	key     string
	timeout time.Duration
	client  *kms.Client
	creds   *s3conn.CredentialSource

	mu     sync.Mutex
	arn    string // of the key that public is
	public []byte // DER
	parsed *ecdsa.PublicKey
}

// OpenKMS prepares signing. It makes no request.
func OpenKMS(ctx context.Context, o KMSOptions) (*KMS, error) {
	if o.Metrics == nil || o.KeyID == "" {
		return nil, s3conn.Invalid("a signer needs a key and metrics")
	}
	load := func(ctx context.Context) (aws.Config, error) {
		options := []func(*config.LoadOptions) error{config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.DialContext = loopback.Dialer(t.DialContext)
		}))}
		if r := keyRegion(o.KeyID, o.Region); r != "" {
			options = append(options, config.WithRegion(r))
		}
		if o.Profile != "" {
			options = append(options, config.WithSharedConfigProfile(o.Profile))
		}
		cfg, err := config.LoadDefaultConfig(ctx, options...)
		if err != nil {
			return cfg, fmt.Errorf("read the AWS environment: %w", err)
		}
		return cfg, nil
	}
	cfg, err := load(ctx)
	if err != nil {
		return nil, err
	}
	base, ok := cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return nil, fmt.Errorf("s3store: unexpected HTTP client %T", cfg.HTTPClient)
	}
	s := &KMS{key: o.KeyID, timeout: cmp.Or(o.Timeout, defaultSignTimeout), creds: &s3conn.CredentialSource{Current: cfg.Credentials, Metrics: o.Metrics, Loaded: time.Now()}}
	s.creds.Load = func(ctx context.Context) (aws.CredentialsProvider, error) {
		cfg, err := load(ctx)
		return cfg.Credentials, err
	}
	transport := base.GetTransport()
	s.client = kms.NewFromConfig(cfg, func(k *kms.Options) { //nolint:contextcheck // Credentials are renewed for all requests.
		if k.Region == "" && k.BaseEndpoint != nil {
			k.Region = s3conn.FallbackZone
		}
		k.Credentials = s.creds
		k.HTTPClient = &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		k.Retryer, k.RetryMaxAttempts = s3conn.NewRetryer(s.creds, &s3conn.Clock{}), 0
	})
	final := s.client.Options()
	if final.Region == "" {
		return nil, s3conn.Invalid("no region is configured for the signing key, and the AWS environment has none")
	}
	return s, s3conn.CheckEndpoint(aws.ToString(final.BaseEndpoint), o.AllowInsecure)
}

// keyRegion returns the region of a key's ARN, else the given one.
func keyRegion(key, fallback string) string {
	if parts := strings.Split(key, ":"); len(parts) >= 6 && parts[0] == "arn" && parts[2] == "kms" && parts[3] != "" {
		return parts[3]
	}
	return fallback
}

// Sign signs the SHA-256 of data with ECDSA_SHA_256, and checks the signature
// before it returns it. It blocks for at most a few seconds.
func (s *KMS) Sign(ctx context.Context, data []byte) (algorithm, fingerprint string, sig []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	sum := sha256.Sum256(data)
	out, err := s.client.Sign(ctx, &kms.SignInput{
		KeyId: aws.String(s.key), Message: sum[:], MessageType: types.MessageTypeDigest, SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
	})
	if err != nil {
		return "", "", nil, s.fault(ctx, opSign, err)
	}
	// An alias may have moved since the public key was asked for.
	der, public, err := s.publicKey(ctx, aws.ToString(out.KeyId))
	if err != nil {
		return "", "", nil, err
	}
	if !ecdsa.VerifyASN1(public, sum[:], out.Signature) {
		return "", "", nil, &archive.Error{Class: archive.ClassConfiguration, Op: opSign, Err: errors.New("the answer is no signature of the key over this digest")}
	}
	fp := sha256.Sum256(der)
	return algorithmECDSA, hex.EncodeToString(fp[:]), out.Signature, nil
}

// PublicKey returns the key that checks the signatures. It blocks for at most a
// few seconds, and asks once for each key that an alias names.
func (s *KMS) PublicKey(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	der, _, err := s.publicKey(ctx, "")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// publicKey returns the public key of arn; "" is the one that signed last, or
// would now.
func (s *KMS) publicKey(ctx context.Context, arn string) ([]byte, *ecdsa.PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.public != nil && (arn == "" || arn == s.arn) {
		return s.public, s.parsed, nil
	}
	ask := arn
	if ask == "" {
		ask = s.key
	}
	out, err := s.client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: aws.String(ask)})
	if err != nil {
		return nil, nil, s.fault(ctx, opPublicKey, err)
	}
	parsed, err := x509.ParsePKIXPublicKey(out.PublicKey)
	key, ok := parsed.(*ecdsa.PublicKey)
	if err != nil || !ok {
		return nil, nil, &archive.Error{
			Class: archive.ClassConfiguration, Op: opPublicKey,
			Err: fmt.Errorf("the key %s is %s; ECC_NIST_P256 for SIGN_VERIFY is needed", s.key, s3conn.Bounded(string(out.KeySpec))),
		}
	}
	s.public, s.parsed, s.arn = out.PublicKey, key, aws.ToString(out.KeyId)
	return s.public, s.parsed, nil
}

// fault classifies err and has refused credentials looked up again.
func (s *KMS) fault(ctx context.Context, op string, err error) error {
	err = s3conn.Classify(op, "", err)
	if archive.ClassOf(err).Meaning().EveryRequest {
		if rerr := s.creds.Renew(ctx, time.Now()); rerr != nil {
			return &archive.Error{Class: archive.ClassCredentials, Op: op, Err: errors.Join(err, rerr)}
		}
	}
	return err
}

// String names the key, which is no secret.
func (s *KMS) String() string { return "kms:" + s.key }
