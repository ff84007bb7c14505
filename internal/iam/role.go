package iam

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// role is what the host may do.
func (b *policyBuilder) role() {
	objects := b.each(func(s *policySource) []string { return []string{s.Objects} })
	b.add(statement{
		Sid: "Objects", Effect: "Allow", Resource: one(objects),
		Action: []string{"s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"},
	})
	for _, bucket := range b.buckets() {
		b.add(b.listing(bucket, "List", "s3:ListBucket"))
	}
	if b.o.Config.S3.ACL != "" {
		b.add(statement{Sid: "Acl", Effect: "Allow", Action: "s3:PutObjectAcl", Resource: one(objects)})
	}
	if tagged := b.each(func(s *policySource) []string {
		if len(s.Tags) == 0 {
			return nil
		}
		return []string{s.Objects}
	}); len(tagged) > 0 {
		b.add(statement{Sid: "Tags", Effect: "Allow", Action: "s3:PutObjectTagging", Resource: one(tagged)})
	}
	b.mirrors()
	if b.o.Config.Manifest.ObjectLock.Mode != "" {
		b.add(statement{
			Sid: "Retention", Effect: "Allow", Action: "s3:PutObjectRetention",
			Resource: one(b.each(func(s *policySource) []string { return []string{s.Trail} })),
		})
	}
	b.commands(objects)
	if !b.onAWS() {
		b.note("s3.endpoint_url is no endpoint of AWS: what the server wants to be granted for its keys is not in this policy")
		return
	}
	b.keys()
	b.signing()
}

// listing is a right on the bucket that is limited to the prefixes.
func (b *policyBuilder) listing(bucket, sid string, actions ...string) statement {
	s := statement{Sid: sid, Effect: "Allow", Action: one(actions), Resource: bucket}
	prefixes := b.each(func(s *policySource) []string {
		if s.BucketARN != bucket {
			return nil
		}
		return []string{strings.TrimPrefix(s.Objects, bucket+"/")}
	})
	if !slices.Contains(prefixes, "*") {
		s.Condition = condition{"StringLike": {"s3:prefix": one(prefixes)}}
	}
	return s
}

// mirrors lets objects of mirrored sources be deleted, and never the trail.
func (b *policyBuilder) mirrors() {
	mirrored := func(v func(s *policySource) []string) []string {
		return b.each(func(s *policySource) []string {
			if s.Deletes != archive.DeletesMirror {
				return nil
			}
			return v(s)
		})
	}
	objects := mirrored(func(s *policySource) []string { return []string{s.Objects} })
	if len(objects) == 0 {
		return
	}
	b.add(statement{Sid: "Mirror", Effect: "Allow", Action: "s3:DeleteObject", Resource: one(objects)})
	b.add(statement{
		Sid: "TrailStays", Effect: "Deny", Action: []string{"s3:DeleteObject", "s3:DeleteObjectVersion"},
		Resource: mirrored(func(s *policySource) (all []string) {
			for _, name := range []string{"manifest_*", "digest_*", "config_*", "keys/*", "dt=*", "_digests/*"} {
				all = append(all, strings.TrimSuffix(s.Trail, "*")+name)
			}
			return all
		}),
	})
}

// commands adds what some commands need beside run and sync.
func (b *policyBuilder) commands(objects []string) {
	with := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(b.o.With, n) })
	}
	if with(PolicyForRestore, PolicyForVerify) {
		b.add(statement{Sid: "Versions", Effect: "Allow", Action: "s3:GetObjectVersion", Resource: one(objects)})
		for _, bucket := range b.buckets() {
			b.add(b.listing(bucket, "ListVersions", "s3:ListBucketVersions"))
		}
	}
	if with(PolicyForRekey) {
		b.add(statement{Sid: "RekeyTags", Effect: "Allow", Action: []string{"s3:GetObjectTagging", "s3:PutObjectTagging"}, Resource: one(objects)})
		b.note("rekey reads objects under the keys that they stand under: grant kms:Decrypt on those that are not in accept_kms_keys; " +
			"where objects have a retention or a legal hold, also s3:GetObjectRetention, s3:GetObjectLegalHold, s3:PutObjectRetention and s3:PutObjectLegalHold")
	}
}

// keys lets S3 use the keys for this host.
func (b *policyBuilder) keys() {
	for i := range b.sources {
		s := &b.sources[i]
		use := statement{Sid: "Key", Effect: "Allow", Action: []string{"kms:GenerateDataKey", "kms:Decrypt"}, Resource: s.Key, Condition: s.viaS3(s.alias)}
		b.addOnce(use)
		for _, k := range s.AcceptKMSKeys {
			arn, alias := s.keyARN(k)
			older := statement{Sid: "OlderKey", Effect: "Allow", Action: "kms:Decrypt", Resource: arn, Condition: s.viaS3(alias)}
			if len(b.o.Instances) > 0 { // Hosts that have not changed over yet write under it.
				older.Action = use.Action
			}
			b.addOnce(older)
		}
		if s.alias != "" {
			b.note("policies cannot name a key by its alias: the statement is for every key of the account that has " + s.alias)
		}
	}
}

// addOnce adds s unless the same rights are there. The same key on behalf of
// another bucket is another statement.
func (b *policyBuilder) addOnce(s statement) {
	want, _ := json.Marshal([]any{s.Action, s.Resource, s.Condition}) // Strings only.
	for _, t := range b.statements {
		if have, _ := json.Marshal([]any{t.Action, t.Resource, t.Condition}); bytes.Equal(have, want) {
			return
		}
	}
	b.add(s)
}

// viaS3 limits the use of a key to S3, and to this source's objects: the
// encryption context that S3 sends is the object's ARN, with a bucket key the
// bucket's.
func (s *policySource) viaS3(alias string) condition {
	services := []string{"s3." + s.region + ".amazonaws.com"}
	if s.partition == "aws-cn" {
		services = append(services, services[0]+".cn")
	}
	c := condition{
		"StringEquals": {"kms:ViaService": one(services)},
		"StringLike":   {"kms:EncryptionContext:aws:s3:arn": []string{s.BucketARN, s.Objects}},
	}
	if alias != "" {
		c["ForAnyValue:StringEquals"] = map[string]any{"kms:ResourceAliases": alias}
	}
	return c
}

// signing lets digests be signed.
func (b *policyBuilder) signing() {
	key, ok := strings.CutPrefix(b.o.Config.Manifest.Sign, "kms:")
	if !ok || len(b.sources) == 0 {
		return
	}
	arn, alias := b.sources[0].keyARN(key)
	sign := condition{"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256"}}
	var public any // No condition at all.
	if alias != "" {
		of := map[string]any{"kms:ResourceAliases": alias}
		sign["ForAnyValue:StringEquals"], public = of, condition{"ForAnyValue:StringEquals": of}
	}
	b.add(statement{Sid: "Sign", Effect: "Allow", Action: "kms:Sign", Resource: arn, Condition: sign})
	b.add(statement{Sid: "PublicKey", Effect: "Allow", Action: "kms:GetPublicKey", Resource: arn, Condition: public})
}
