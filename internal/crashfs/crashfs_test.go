package crashfs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A log in the form of strace: a file is written, synced and renamed, a second
// thread writes while the first syncs.
const traced = `10 openat(AT_FDCWD</x>, "\x2f\x73\x2f\x61\x2e\x74\x6d\x70", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3<\x2f\x73\x2f\x61\x2e\x74\x6d\x70>
10 write(3<\x2f\x73\x2f\x61\x2e\x74\x6d\x70>, "\x6f\x6e\x65", 3) = 3
10 fsync(3<\x2f\x73\x2f\x61\x2e\x74\x6d\x70> <unfinished ...>
11 pwrite64(3<\x2f\x73\x2f\x61\x2e\x74\x6d\x70>, "\x74\x77\x6f", 3, 3 <unfinished ...>
10 <... fsync resumed>)                   = 0
11 <... pwrite64 resumed>)                = 3
10 write(1<pipe:[1]>, "\x73\x79\x6e\x63\x65\x64\x0a", 7) = 7
10 renameat(AT_FDCWD</x>, "\x2f\x73\x2f\x61\x2e\x74\x6d\x70", AT_FDCWD</x>, "\x2f\x73\x2f\x61") = 0
10 openat(AT_FDCWD</x>, "\x2f\x73", O_RDONLY|O_CLOEXEC) = 4<\x2f\x73>
10 fsync(4<\x2f\x73>) = 0
10 write(1<pipe:[1]>, "\x6e\x61\x6d\x65\x64\x0a", 6) = 6
10 unlinkat(AT_FDCWD</x>, "\x2f\x73\x2f\x6e\x6f\x6e\x65", 0) = -1 ENOENT (No such file or directory)
10 unlinkat(AT_FDCWD</x>, "\x2f\x73\x2f\x61", 0) = 0
`

// cuts plays many cuts at the moments when the process had said so much and no
// more, and returns every state of the directory that came of it.
func cuts(t *testing.T, l *Log, said string) map[string]bool {
	t.Helper()
	var moments []int
	for m := range l.Moments() {
		if l.Acknowledged(m) == said {
			moments = append(moments, m)
		}
	}
	if len(moments) == 0 {
		t.Fatalf("the process never said %q", said)
	}
	seen := map[string]bool{}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		dir := t.TempDir()
		if err := l.Cut(moments[i%len(moments)], rng, dir); err != nil {
			t.Fatal(err)
		}
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range list {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e.Name()+"="+string(b))
		}
		seen[strings.Join(all, " ")] = true
	}
	return seen
}

func TestACutLeavesWhatWasSyncedAndAnyOfTheRest(t *testing.T) {
	l, err := Parse(strings.NewReader(traced), "/s")
	if err != nil {
		t.Fatal(err)
	}
	for said, want := range map[string][]string{
		// The name is not durable, nor what was written during the sync.
		"synced\n": {"", "a.tmp=one", "a.tmp=onetwo", "a=one", "a=onetwo"},
		// The name is, until it is removed, which may be lost.
		"synced\nnamed\n": {"a=one", "a=onetwo", ""},
	} {
		seen := cuts(t, l, said)
		for _, w := range want {
			if !seen[w] {
				t.Errorf("after %q: never left %q", said, w)
			}
			delete(seen, w)
		}
		if len(seen) > 0 {
			t.Errorf("after %q: left %v, which cannot be", said, seen)
		}
	}
}

func TestALogOfNothingIsAnError(t *testing.T) {
	if _, err := Parse(strings.NewReader(traced), "/elsewhere"); err == nil {
		t.Error("Parse = nil for a log without a call below the directory")
	}
}
