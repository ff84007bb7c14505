package s3conn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
)

// credentialRenewal bounds how often refused credentials are looked up again, and
// renewLimit how long that may take.
const (
	credentialRenewal = 15 * time.Second
	renewLimit        = 10 * time.Second
)

// credentialError marks an error of the credential chain, as opposed to one of
// the request that wanted the credentials.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return "credentials: " + e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// fromInstanceMetadata reports whether the chain's last link failed: the host
// has no credentials, it is not that a network is down.
func (e *credentialError) fromInstanceMetadata() bool {
	op, ok := errors.AsType[*smithy.OperationError](e.err)
	return ok && op.Service() == "ec2imds"
}

// CredentialSource hands out the credentials of the AWS default chain. Unlike
// the SDK it reads the chain again after they were refused, so that a rotated
// credentials file is taken up without a restart.
type CredentialSource struct {
	Load    func(ctx context.Context) (aws.CredentialsProvider, error)
	Metrics *Metrics

	mu      sync.Mutex
	Current aws.CredentialsProvider
	last    aws.Credentials // Of the last request.
	Loaded  time.Time
	changed time.Time // When the chain, read again, had others.
}

// Retrieve returns the current credentials. It may make requests.
func (c *CredentialSource) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c.mu.Lock()
	p := c.Current
	c.mu.Unlock()
	if p == nil {
		return aws.Credentials{}, &credentialError{errors.New("the AWS environment has none")}
	}
	v, err := p.Retrieve(ctx)
	if err != nil {
		return v, &credentialError{err}
	}
	if err := checkCredentials(v); err != nil {
		return v, &credentialError{err}
	}
	expires := time.Time{}
	if v.CanExpire {
		expires = v.Expires
	}
	c.mu.Lock()
	c.last = v
	c.mu.Unlock()
	c.Metrics.setExpiry(c, expires)
	return v, nil
}

// checkCredentials refuses what no request can carry: a file that was read with
// the newline at its end is the usual cause.
func checkCredentials(c aws.Credentials) error {
	for name, v := range map[string]string{"access key": c.AccessKeyID, "session token": c.SessionToken} {
		if i := strings.IndexFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }); i >= 0 {
			return fmt.Errorf("the %s has a character at position %d that no request can carry: is it a newline or a space?", name, i+1)
		}
	}
	secret := c.SecretAccessKey
	if strings.TrimSpace(secret) != secret || strings.ContainsFunc(secret, unicode.IsControl) {
		return errors.New("the secret key begins or ends with a space or a newline, or has a control character")
	}
	return nil
}

// renewed reports whether another attempt is worth while after credentials were
// refused: the chain has others now, or had a moment ago for another request.
func (c *CredentialSource) renewed() bool {
	ctx, cancel := context.WithTimeout(context.Background(), renewLimit)
	defer cancel()
	now := time.Now()
	if err := c.Renew(ctx, now); err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(c.changed) < credentialRenewal
}

// Renew reads the chain again, unless that was done a moment ago.
func (c *CredentialSource) Renew(ctx context.Context, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.Loaded) < credentialRenewal {
		return nil
	}
	c.Loaded = now
	p, err := c.Load(ctx)
	if err != nil {
		return fmt.Errorf("read the AWS environment again: %w", err)
	}
	c.Current = p
	if p == nil {
		return nil
	}
	v, err := p.Retrieve(ctx)
	if err == nil && (v.AccessKeyID != c.last.AccessKeyID || v.SecretAccessKey != c.last.SecretAccessKey || v.SessionToken != c.last.SessionToken) {
		c.changed, c.last = now, v
	}
	return nil // Whatever keeps the chain from giving credentials, the next request meets it.
}
