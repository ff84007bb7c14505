// Package structure holds the code to what linters of functions and files cannot
// see: how large a type is over all its files and through embedding, and how
// large a package is.
//
// What exceeds a bound is several nouns: divide it.
package structure

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// bounds are the most that anything may have.
func bounds() map[string]int {
	return map[string]int{
		"own-methods":     25, // of a type, over all its files
		"reached-methods": 40, // of a type, with those that it embeds
		"package-lines":   3000,
		"package-files":   16,
		"file-lines":      450,
		"function-lines":  60,
	}
}

// support are the packages that only tests use.
func support() []string { return []string{"internal/s3test", "internal/fstest", "internal/crashfs"} }

// loader parses and checks the packages of one module. It knows nothing of other
// modules: what they declare has no type, which is no loss, for their methods do
// not count.
type loader struct {
	root, module string
	fset         *token.FileSet
	files        map[string][]*ast.File // by import path
	types        map[string]*types.Package
}

func newLoader(root string) (*loader, error) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(string(mod), "module "), "\n")
	return &loader{
		root: root, module: strings.TrimSpace(name), fset: token.NewFileSet(),
		files: map[string][]*ast.File{}, types: map[string]*types.Package{},
	}, nil
}

// Import implements types.Importer.
func (l *loader) Import(p string) (*types.Package, error) {
	if p == "unsafe" {
		return types.Unsafe, nil
	}
	if t, ok := l.types[p]; ok {
		return t, nil
	}
	rel, ours := strings.CutPrefix(p, l.module+"/")
	if !ours {
		t := types.NewPackage(p, path.Base(p))
		t.MarkComplete()
		l.types[p] = t
		return t, nil
	}
	found, err := build.ImportDir(filepath.Join(l.root, rel), 0)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range found.GoFiles {
		f, err := parser.ParseFile(l.fset, filepath.Join(found.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	c := types.Config{Importer: l, Error: func(error) {}, IgnoreFuncBodies: true, FakeImportC: true}
	t, _ := c.Check(p, l.fset, files, nil) // Its errors are about what other modules declare.
	l.types[p], l.files[p] = t, files
	return t, nil
}

// load loads every package of the product.
func (l *loader) load() error {
	for _, top := range []string{"cmd", "internal", "pkg"} {
		err := filepath.WalkDir(filepath.Join(l.root, top), func(dir string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil || !d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(l.root, dir)
			if err != nil {
				return err
			}
			if d.Name() == "testdata" || slices.Contains(support(), rel) {
				return fs.SkipDir
			}
			if own, err := filepath.Glob(filepath.Join(dir, "*.go")); err != nil || len(own) == 0 {
				return err
			}
			_, err = l.Import(l.module + "/" + filepath.ToSlash(rel))
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// measure returns every number that exceeds its bound, by what it counts.
func measure(root string) (map[string]int, error) {
	l, err := newLoader(root)
	if err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	over := map[string]int{}
	note := func(what, name string, n int) {
		if n > bounds()[what] {
			over[what+" "+name] = n
		}
	}
	for p, files := range l.files {
		pkg := strings.TrimPrefix(p, l.module+"/")
		lines := 0
		for _, f := range files {
			n := l.fset.File(f.FileStart).LineCount()
			lines += n
			name := pkg + "/" + filepath.Base(l.fset.Position(f.FileStart).Filename)
			note("file-lines", name, n)
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					note("function-lines", name+":"+fn.Name.Name, l.fset.Position(fn.End()).Line-l.fset.Position(fn.Pos()).Line+1)
				}
			}
		}
		note("package-lines", pkg, lines)
		note("package-files", pkg, len(files))
		l.measureTypes(l.types[p], func(what, name string, n int) { note(what, pkg+"."+name, n) })
	}
	return over, nil
}

func (l *loader) measureTypes(p *types.Package, note func(what, name string, n int)) {
	for _, name := range p.Scope().Names() {
		t, ok := p.Scope().Lookup(name).(*types.TypeName)
		if !ok || t.IsAlias() {
			continue
		}
		named, ok := t.Type().(*types.Named)
		if !ok {
			continue
		}
		note("own-methods", name, named.NumMethods())
		reached, set := 0, types.NewMethodSet(types.NewPointer(named))
		for m := range set.Methods() {
			if from := m.Obj().Pkg(); from != nil && strings.HasPrefix(from.Path()+"/", l.module+"/") {
				reached++
			}
		}
		note("reached-methods", name, reached)
	}
}

func TestBoundsHold(t *testing.T) {
	over, err := measure(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range slices.Sorted(maps.Keys(over)) {
		kind, _, _ := strings.Cut(what, " ")
		t.Errorf("%s: %d, want at most %d: divide it", what, over[what], bounds()[kind])
	}
}
