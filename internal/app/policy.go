package app

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
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// PolicyKind says whom a policy is attached to.
type PolicyKind string

// The kinds of policies.
const (
	PolicyRole   PolicyKind = "role"    // of the host: what it may do
	PolicyBucket PolicyKind = "bucket"  // of the bucket: what nobody may do
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
// notes for a person: what to fill in, and what the policy cannot say. It makes
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
		b.sources = append(b.sources, policySource{Source: c, arns: arnsOf(c, region)})
		return
	}
	for n, instance := range b.o.Instances {
		of := *c
		of.Prefix = b.o.Config.PrefixOf(i, instance)
		if n > 0 && of.Prefix == b.sources[len(b.sources)-1].Prefix {
			b.note("the prefix of source " + c.Name + " does not have {instance} in it: hosts that share it would overwrite each other's files")
			return
		}
		b.sources = append(b.sources, policySource{Source: &of, arns: arnsOf(&of, region)})
		if strings.Contains(of.Prefix, "*") && b.o.Kind == PolicyRole {
			b.note("a host with this role may write under the prefix of each host that " + instance + " stands for; a role a host keeps them apart")
		}
	}
}

// policySource is a source with its names in policies.
type policySource struct {
	*config.Source
	arns
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

// fills notes what stands in the policy where an ARN is not known.
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
	return b.each(func(s *policySource) []string { return []string{s.bucket} })
}

// role is what the host may do.
func (b *policyBuilder) role() {
	objects := b.each(func(s *policySource) []string { return []string{s.objects} })
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
		return []string{s.objects}
	}); len(tagged) > 0 {
		b.add(statement{Sid: "Tags", Effect: "Allow", Action: "s3:PutObjectTagging", Resource: one(tagged)})
	}
	b.mirrors()
	if b.o.Config.Manifest.ObjectLock.Mode != "" {
		b.add(statement{
			Sid: "Retention", Effect: "Allow", Action: "s3:PutObjectRetention",
			Resource: one(b.each(func(s *policySource) []string { return []string{s.trail} })),
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
		if s.bucket != bucket {
			return nil
		}
		return []string{strings.TrimPrefix(s.objects, bucket+"/")}
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
	objects := mirrored(func(s *policySource) []string { return []string{s.objects} })
	if len(objects) == 0 {
		return
	}
	b.add(statement{Sid: "Mirror", Effect: "Allow", Action: "s3:DeleteObject", Resource: one(objects)})
	b.add(statement{
		Sid: "TrailStays", Effect: "Deny", Action: []string{"s3:DeleteObject", "s3:DeleteObjectVersion"},
		Resource: mirrored(func(s *policySource) (all []string) {
			for _, name := range []string{"manifest_*", "digest_*", "config_*", "keys/*", "dt=*", "_digests/*"} {
				all = append(all, strings.TrimSuffix(s.trail, "*")+name)
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
		use := statement{Sid: "Key", Effect: "Allow", Action: []string{"kms:GenerateDataKey", "kms:Decrypt"}, Resource: s.key, Condition: s.viaS3(s.alias)}
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
		"StringLike":   {"kms:EncryptionContext:aws:s3:arn": []string{s.bucket, s.objects}},
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

// bucket is what nobody may do in the bucket: write under another key or
// algorithm, and speak without TLS. What a request does not say is not refused:
// the parts of a multipart upload carry no encryption of their own.
func (b *policyBuilder) bucket() error {
	if len(b.buckets()) != 1 {
		return fmt.Errorf("there are %d buckets: %w", len(b.buckets()), ErrPolicyChoice)
	}
	bucket := b.sources[0].bucket
	for i := range b.sources {
		s := &b.sources[i]
		const algorithm, key = "s3:x-amz-server-side-encryption", "s3:x-amz-server-side-encryption-aws-kms-key-id"
		b.deny("OnlyKMS", s.objects, algorithm, []string{s.SSE})
		b.deny("OnlyThisKey", s.objects, key, s.spellings())
		for _, k := range append([]string{s.KMSKeyID}, s.AcceptKMSKeys...) {
			if _, alias := s.keyARN(k); alias != "" {
				b.note("replace " + s.fill(k) + " by the ARN of the key behind " + alias)
			}
		}
		if len(s.AcceptKMSKeys) > 0 {
			b.note("OnlyThisKey also allows the keys in accept_kms_keys: hosts that have not changed over yet write under them. Print it again when they are taken out")
		}
	}
	objects := b.each(func(s *policySource) []string { return []string{s.objects} })
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
	if f := strings.SplitN(first.key, ":", 6); len(f) == 6 {
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
