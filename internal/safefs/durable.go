package safefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TempPattern matches the names of files that an interrupted write leaves.
const TempPattern = ".*.s3syncd-tmp-*"

// WriteFile makes data the content of the file at path. A reader sees the old
// content or the new one; when it returns nil, the new one survives a power
// cut.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	p, err := CreatePending(path, perm)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.Commit()
}

// Pending is a file that is being written beside its path. It appears at the
// path by Commit. It is not safe for concurrent use.
type Pending struct {
	f    *os.File // nil once committed or closed
	path string
}

// CreatePending begins to write the file at path.
func CreatePending(path string, perm os.FileMode) (*Pending, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".s3syncd-tmp-*")
	if err != nil {
		return nil, fmt.Errorf("begin %s: %w", path, err)
	}
	p := &Pending{f: f, path: path}
	if err := f.Chmod(perm); err != nil {
		p.Close()
		return nil, fmt.Errorf("begin %s: %w", path, err)
	}
	return p, nil
}

// Write appends b.
func (p *Pending) Write(b []byte) (int, error) {
	if p.f == nil {
		return 0, fmt.Errorf("write %s: %w", p.path, fs.ErrClosed)
	}
	n, err := p.f.Write(b)
	if err != nil {
		return n, fmt.Errorf("write %s: %w", p.path, err)
	}
	return n, nil
}

// Commit puts the file in its place. When it returns nil, the file survives a
// power cut. After an error the path has its old content or the new one, and
// nothing of the write is left beside it.
func (p *Pending) Commit() error {
	if p.f == nil {
		return fmt.Errorf("commit %s: %w", p.path, fs.ErrClosed)
	}
	f := p.f
	p.f = nil
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), p.path)
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", p.path, errors.Join(err, os.Remove(f.Name())))
	}
	return syncDir(filepath.Dir(p.path))
}

// Close discards what was written unless Commit was called. It may be called
// more than once.
func (p *Pending) Close() {
	if p.f == nil {
		return
	}
	// The file is discarded: neither error has a consequence.
	_ = p.f.Close()
	_ = os.Remove(p.f.Name())
	p.f = nil
}

// Rename moves a file to another directory, across file systems too. When it
// returns nil, the file at its new place survives a power cut; until then it is at
// the old one or at both.
func Rename(from, to string) error {
	err := os.Rename(from, to)
	if err == nil {
		return syncDir(filepath.Dir(to))
	}
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	if err := Copy(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// Copy makes to a copy of the file from, under the rules of WriteFile.
func Copy(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := CreatePending(to, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Commit()
}

// MkdirAll makes path and its missing parents. When it returns nil, they
// survive a power cut.
func MkdirAll(path string, perm os.FileMode) error {
	if fi, err := os.Stat(path); err == nil {
		if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("not a directory")}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return syncDir(parent)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}
