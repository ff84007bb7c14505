package scan

import (
	"context"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// merge compares what the walk of the tree comes to, in path order, with the
// entries of the index. Entries that the walk passes over are missing, unless
// keep leaves them as they are.
type merge struct {
	cur   *cursor
	found func(ctx context.Context, f Finding) error
	same  func(k *Known, st safefs.Stat) // nil: not wanted
	res   *Result
}

// file compares a regular file with the index.
func (m *merge) file(ctx context.Context, path string, st safefs.Stat) error {
	m.res.Files++
	m.res.Bytes += st.Size
	k, err := m.at(path)
	switch {
	case err != nil:
		return err
	case k == nil:
		return m.found(ctx, Finding{Kind: Differs, Path: path, Stat: st})
	case k.Unchanged(st):
		m.res.Unchanged++
		if m.same != nil {
			m.same(k, st)
		}
		m.cur.next()
		return nil
	}
	known := *k
	m.cur.next()
	return m.found(ctx, Finding{Kind: Differs, Path: path, Stat: st, Known: &known})
}

// at returns the entry of path, nil if there is none. The cursor must be at path
// or after it.
func (m *merge) at(path string) (*Known, error) {
	k, err := m.cur.peek()
	if err != nil || k == nil || k.Path != path {
		return nil, err
	}
	return k, nil
}

// drain reports every entry before path as missing, "" for all that are left.
func (m *merge) drain(ctx context.Context, path string) error {
	for {
		k, err := m.cur.peek()
		if err != nil {
			return err
		}
		if k == nil || path != "" && k.Path >= path {
			return nil
		}
		known := *k
		m.cur.next()
		if err := m.found(ctx, Finding{Kind: Missing, Path: known.Path, Known: &known}); err != nil {
			return err
		}
	}
}

// keep leaves the entry of path as it is.
func (m *merge) keep(path string) error {
	k, err := m.at(path)
	if k != nil {
		m.cur.next()
	}
	return err
}

// keepDir leaves the entries below dir as they are.
func (m *merge) keepDir(ctx context.Context, dir string) error {
	if err := m.drain(ctx, dir+"/"); err != nil {
		return err
	}
	m.cur.skipDir(dir)
	return nil
}

// refuse reports that the file at path cannot be archived because of why.
func (m *merge) refuse(ctx context.Context, path string, why error) error {
	if err := m.keep(path); err != nil {
		return err
	}
	return m.found(ctx, Finding{Kind: Refused, Path: path, Err: why})
}

// refuseDir reports that dir, with everything below it, cannot be archived.
func (m *merge) refuseDir(ctx context.Context, dir string, why error) error {
	if err := m.keepDir(ctx, dir); err != nil {
		return err
	}
	return m.found(ctx, Finding{Kind: Refused, Path: dir, Err: why})
}
