package iam

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// bucketLimit is the size of a bucket policy in bytes.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/example-bucket-policies.html
const bucketLimit = 20 << 10

// ownSid matches the statements of a bucket policy that this program has made.
var ownSid = regexp.MustCompile(`^(OnlyKMS|OnlyThisKey|OnlyTLS)[0-9]*$`)

// policyDocument is a policy with whatever fields and statements it has.
type policyDocument struct {
	doc        map[string]any
	statements []map[string]any
}

// readPolicy reads a policy document; an empty one is one without statements.
func readPolicy(data []byte) (*policyDocument, error) {
	m := &policyDocument{doc: map[string]any{"Version": "2012-10-17"}}
	if len(strings.TrimSpace(string(data))) == 0 {
		return m, nil
	}
	if err := json.Unmarshal(data, &m.doc); err != nil {
		return nil, fmt.Errorf("not a policy: %w", err)
	}
	switch s := m.doc["Statement"].(type) {
	case map[string]any:
		m.statements = append(m.statements, s)
	case []any:
		for _, one := range s {
			statement, ok := one.(map[string]any)
			if !ok {
				return nil, errors.New("not a policy: a statement is no object")
			}
			m.statements = append(m.statements, statement)
		}
	default:
		return nil, errors.New("not a policy: it has no Statement")
	}
	return m, nil
}

// drop takes resources out of the statements that this program has made: what
// was said of them before holds no more. A statement about nothing goes.
func (m *policyDocument) drop(resources []string) {
	m.statements = slices.DeleteFunc(m.statements, func(s map[string]any) bool {
		sid, _ := s["Sid"].(string)
		if !ownSid.MatchString(sid) {
			return false
		}
		left := slices.DeleteFunc(texts(s["Resource"]), func(r string) bool { return slices.Contains(resources, r) })
		s["Resource"] = left
		return len(left) == 0
	})
}

// add adds a statement: to the resources of one that says the same of others, or
// as one of its own.
func (m *policyDocument) add(s map[string]any) {
	sid, _ := s["Sid"].(string)
	for _, t := range m.statements {
		have, _ := t["Sid"].(string)
		if base := strings.TrimRight(sid, "0123456789"); ownSid.MatchString(have) && strings.HasPrefix(have, base) && sameRule(s, t) {
			all := append(texts(t["Resource"]), texts(s["Resource"])...)
			slices.Sort(all)
			t["Resource"] = slices.Compact(all)
			return
		}
	}
	taken := func(name string) bool {
		return slices.ContainsFunc(m.statements, func(t map[string]any) bool { return t["Sid"] == name })
	}
	base := strings.TrimRight(sid, "0123456789")
	for n := 2; taken(sid); n++ {
		sid = base + strconv.Itoa(n)
	}
	s["Sid"] = sid
	m.statements = append(m.statements, s)
}

// sameRule reports whether two statements differ in name and resources alone.
func sameRule(a, b map[string]any) bool {
	for _, field := range []string{"Effect", "Principal", "NotPrincipal", "Action", "NotAction", "NotResource", "Condition"} {
		if !reflect.DeepEqual(a[field], b[field]) {
			return false
		}
	}
	return true
}

// texts returns a text, or a list of texts, as a list.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []string:
		return v
	case []any:
		list := make([]string, 0, len(v))
		for _, one := range v {
			if s, ok := one.(string); ok {
				list = append(list, s)
			}
		}
		return list
	}
	return nil
}

// merge puts the statements of b into the bucket's present policy. Other hosts'
// prefixes and other people's statements stay.
func (b *policyBuilder) merge(present []byte) (*policyDocument, error) {
	m, err := readPolicy(present)
	if err != nil {
		return nil, err
	}
	var mine []string
	for i := range b.sources {
		mine = append(mine, b.sources[i].Objects)
	}
	m.drop(mine)
	for i := range b.statements {
		data, err := json.Marshal(b.statements[i])
		if err != nil {
			return nil, err
		}
		var s map[string]any
		if err := json.Unmarshal(data, &s); err != nil {
			return nil, err
		}
		m.add(s)
	}
	m.doc["Statement"] = m.statements
	return m, nil
}
