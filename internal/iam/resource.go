package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// bucket is what everyone is denied in the bucket: write under another key or
// algorithm, and speak without TLS. What a request does not say is not refused:
// the parts of a multipart upload carry no encryption of their own.
func (b *policyBuilder) bucket() error {
	if len(b.buckets()) != 1 {
		return fmt.Errorf("there are %d buckets: %w", len(b.buckets()), ErrPolicyChoice)
	}
	bucket := b.sources[0].BucketARN
	for i := range b.sources {
		s := &b.sources[i]
		const algorithm, key = "s3:x-amz-server-side-encryption", "s3:x-amz-server-side-encryption-aws-kms-key-id"
		b.deny("OnlyKMS", s.Objects, algorithm, []string{s.SSE})
		b.deny("OnlyThisKey", s.Objects, key, s.spellings())
		for _, k := range append([]string{s.KMSKeyID}, s.AcceptKMSKeys...) {
			if _, alias := s.keyARN(k); alias != "" {
				b.note("replace " + s.fill(k) + " by the ARN of the key behind " + alias)
			}
		}
		if len(s.AcceptKMSKeys) > 0 {
			b.note("OnlyThisKey also allows the keys in accept_kms_keys: hosts that have not changed over yet write under them. Print it again when they are taken out")
		}
	}
	objects := b.each(func(s *policySource) []string { return []string{s.Objects} })
	b.add(statement{
		Sid: "OnlyTLS", Effect: "Deny", Principal: "*", Action: "s3:*", Resource: append([]string{bucket}, objects...),
		Condition: condition{"Bool": {"aws:SecureTransport": "false"}},
	})
	b.note("a request that asks for no encryption gets the bucket's default: set it to the key as well (PutBucketEncryption, aws:kms, " + b.sources[0].KMSKeyID + ")")
	if !b.onAWS() {
		b.note("leave OnlyTLS out where the server is reached without TLS")
	}
	return nil
}

// fillKey stands where only the key's ARN will do.
const fillKey = "KEY_ARN"

// fill stands for the ARN of a key that is named by an alias: there may be one
// for the configured key and one for each accepted key.
func (s *policySource) fill(key string) string {
	if i := slices.Index(s.AcceptKMSKeys, key); i >= 0 && key != s.KMSKeyID {
		return fmt.Sprintf("OLDER_%s_%d", fillKey, i+1)
	}
	return fillKey
}

// spellings are the ways in which a request may name a key that is written
// under: the configured one, and while keys change those that are accepted.
func (s *policySource) spellings() (all []string) {
	for _, k := range append([]string{s.KMSKeyID}, s.AcceptKMSKeys...) {
		names := []string{k}
		switch arn, alias := s.keyARN(k); {
		case alias != "":
			names = append(names, s.fill(k))
		case arn != k:
			names = append(names, arn)
		}
		for _, n := range names {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	return all
}

// deny refuses writes that ask for something else than the values of key.
func (b *policyBuilder) deny(sid, objects, key string, values []string) {
	c := condition{"StringNotEquals": {key: one(values)}, "Null": {key: "false"}}
	for i := range b.statements {
		t := &b.statements[i]
		have, _ := json.Marshal(t.Condition) // Strings only.
		if want, _ := json.Marshal(c); bytes.Equal(have, want) {
			t.Resource = append(list(t.Resource), objects)
			return
		}
	}
	b.add(statement{Sid: sid, Effect: "Deny", Principal: "*", Action: "s3:PutObject", Resource: objects, Condition: c})
}

// list is one's inverse.
func list(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	}
	return nil
}

// key is who may use the key: its account administers it, and the host uses it
// through S3.
func (b *policyBuilder) key() error {
	keys := b.each(func(s *policySource) []string { return []string{s.KMSKeyID} })
	switch {
	case !b.onAWS():
		return errors.New("s3.endpoint_url is no endpoint of AWS, so its keys have no policies of KMS")
	case len(keys) != 1:
		return fmt.Errorf("there are %d keys: %w", len(keys), ErrPolicyChoice)
	}
	first := b.sources[0]
	account := fillAccount
	if f := strings.SplitN(first.Key, ":", 6); len(f) == 6 {
		account = f[4]
	}
	iam := "arn:" + first.partition + ":iam::" + account + ":"
	b.add(statement{
		Sid: "Administration", Effect: "Allow", Principal: map[string]string{"AWS": iam + "root"}, Action: "kms:*", Resource: "*",
	})
	for i := range b.sources {
		b.addOnce(statement{
			Sid: "S3syncd", Effect: "Allow", Principal: map[string]string{"AWS": iam + "role/" + fillRole},
			Action: []string{"kms:GenerateDataKey", "kms:Decrypt"}, Resource: "*", Condition: b.sources[i].viaS3(""),
		})
	}
	b.note("a role of another account: name it in the principal, and give it the role's policy as well")
	return nil
}
