package structure

import (
	"go/ast"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// comparedClass returns the name of the error class that e is, "" for none.
func comparedClass(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := s.X.(*ast.Ident); !ok || x.Name != "archive" || !strings.HasPrefix(s.Sel.Name, "Class") || s.Sel.Name == "ClassOf" {
		return ""
	}
	return s.Sel.Name
}

// comparisons lists the places that decide by which class an error has, instead
// of by what the class means.
func comparisons(t *testing.T, root string) []string {
	t.Helper()
	l, err := newLoader(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	var found []string
	for p, files := range l.files {
		for _, f := range files {
			at := strings.TrimPrefix(p, l.module+"/") + "/" + filepath.Base(l.fset.Position(f.FileStart).Filename)
			note := func(e ast.Expr) {
				if name := comparedClass(e); name != "" {
					found = append(found, at+" "+name)
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BinaryExpr:
					if n.Op == token.EQL || n.Op == token.NEQ {
						note(n.X)
						note(n.Y)
					}
				case *ast.CaseClause:
					for _, e := range n.List {
						note(e)
					}
				}
				return true
			})
		}
	}
	slices.Sort(found)
	return found
}

func TestWhatAClassMeansIsSaidInItsTableAlone(t *testing.T) {
	// The metric of conflicts counts that class and no other.
	want := []string{"pkg/uploader/closing.go ClassConflict"}
	if got := comparisons(t, root); !slices.Equal(got, want) {
		t.Errorf("compared with a class: %q, want %q: what a class means belongs into pkg/archive/class.go", got, want)
	}
}

func TestComparisonsWithAClassAreFound(t *testing.T) {
	dir := plantModule(t, map[string]string{"pkg/p/p.go": `package p

import "example.com/planted/pkg/archive"

func f(c archive.Class, err error) bool {
	switch c {
	case archive.ClassFile, archive.ClassChanged:
		return archive.ClassOf(err) == c
	}
	return c == archive.ClassConflict || archive.ClassTransient != c
}
`, "pkg/archive/archive.go": "package archive\n"})
	want := []string{"pkg/p/p.go ClassChanged", "pkg/p/p.go ClassConflict", "pkg/p/p.go ClassFile", "pkg/p/p.go ClassTransient"}
	if got := comparisons(t, dir); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}
