package strictjson

import "testing"

// Keys are those of all types that a document consists of.
func TestKeysOfNestedTypesCount(t *testing.T) {
	type inner struct {
		Deep int `json:"deep,omitempty"`
	}
	type outer struct {
		List   []*inner         `json:"list"`
		Table  map[string]inner `json:"table"`
		Hidden int              `json:"-"`
	}
	f := Of(1<<53, outer{})
	for doc, ok := range map[string]bool{
		`{"deep": 1, "list": [], "table": {}}`: true,
		`{"Deep": 1}`:                          false,
		`{"LIST": []}`:                         false,
		`{"Hidden": 1}`:                        true,
		`{"other": 1, "Other": 2}`:             false,
	} {
		if err := f.Check([]byte(doc)); (err == nil) != ok {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
