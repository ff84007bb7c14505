package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/s3syncd/s3syncd/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

// policyConfig reads a configuration in YAML.
func policyConfig(t *testing.T, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s3syncd.yaml")
	if err := os.WriteFile(file, []byte("instance: app-01\nstate_dir: /var/lib/s3syncd\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	plainSource = `s3: {region: us-east-1}
sources:
  - {path: /opt/app/data, bucket: my-company-data, prefix: "backups/{instance}/data", kms_key_id: "arn:aws:kms:us-east-1:123456789012:key/abc-123"}
`
	everySource = `s3: {region: cn-north-1}
manifest: {sign: "kms:arn:aws-cn:kms:cn-north-1:123456789012:key/sign-1", object_lock: {mode: COMPLIANCE, days: 365}}
sources:
  - {name: data, path: /opt/app/data, bucket: data, prefix: data, kms_key_id: "arn:aws-cn:kms:cn-north-1:123456789012:key/abc-123", deletes: mirror, accept_kms_keys: ["arn:aws-cn:kms:cn-north-1:123456789012:key/old"]}
  - {name: logs, path: /var/log/app, bucket: data, prefix: logs, kms_key_id: alias/logs, sse: "aws:kms:dsse"}
`
	unknownSource = `sources:
  - {path: /opt/app/data, bucket: whole, kms_key_id: 1234abcd-12ab-34cd-56ef-1234567890ab}
`
	rotatingSource = `s3: {region: us-east-1}
sources:
  - {path: /opt/app/data, bucket: my-company-data, prefix: "backups/{instance}/data", kms_key_id: "arn:aws:kms:us-east-1:123456789012:key/new", accept_kms_keys: ["arn:aws:kms:us-east-1:123456789012:key/old", alias/older]}
`
	minioSource = `s3: {region: us-east-1, endpoint_url: "https://minio.example.com"}
sources:
  - {path: /opt/app/data, bucket: data, prefix: p, kms_key_id: app-key}
`
)

func TestPoliciesAreTheGoldenOnes(t *testing.T) {
	for _, c := range []struct {
		name, config string
		o            PolicyOptions
	}{
		{"role", plainSource, PolicyOptions{Kind: PolicyRole}},
		{"bucket", plainSource, PolicyOptions{Kind: PolicyBucket}},
		{"kms-key", plainSource, PolicyOptions{Kind: PolicyKey}},
		{"role-with-commands", plainSource, PolicyOptions{Kind: PolicyRole, With: []string{PolicyForRekey, PolicyForRestore, PolicyForVerify}}},
		{"role-of-everything", everySource, PolicyOptions{Kind: PolicyRole}},
		{"bucket-of-everything", everySource, PolicyOptions{Kind: PolicyBucket}},
		{"kms-key-of-an-alias", everySource, PolicyOptions{Kind: PolicyKey, Source: "logs"}},
		{"role-of-a-key-id", unknownSource, PolicyOptions{Kind: PolicyRole, Region: "us-gov-west-1"}},
		{"bucket-of-a-key-id", unknownSource, PolicyOptions{Kind: PolicyBucket}},
		{"role-of-minio", minioSource, PolicyOptions{Kind: PolicyRole}},
		{"bucket-of-a-fleet", plainSource, PolicyOptions{Kind: PolicyBucket, Instances: []string{"*"}}},
		{"bucket-of-two-hosts", plainSource, PolicyOptions{Kind: PolicyBucket, Instances: []string{"app-01", "app-02"}}},
		{"role-of-a-fleet", plainSource, PolicyOptions{Kind: PolicyRole, Instances: []string{"app-*"}}},
		{"role-of-a-fleet-while-a-key-changes", rotatingSource, PolicyOptions{Kind: PolicyRole, Instances: []string{"*"}}},
		{"bucket-while-a-key-changes", rotatingSource, PolicyOptions{Kind: PolicyBucket}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Config = policyConfig(t, c.config)
			doc, notes, err := Policy(c.o)
			if err != nil {
				t.Fatalf("Policy() = %v", err)
			}
			got := string(doc) + "# " + strings.Join(notes, "\n# ") + "\n"
			file := filepath.Join("testdata", "policy", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("Policy() differs from %s (-want +got):\n%s", file, d)
			}
			wantSound(t, doc)
		})
	}
}

// wantSound checks what holds for every policy.
func wantSound(t *testing.T, doc []byte) {
	t.Helper()
	var p struct {
		Version   string           `json:"Version"`
		Statement []map[string]any `json:"Statement"`
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	if err := dec.Decode(&p); err != nil || p.Version != "2012-10-17" || len(p.Statement) == 0 {
		t.Fatalf("%v: no policy:\n%s", err, doc)
	}
	seen := map[string]bool{}
	for _, s := range p.Statement {
		sid, _ := s["Sid"].(string)
		if !regexp.MustCompile(`^[A-Za-z0-9]+$`).MatchString(sid) || seen[sid] {
			t.Errorf("a statement has the Sid %q, which is none or taken", sid)
		}
		seen[sid] = true
		if s["Effect"] == "Allow" && s["Action"] == "s3:*" {
			t.Errorf("statement %s allows everything", sid)
		}
		if _, keyed := s["Condition"].(map[string]any); strings.HasPrefix(sid, "Key") && !keyed {
			t.Errorf("statement %s lets a key be used without S3", sid)
		}
	}
}

func TestOnePolicyOfSeveralThingsIsRefused(t *testing.T) {
	c := policyConfig(t, everySource)
	if _, _, err := Policy(PolicyOptions{Config: c, Kind: PolicyKey}); !errors.Is(err, ErrPolicyChoice) {
		t.Errorf("Policy of two keys = %v, want ErrPolicyChoice", err)
	}
	if _, _, err := Policy(PolicyOptions{Config: policyConfig(t, minioSource), Kind: PolicyKey}); err == nil {
		t.Error("Policy of a key that is not AWS's: no error")
	}
}

func TestALongRolePolicyIsNoted(t *testing.T) {
	var b strings.Builder
	b.WriteString("s3: {region: us-east-1}\nsources:\n")
	for i := range 30 {
		name := strings.Repeat("x", 50) + string(rune('a'+i%26)) + string(rune('a'+i/26))
		b.WriteString("  - {name: " + name + ", path: /opt/" + name + ", bucket: data, prefix: " + name + ", kms_key_id: alias/a}\n")
	}
	_, notes, err := Policy(PolicyOptions{Config: policyConfig(t, b.String()), Kind: PolicyRole})
	if err != nil || !strings.Contains(strings.Join(notes, "\n"), "6144") {
		t.Errorf("Policy() notes %q, %v, want one about its size", notes, err)
	}
}
