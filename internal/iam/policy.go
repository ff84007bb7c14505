// Package iam writes the least policies that a configuration needs: of the role, the
// bucket and the key.
package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/s3syncd/s3syncd/internal/config"
)

// PolicyKind says whom a policy is attached to.
type PolicyKind string

// The kinds of policies.
const (
	PolicyRole   PolicyKind = "role"    // of the host: what it may do
	PolicyBucket PolicyKind = "bucket"  // of the bucket: what is denied to everyone
	PolicyKey    PolicyKind = "kms-key" // of the key: who may use it
)

// The commands that need more than run, sync and preflight.
const (
	PolicyForRekey   = "rekey"
	PolicyForRestore = "restore"
	PolicyForVerify  = "verify"
)

// PolicyOptions choose a policy.
type PolicyOptions struct {
	Config *config.Config
	Kind   PolicyKind
	Source string   // "": all sources
	With   []string // PolicyFor…: commands that a role is to allow as well
	Region string   // of the environment, for sources without one of their own
	// Instances are the hosts that the policy is for, with * for any text; none:
	// the configuration's own.
	Instances []string
	// Merge is the bucket's present policy, which a PolicyBucket is put into; nil:
	// there is none.
	Merge []byte
}

// ErrPolicyChoice says that one policy cannot be meant: there are several
// buckets or keys.
var ErrPolicyChoice = errors.New("choose one source with --source")

// managedLimit is the size of a managed policy in characters, white space left
// out. https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
const managedLimit = 6144

// Policy returns the least policy in JSON for what the configuration does, and
// notes for an operator: what to fill in, and what the policy cannot say. It makes
// no request.
func Policy(o PolicyOptions) (doc []byte, notes []string, err error) {
	b := &policyBuilder{o: o, noted: map[string]bool{}}
	for i := range o.Config.Sources {
		c := &o.Config.Sources[i]
		if o.Source != "" && o.Source != c.Name {
			continue
		}
		region := c.Region
		if region == "" && keyRegion(c.KMSKeyID) == "" {
			region = o.Region
		}
		b.addSource(i, region)
	}
	switch o.Kind {
	case PolicyRole:
		b.role()
	case PolicyBucket:
		err = b.bucket()
	case PolicyKey:
		err = b.key()
	default:
		err = fmt.Errorf("there is no policy of kind %q", o.Kind)
	}
	if err != nil {
		return nil, nil, err
	}
	return b.document()
}

// addSource adds a source as each of the instances has it.
func (b *policyBuilder) addSource(i int, region string) {
	c := &b.o.Config.Sources[i]
	if len(b.o.Instances) == 0 {
		b.sources = append(b.sources, policySource{Source: c, ARNs: ARNsOf(c, region)})
		return
	}
	for n, instance := range b.o.Instances {
		of := *c
		of.Prefix = b.o.Config.PrefixOf(i, instance)
		if n > 0 && of.Prefix == b.sources[len(b.sources)-1].Prefix {
			b.note("the prefix of source " + c.Name + " does not have {instance} in it: hosts that share it would overwrite each other's files")
			return
		}
		b.sources = append(b.sources, policySource{Source: &of, ARNs: ARNsOf(&of, region)})
		if strings.Contains(of.Prefix, "*") && b.o.Kind == PolicyRole {
			b.note("a host with this role may write under the prefix of each host that " + instance + " stands for; a role a host keeps them apart")
		}
	}
}

// policySource is a source with its names in policies.
type policySource struct {
	*config.Source
	ARNs
}

// statement is one of a policy, with its fields in the usual order.
type statement struct {
	Sid       string `json:"Sid"`
	Effect    string `json:"Effect"`
	Principal any    `json:"Principal,omitempty"`
	Action    any    `json:"Action"`
	Resource  any    `json:"Resource"`
	Condition any    `json:"Condition,omitempty"`
}

// condition is operator → key → values. Maps are rendered in the order of their
// keys.
type condition map[string]map[string]any

type policyBuilder struct {
	o          PolicyOptions
	sources    []policySource
	statements []statement
	notes      []string
	noted      map[string]bool
}

// onAWS reports whether KMS and IAM are AWS's.
func (b *policyBuilder) onAWS() bool {
	u, err := url.Parse(b.o.Config.S3.EndpointURL)
	host := ""
	if err == nil {
		host = u.Hostname()
	}
	return host == "" || strings.HasSuffix(host, ".amazonaws.com") || strings.HasSuffix(host, ".amazonaws.com.cn")
}

func (b *policyBuilder) note(text string) {
	if !b.noted[text] {
		b.noted[text] = true
		b.notes = append(b.notes, text)
	}
}

func (b *policyBuilder) add(s statement) {
	n := 1
	for i := range b.statements {
		if name := b.statements[i].Sid; name == s.Sid || strings.TrimRight(name, "0123456789") == s.Sid {
			n++
		}
	}
	if n > 1 {
		s.Sid += strconv.Itoa(n)
	}
	b.statements = append(b.statements, s)
}

// document renders what was added.
func (b *policyBuilder) document() ([]byte, []string, error) {
	var doc any = struct {
		Version   string      `json:"Version"`
		Statement []statement `json:"Statement"`
	}{"2012-10-17", b.statements}
	if b.o.Merge != nil {
		m, err := b.merge(b.o.Merge)
		if err != nil {
			return nil, nil, err
		}
		doc = m.doc
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, nil, err
	}
	text := out.String()
	b.fills(text)
	b.limits(len(strings.Join(strings.Fields(text), "")))
	return out.Bytes(), b.notes, nil
}

// fills notes what the policy has where an ARN is not known.
func (b *policyBuilder) fills(text string) {
	for _, fill := range []struct{ word, text string }{
		{fillAccount, "replace ACCOUNT_ID by the number of the account that the key is in (configure the key's ARN, and it is known)"},
		{fillRegion, "replace REGION by the bucket's region (configure s3.region, and it is known)"},
		{fillRole, "replace ROLE_NAME by the role of the host"},
	} {
		if strings.Contains(text, fill.word) {
			b.note(fill.text)
		}
	}
}

// limits notes that the policy, of n characters without white space, is too long.
func (b *policyBuilder) limits(n int) {
	switch {
	case b.o.Kind == PolicyRole && n > managedLimit:
		b.note(fmt.Sprintf("the policy has %d characters, a managed one may have %d: attach one policy a source, with --source", n, managedLimit))
	case b.o.Kind == PolicyBucket && n > bucketLimit:
		b.note(fmt.Sprintf("the policy has %d characters, a bucket's may have %d: name the hosts by a pattern, as in --instance 'app-*'", n, bucketLimit))
	}
}

// one returns v itself where it is alone, as policies are usually written.
func one(v []string) any {
	if len(v) == 1 {
		return v[0]
	}
	return v
}

// each collects what get returns of all sources, without repetitions.
func (b *policyBuilder) each(get func(s *policySource) []string) []string {
	var all []string
	for i := range b.sources {
		for _, v := range get(&b.sources[i]) {
			if v != "" && !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
	}
	return all
}

// buckets returns the bucket ARNs.
func (b *policyBuilder) buckets() []string {
	return b.each(func(s *policySource) []string { return []string{s.BucketARN} })
}
