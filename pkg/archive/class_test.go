package archive

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// declared returns the values of the constants of type Class.
func declared(t *testing.T) []Class {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "class.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []Class
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := v.Type.(*ast.Ident); !ok || name.Name != "Class" {
			return true
		}
		for _, e := range v.Values {
			lit, ok := e.(*ast.BasicLit)
			if !ok {
				t.Fatalf("%s is no literal", v.Names)
			}
			s, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, Class(s))
		}
		return true
	})
	return found
}

func TestEveryClassHasOneRow(t *testing.T) {
	if got, want := Classes(), declared(t); !slices.Equal(got, want) {
		t.Errorf("Classes() = %q, want the constants in their order, %q", got, want)
	}
	for _, c := range Classes() {
		if c.Meaning().Advice == "" {
			t.Errorf("class %s has no advice", c)
		}
	}
}

func TestAnUnknownClassNeedsAnOperatorAndSparesTheDestination(t *testing.T) {
	for _, c := range []Class{"", "of a later version"} {
		if !c.NeedsOperator() || !c.Alone() || c.Passes() || c.OutOfService() || c.Meaning().Refused {
			t.Errorf("%q means %+v", c, c.Meaning())
		}
	}
}

func TestMeaningOfAClass(t *testing.T) {
	for class, want := range map[Class]Meaning{
		ClassTransient:     {Remedy: RemedyWait, Effect: EffectFails},
		ClassThrottled:     {Remedy: RemedyWait, Effect: EffectSlows},
		ClassCredentials:   {Remedy: RemedyOperator, Effect: EffectParks, EveryRequest: true},
		ClassConfiguration: {Remedy: RemedyOperator, Effect: EffectParks},
		ClassEncryption:    {Remedy: RemedyOperator, Effect: EffectStops, Refused: true},
		ClassFile:          {Remedy: RemedyOperator, Effect: EffectNone, Refused: true},
		ClassChanged:       {Remedy: RemedyReread, Effect: EffectNone, Refused: true},
		ClassConflict:      {Remedy: RemedyOperator, Effect: EffectNone},
	} {
		got := class.Meaning()
		want.Class, want.Advice = class, got.Advice
		if got != want {
			t.Errorf("%s means %+v, want %+v", class, got, want)
		}
	}
}
