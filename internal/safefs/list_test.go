package safefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestAListingInPartsIsTheWholeOne(t *testing.T) {
	dir := t.TempDir()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range 1000 {
		// The dot keeps a name and what is written beside one apart, whatever its width.
		name := fmt.Sprintf("%0*d.", 1+rnd.IntN(100), i)
		path := filepath.Join(dir, name)
		switch rnd.IntN(10) {
		case 0:
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, path+"!", "sorts before what is in the directory")
		case 1:
			symlink(t, ".", path)
			write(t, path+"0", "sorts behind it")
		default:
			write(t, path, "")
		}
	}
	for _, follow := range []bool{false, true} {
		d, err := NewRoot(dir, RootOptions{CrossMounts: true, Follow: follow}).OpenDir("")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		whole, err := d.Entries(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1000, 20_000, 100_000, 1 << 30} {
			var all, part []Entry
			var last *Entry
			for more := true; more; {
				if part, more, err = d.EntriesAfter(last, size, part); err != nil || len(part) == 0 {
					t.Fatalf("seed %d, size %d: %d entries, more %v, %v", seed, size, len(part), more, err)
				}
				bytes := 0
				for _, e := range part {
					bytes += entryCost + len(e.Name)
				}
				if bytes > 2*size+entryCost+255 {
					t.Errorf("seed %d, size %d: a part takes %d bytes", seed, size, bytes)
				}
				all = append(all, part...)
				e := part[len(part)-1]
				last = &e
			}
			if !slices.Equal(all, whole) {
				t.Errorf("seed %d, follow %v, size %d: %d entries in parts, %d at once, or in another order", seed, follow, size, len(all), len(whole))
			}
		}
		visited := 0
		if err := d.Visit(func(*Entry) bool { visited++; return visited < 100 }); err != nil || visited != 100 {
			t.Errorf("Visit: %d entries, %v, want 100", visited, err)
		}
	}
}

func TestTheParentIsOpenedWithoutItsPath(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/b/f", "")
	r := NewRoot(dir, RootOptions{CrossMounts: true})
	a, err := r.OpenDir("a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	self, err := a.Self()
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.OpenDir("b")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	up, err := b.Parent("a", self)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	if _, err := up.Stat("b"); err != nil || up.Path() != "a" {
		t.Errorf("the parent has path %q, %v", up.Path(), err)
	}
	if err := os.Rename(dir+"/a/b", dir+"/moved"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Parent("a", self); err == nil {
		t.Error("the parent of a directory that was moved is taken for the one before")
	}
}
