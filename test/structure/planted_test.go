package structure

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plantModule writes a module with the given files and returns its directory.
func plantModule(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files = maps.Clone(files)
	files["go.mod"] = "module example.com/planted\n\ngo 1.26\n"
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// plant measures a module with the given files.
func plant(t *testing.T, files map[string]string) map[string]int {
	t.Helper()
	over, err := measure(plantModule(t, files))
	if err != nil {
		t.Fatal(err)
	}
	return over
}

// methods declares methods number from to to-1 of a type.
func methods(of string, from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "func (*%s) M%d() {}\n", of, i)
	}
	return b.String()
}

// function is a function of n lines.
func function(n int) string { return "func f() {\n" + strings.Repeat("\t_ = 0\n", n-2) + "}\n" }

// manyFiles are n files of one package.
func manyFiles(n int) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprintf("pkg/p/f%d.go", i)] = "package p\n"
	}
	return files
}

func TestEachBoundFindsWhatIsPlanted(t *testing.T) {
	// The outer type has 20 methods of its own and reaches n more in another package.
	embedding := func(n int) map[string]string {
		return map[string]string{
			"pkg/q/q.go": "package q\n\ntype Inner struct{}\n" + methods("Inner", 100, 100+n-15),
			"pkg/p/p.go": "package p\n\nimport (\n\t\"net/http\"\n\n\t\"example.com/planted/pkg/q\"\n)\n\n" +
				"type middle struct{ *q.Inner }\n\ntype outer struct {\n\tmiddle\n\t*http.Server\n}\n" + methods("middle", 50, 65) + methods("outer", 0, 20),
		}
	}
	lines := func(n int) map[string]string {
		files := map[string]string{}
		for i := 0; n > 0; i++ {
			here := min(n, 400)
			files[fmt.Sprintf("pkg/p/f%d.go", i)] = "package p\n" + strings.Repeat("\n", here-1)
			n -= here
		}
		return files
	}
	for _, c := range []struct {
		name         string
		within, over map[string]string
		want         string
		n            int
	}{
		{
			"the methods of a type in two files",
			map[string]string{"pkg/p/p.go": "package p\n\ntype t struct{}\n" + methods("t", 0, 25)},
			map[string]string{"pkg/p/p.go": "package p\n\ntype t struct{}\n" + methods("t", 0, 13), "pkg/p/p2.go": "package p\n\n" + methods("t", 13, 26)},
			"own-methods pkg/p.t", 26,
		},
		{"the methods that a type reaches", embedding(20), embedding(21), "reached-methods pkg/p.outer", 41},
		{"the lines of a package", lines(3000), lines(3001), "package-lines pkg/p", 3001},
		{"the files of a package", manyFiles(16), manyFiles(17), "package-files pkg/p", 17},
		{
			"the lines of a file",
			map[string]string{"cmd/p/main.go": "package main\n" + strings.Repeat("\n", 449)},
			map[string]string{"cmd/p/main.go": "package main\n" + strings.Repeat("\n", 450)},
			"file-lines cmd/p/main.go", 451,
		},
		{
			"the lines of a function",
			map[string]string{"internal/p/p.go": "package p\n\n" + function(60)},
			map[string]string{"internal/p/p.go": "package p\n\n" + function(61)},
			"function-lines internal/p/p.go:f", 61,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := plant(t, c.within); len(got) != 0 {
				t.Errorf("at the bound: %v, want nothing", got)
			}
			if got, want := plant(t, c.over), map[string]int{c.want: c.n}; !maps.Equal(got, want) {
				t.Errorf("beyond the bound: %v, want %v", got, want)
			}
		})
	}
}

func TestTestsAndTheirSupportAreNotMeasured(t *testing.T) {
	long := strings.Repeat("\n", 500)
	got := plant(t, map[string]string{
		"pkg/p/p.go": "package p\n", "pkg/p/p_test.go": "package p\n" + long, "internal/s3test/s.go": "package s3test\n" + long,
		"test/e2e/e.go": "package e2e\n" + long, "pkg/p/testdata/t.go": "package t\n" + long,
	})
	if len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}
