package s3store

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// encryption is what every write asks for.
type encryption struct {
	algorithm types.ServerSideEncryption
	keyID     string
	bucketKey *bool
	context   *string // base64 of a JSON object, nil for none
}

func newEncryption(o Options) (encryption, error) {
	e := encryption{algorithm: types.ServerSideEncryption(o.SSE), keyID: o.KMSKeyID}
	if o.BucketKey && e.algorithm == types.ServerSideEncryptionAwsKms { // S3 has no bucket keys for dsse.
		e.bucketKey = aws.Bool(true)
	}
	if len(o.EncryptionContext) > 0 {
		b, err := json.Marshal(o.EncryptionContext)
		if err != nil {
			return encryption{}, fmt.Errorf("encode the encryption context: %w", err)
		}
		e.context = aws.String(base64.StdEncoding.EncodeToString(b))
	}
	return e, nil
}

// sse holds pointers to the encryption fields of one SDK input, which have no
// common type.
type sse struct {
	algorithm *types.ServerSideEncryption
	keyID     **string
	bucketKey **bool
	context   **string
}

// encrypt fills in the encryption of one write. Nothing else in this package
// sets these fields.
func (e encryption) encrypt(f sse) {
	*f.algorithm = e.algorithm
	*f.keyID = aws.String(e.keyID)
	*f.bucketKey = e.bucketKey
	*f.context = e.context
}

const kmsARN = "arn:aws:kms:"

// sameKey reports whether a server that was asked for the key configured and
// names server means the same one. AWS names the key's ARN, MinIO answers
// arn:aws:kms: and the key's name. An alias never equals an ARN.
func sameKey(configured, server, region string) bool {
	if configured == "" || server == "" {
		return false
	}
	if configured == server {
		return true
	}
	f := strings.SplitN(server, ":", 6) // arn:aws:kms:region:account:key/id
	if len(f) == 6 && f[0] == "arn" && f[2] == "kms" {
		id, isKey := strings.CutPrefix(f[5], "key/")
		return isKey && configured == id && f[3] == region
	}
	// What is left is a server with names instead of ARNs.
	return !isKeyARN(configured) && strings.TrimPrefix(configured, kmsARN) == strings.TrimPrefix(server, kmsARN)
}

// isKeyARN reports whether k has the six parts of an AWS ARN.
func isKeyARN(k string) bool {
	return strings.HasPrefix(k, "arn:") && strings.Count(k, ":") >= 5
}

// isAlias reports whether k is an alias or the ARN of one.
func isAlias(k string) bool {
	return strings.HasPrefix(k, "alias/") || isKeyARN(k) && strings.Contains(k, ":alias/")
}
