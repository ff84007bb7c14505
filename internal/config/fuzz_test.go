package config

import (
	"errors"
	"os"
	"testing"

	"github.com/s3syncd/s3syncd/internal/help"
)

// FuzzParse: nothing panics, every fault has a place, and what parses is what
// its canonical form parses to.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../../deploy/s3syncd.example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		minimal, full, string(example), help.Uncomment(string(example)), "", "sources: [*a]", "a: &a [*a]\nsources: *a", "{", "? [a]\n: b\n", "sources:\n- &x {path: /a, path: *x}\n",
		minimal + "    prefix: \"\\u2028\\U0001F600\\\\\"\n", minimal + "    include: ['- a: b', '\"', '{x}']\n    name: \"a].b\"\n",
		minimal + "    encryption_context: {\"a: b\": \"#\", '': x}\n", "<<: {}\n", "!!map {}\n", "log: {level: !x y}\n", "sources: {0: a}\n", "\xef\xbb\xbf" + minimal,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<14 {
			return
		}
		c, err := Parse("c.yaml", data, nil)
		if err != nil {
			faults, ok := errors.AsType[Errors](err)
			if !ok || len(faults) == 0 {
				t.Fatalf("Parse = %T %v, want Errors", err, err)
			}
			for _, fault := range faults {
				if fault.File != "c.yaml" || fault.Line < 1 || fault.Column < 1 || fault.Problem == "" {
					t.Errorf("fault without a place: %+v", fault)
				}
			}
			return
		}
		canonical := c.Canonical()
		again, err := Parse("c.yaml", canonical, nil)
		if err != nil {
			t.Fatalf("Canonical is refused: %v\n%s", err, canonical)
		}
		if string(again.Canonical()) != string(canonical) {
			t.Errorf("Canonical\n%s\nis read as\n%s", canonical, again.Canonical())
		}
	})
}
