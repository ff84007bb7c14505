package iam

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// bucketPolicy returns the policy of one host's bucket, put into present.
func bucketPolicy(t *testing.T, config, instance, present string) string {
	t.Helper()
	o := PolicyOptions{Config: policyConfig(t, config), Kind: PolicyBucket, Instances: []string{instance}, Merge: []byte(present)}
	doc, _, err := Policy(o)
	if err != nil {
		t.Fatal(err)
	}
	wantSound(t, doc)
	return string(doc)
}

// denied returns what a policy denies with a Sid that begins so: resource by
// condition.
func denied(t *testing.T, policy, sid string) map[string][]string {
	t.Helper()
	var p struct {
		Statement []struct {
			Sid       string `json:"Sid"`
			Resource  any    `json:"Resource"`
			Condition any    `json:"Condition"`
		} `json:"Statement"`
	}
	if err := json.Unmarshal([]byte(policy), &p); err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, s := range p.Statement {
		if strings.HasPrefix(s.Sid, sid) {
			c, _ := json.Marshal(s.Condition) // Of texts only.
			all[string(c)] = append(all[string(c)], texts(s.Resource)...)
		}
	}
	return all
}

func TestASecondHostKeepsTheFirstOnesDenials(t *testing.T) {
	const foreign = `{"Version":"2012-10-17","Id":"theirs","Statement":{"Sid":"OnlyUs","Effect":"Deny","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::my-company-data/*"}}`
	first := bucketPolicy(t, plainSource, "app-01", foreign)
	both := bucketPolicy(t, plainSource, "app-02", first)
	for _, sid := range []string{"OnlyKMS", "OnlyThisKey", "OnlyTLS"} {
		rules := denied(t, both, sid)
		if len(rules) != 1 {
			t.Errorf("%s has %d rules, want 1 for both hosts", sid, len(rules))
		}
		for _, resources := range rules {
			for _, host := range []string{"app-01", "app-02"} {
				if !slices.Contains(resources, "arn:aws:s3:::my-company-data/backups/"+host+"/data/*") {
					t.Errorf("%s says nothing of %s: %q", sid, host, resources)
				}
			}
		}
	}
	if rules := denied(t, both, "OnlyUs"); len(rules) != 1 || !strings.Contains(both, `"Id": "theirs"`) {
		t.Errorf("what others have written is gone:\n%s", both)
	}
	if again := bucketPolicy(t, plainSource, "app-02", both); again != both {
		t.Errorf("once more changes it:\n%s\nwas\n%s", again, both)
	}
}

// Hosts change over to another key one by one. Each may write all the time under
// the key that it has.
func TestAHostThatChangesItsKeyChangesItsOwnDenialAlone(t *testing.T) {
	present := bucketPolicy(t, plainSource, "app-02", bucketPolicy(t, plainSource, "app-01", ""))
	changed := bucketPolicy(t, rotatingSource, "app-01", present)
	found := map[string]string{}
	for condition, resources := range denied(t, changed, "OnlyThisKey") {
		for _, r := range resources {
			found[r] += condition
		}
	}
	one, two := found["arn:aws:s3:::my-company-data/backups/app-01/data/*"], found["arn:aws:s3:::my-company-data/backups/app-02/data/*"]
	if !strings.Contains(one, "key/new") || !strings.Contains(one, "key/old") || strings.Contains(one, "key/abc-123") {
		t.Errorf("app-01 may write under %s", one)
	}
	if !strings.Contains(two, "key/abc-123") || strings.Contains(two, "key/new") {
		t.Errorf("app-02 may write under %s", two)
	}
}

func TestWhatIsNoPolicyIsRefused(t *testing.T) {
	for _, text := range []string{"x", "[]", "{}", `{"Statement": ["x"]}`, `{"Statement": 1}`} {
		if _, _, err := Policy(PolicyOptions{Config: policyConfig(t, plainSource), Kind: PolicyBucket, Merge: []byte(text)}); err == nil {
			t.Errorf("Policy with %s: no error", text)
		}
	}
}

func TestAPrefixWithoutTheInstanceIsNoted(t *testing.T) {
	_, notes, err := Policy(PolicyOptions{Config: policyConfig(t, minioSource), Kind: PolicyBucket, Instances: []string{"a", "b"}})
	if err != nil || !strings.Contains(strings.Join(notes, "\n"), "{instance}") {
		t.Errorf("Policy() notes %q, %v, want one about {instance}", notes, err)
	}
}
