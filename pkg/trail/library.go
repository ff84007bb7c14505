package trail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Library is where a trail is read from: a bucket, or a directory of local
// copies. Both methods are called from several goroutines at once.
type Library interface {
	// Get returns one document's bytes; io/fs.ErrNotExist says that there is
	// none. The caller closes the reader.
	Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error)
	// List calls fn for each key under prefix after startAfter, in byte order,
	// and returns an error of fn as it is.
	List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error
}

// dirLibrary is a directory that is read as if it stood under a prefix.
type dirLibrary struct {
	root  *safefs.Root
	trail string // with a trailing slash
}

// DirLibrary reads the copies in dir as the documents under trailPrefix, which
// is a prefix with its `_manifests/`. It never follows a symbolic link, not even
// inside dir, opens nothing but regular files, and holds no descriptor between
// calls.
func DirLibrary(dir, trailPrefix string) (Library, error) {
	root := safefs.NewRoot(dir, safefs.RootOptions{CrossMounts: true})
	id, err := root.Identify()
	if err != nil {
		return nil, fmt.Errorf("read copies of the trail: %w", err)
	}
	root.Pin(id) // A link on the way to dir is followed once.
	return &dirLibrary{root: root, trail: trailPrefix}, nil
}

// Get opens the copy of the document under key.
func (l *dirLibrary) Get(_ context.Context, key string) (io.ReadCloser, archive.Object, error) {
	rel, ok := strings.CutPrefix(key, l.trail)
	if !ok || rel == "" {
		return nil, archive.Object{}, fmt.Errorf("%s is not under %s: %w", key, l.trail, fs.ErrNotExist)
	}
	o, err := l.root.Open(rel)
	if err != nil {
		return nil, archive.Object{}, err
	}
	return o.File, archive.Object{Key: key, Size: o.Stat.Size, LastModified: time.Unix(0, o.Stat.MtimeNs)}, nil
}

// List walks the directory.
func (l *dirLibrary) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	d, err := l.root.OpenDir("")
	if err != nil {
		return err
	}
	defer d.Close()
	return l.walk(ctx, d, prefix, startAfter, fn)
}

// walk lists one directory and what is below it. Entries come in the order of
// the keys.
func (l *dirLibrary) walk(ctx context.Context, d *safefs.Dir, prefix, startAfter string, fn func(archive.Object) error) error {
	entries, err := d.Entries(nil)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		key := l.trail + e.Name
		if d.Path() != "" {
			key = l.trail + d.Path() + "/" + e.Name
		}
		switch {
		case e.IsDir():
			err = l.enter(ctx, d, e.Name, prefix, startAfter, fn)
		case e.IsRegular() && strings.HasPrefix(key, prefix) && key > startAfter:
			err = l.file(d, e, key, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *dirLibrary) enter(ctx context.Context, d *safefs.Dir, name, prefix, startAfter string, fn func(archive.Object) error) error {
	sub, err := d.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Removed since.
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	return l.walk(ctx, sub, prefix, startAfter, fn)
}

func (l *dirLibrary) file(d *safefs.Dir, e safefs.Entry, key string, fn func(archive.Object) error) error {
	st, err := d.Stat(e.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Removed since.
	}
	if err != nil {
		return err
	}
	return fn(archive.Object{Key: key, Size: st.Size, LastModified: time.Unix(0, st.MtimeNs)})
}
