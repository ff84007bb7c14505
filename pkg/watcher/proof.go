package watcher

import (
	"errors"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
)

// proofEntries bounds how many entries of the index are compared with the tree
// to prove that it is the one they were made from.
const proofEntries = 100_000

// proof tells whether what is in the place of a source is what the index was made
// from.
type proof struct {
	index scan.Index
	probe *safefs.Root
}

// isSame reports whether id is the directory that the index was made from, m being
// what is remembered. The same path, device and inode prove nothing: a new file
// system on the same device numbers its inodes alike.
func (p proof) isSame(m Memory, id safefs.Identity) (bool, error) {
	switch compared := m.compare(id); {
	case compared == safefs.Same:
		return true, nil
	case compared == safefs.Other, m.Replaced: // What was archived since then is from another directory.
		return p.archivesNothing()
	}
	return p.proves(m.Place != (safefs.Place{}))
}

// archivesNothing reports whether the index has no file that is archived.
func (p proof) archivesNothing() (bool, error) {
	for k, err := range scan.Each(p.index, "") {
		if err != nil {
			return false, fmt.Errorf("read the index: %w", err)
		}
		if k.Stored {
			return false, nil
		}
	}
	return true, nil
}

// proves reports whether the tree is the one that the index was made from, where
// nothing that identifies its directory can be read or nothing is remembered:
// nothing is archived, or one of the files is there. Strictly means that a file
// of the same name and inode does not suffice, because a new file system numbers
// its inodes alike: its ctime has to be the same too.
func (p proof) proves(strictly bool) (bool, error) {
	n := 0
	for k, err := range scan.Each(p.index, "") {
		if err != nil {
			return false, fmt.Errorf("read the index: %w", err)
		}
		if !k.Stored {
			continue // Nothing is known of such a file but its name.
		}
		if n == proofEntries {
			return false, nil
		}
		n++
		st, err := p.probe.Stat(k.Path)
		if errors.Is(err, safefs.ErrRootChanged) {
			return false, err
		}
		if err == nil && st.Ino == k.Ino && (!strictly || st.CtimeNs == k.CtimeNs) {
			return true, nil
		}
	}
	return n == 0, nil
}
