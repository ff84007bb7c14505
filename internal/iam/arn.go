package iam

import (
	"strings"

	"github.com/s3syncd/s3syncd/internal/config"
)

// What a policy says where the configuration does not know.
const (
	fillRegion  = "REGION"
	fillAccount = "ACCOUNT_ID"
	fillRole    = "ROLE_NAME"
)

// ARNs are the names of one source's things in policies.
type ARNs struct {
	partition string
	region    string // or fillRegion
	BucketARN string
	Objects   string // below the prefix, the trail included
	Trail     string // below _manifests/
	Key       string // of the KMS key; with fillAccount where that is not known
	alias     string // alias/NAME, "" where the key is not named by one
}

// ARNsOf names the things of c; region is the one in effect, "" where it is not
// known.
func ARNsOf(c *config.Source, region string) ARNs {
	if region == "" {
		region = keyRegion(c.KMSKeyID)
	}
	a := ARNs{region: region, partition: partitionOf(region)}
	if a.region == "" {
		a.region = fillRegion
	}
	if f := strings.SplitN(c.KMSKeyID, ":", 6); len(f) == 6 {
		a.partition = f[1]
	}
	a.BucketARN = "arn:" + a.partition + ":s3:::" + c.Bucket
	below := a.BucketARN + "/"
	if c.Prefix != "" {
		below += c.Prefix + "/"
	}
	a.Objects, a.Trail = below+"*", below+"_manifests/*"
	a.Key, a.alias = a.keyARN(c.KMSKeyID)
	return a
}

// keyARN returns the ARN of a key as a configuration names it. Policies know no
// aliases: that of one is of every key of the account, and the alias a condition.
func (a *ARNs) keyARN(key string) (arn, alias string) {
	account, name := fillAccount, key
	if f := strings.SplitN(key, ":", 6); len(f) == 6 {
		if strings.HasPrefix(f[5], "key/") {
			return key, ""
		}
		account, name = f[4], f[5]
	}
	below := "arn:" + a.partition + ":kms:" + a.region + ":" + account + ":key/"
	if strings.HasPrefix(name, "alias/") {
		return below + "*", name
	}
	return below + name, ""
}

func keyRegion(key string) string {
	if f := strings.SplitN(key, ":", 6); len(f) == 6 {
		return f[3]
	}
	return ""
}

// partitionOf returns the partition of AWS that a region belongs to.
func partitionOf(region string) string {
	for _, p := range [][2]string{
		{"cn-", "aws-cn"},
		{"us-gov-", "aws-us-gov"},
		{"us-iso-", "aws-iso"},
		{"us-isob-", "aws-iso-b"},
		{"eu-isoe-", "aws-iso-e"},
		{"us-isof-", "aws-iso-f"},
		{"eusc-", "aws-eusc"},
	} {
		if strings.HasPrefix(region, p[0]) {
			return p[1]
		}
	}
	return "aws"
}
