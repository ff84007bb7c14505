package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

const (
	filesPerDir = 50
	chunkSize   = 1 << 20
	age         = time.Hour // Nobody takes the files for ones that are being written.
)

// tree is a directory of files to archive.
type tree struct {
	dir   string
	files []string // below dir
	bytes int64
	rng   *rand.ChaCha8
	chunk []byte
	dirs  map[string]bool
}

func newTree(dir string) *tree {
	return &tree{dir: dir, rng: rand.NewChaCha8([32]byte{1}), chunk: make([]byte, chunkSize), dirs: map[string]bool{}}
}

// name is where the i-th file stands.
func name(i int) string {
	return fmt.Sprintf("department-%02d/project-%05d/report-%07d.dat", i/filesPerDir%20, i/filesPerDir, i)
}

// smallTree has n files of size bytes each.
func smallTree(dir string, n int, size int64) (*tree, error) {
	t := newTree(dir)
	for i := range n {
		if err := t.add(name(i), size); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// mixedTree has files of about total bytes together, of sizes as applications
// have them: most files are small, most bytes are in few large ones.
func mixedTree(dir string, total int64) (*tree, error) {
	t := newTree(dir)
	r := rand.New(t.rng)
	classes := []struct{ share, least, most float64 }{
		{0.60, 200, 16 << 10}, {0.30, 16 << 10, 1 << 20}, {0.095, 1 << 20, 32 << 20}, {0.005, 32 << 20, 1 << 30},
	}
	for i := 0; t.bytes < total; i++ {
		at := r.Float64()
		for _, c := range classes {
			if at -= c.share; at <= 0 {
				size := int64(c.least * math.Pow(c.most/c.least, r.Float64()))
				if err := t.add(name(i), min(size, max(1, total-t.bytes))); err != nil {
					return nil, err
				}
				break
			}
		}
	}
	return t, nil
}

// add writes a file of random content.
func (t *tree) add(path string, size int64) error {
	full := filepath.Join(t.dir, path)
	if d := filepath.Dir(full); !t.dirs[d] {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("tree: %w", err)
		}
		t.dirs[d] = true
	}
	if err := t.write(full, size); err != nil {
		return err
	}
	then := time.Now().Add(-age)
	if err := os.Chtimes(full, then, then); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	t.files = append(t.files, path)
	t.bytes += size
	return nil
}

// write makes or replaces one file's content.
func (t *tree) write(full string, size int64) error {
	f, err := os.OpenFile(full, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	for left := size; left > 0; {
		b := t.chunk[:min(left, chunkSize)]
		_, _ = t.rng.Read(b) // Never fails.
		if _, err := f.Write(b); err != nil {
			_ = f.Close() // The write's error is the one to tell.
			return fmt.Errorf("tree: %w", err)
		}
		left -= int64(len(b))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	return nil
}

// change gives every hundredth file another content, of another size, so that
// no program overlooks it. It returns how many.
func (t *tree) change(round int) (int, error) {
	n := 0
	for i := round % 100; i < len(t.files); i += 100 {
		full := filepath.Join(t.dir, t.files[i])
		st, err := os.Stat(full)
		if err != nil {
			return n, fmt.Errorf("tree: %w", err)
		}
		if err := t.write(full, st.Size()+1); err != nil {
			return n, err
		}
		then := time.Now().Add(-age / 2)
		if err := os.Chtimes(full, then, then); err != nil {
			return n, fmt.Errorf("tree: %w", err)
		}
		n++
	}
	return n, nil
}

// token is a name that nothing else has.
func token() string {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], rand.Uint64())
	return hex.EncodeToString(b[:])
}
