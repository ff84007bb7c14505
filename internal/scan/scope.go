package scan

import (
	"errors"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// ErrReserved is why the reserved name is refused.
var ErrReserved = errors.New("the name is reserved for the audit trail")

// Scope is what of a source is archived.
type Scope struct {
	Root     *safefs.Root
	Rules    *ignore.Rules
	Reserved string // This name at the top is refused, whatever has it; "": none.
	// TooDeep returns why no file below a directory can be archived, nil if one
	// can. Such directories are refused, and not entered.
	TooDeep   func(dir string) error
	Hardlinks safefs.LinkPolicy
}

// IsReserved reports whether path has the name of the audit trail's directory. A
// file of that name hides the trail on servers that keep objects as files.
func (s *Scope) IsReserved(path string) bool { return s.Reserved != "" && path == s.Reserved }

// LeavesOut reports whether the file at path is not to be archived: what the index
// has of it stays.
func (s *Scope) LeavesOut(path string) bool {
	return s.IsReserved(path) || s.belowReserved(path) || s.Rules.Excluded(path, false)
}

// LeavesOutKnown is LeavesOut for an entry of the index. One that records only
// that the reserved name was refused goes when nothing has that name any more.
func (s *Scope) LeavesOutKnown(k *Known) bool {
	return s.LeavesOut(k.Path) && (k.Stored || !s.IsReserved(k.Path))
}

// Ignores reports whether nothing that happens at path matters, whether it is a
// file or a directory.
func (s *Scope) Ignores(path string) bool {
	return s.belowReserved(path) || s.Rules.Excluded(path, false) && s.Rules.Excluded(path, true)
}

// Enters reports whether files in the directory dir may be archived.
func (s *Scope) Enters(dir string) bool {
	return dir == "" || !s.IsReserved(dir) && !s.Rules.Excluded(dir, true) && s.TooDeep(dir) == nil
}

func (s *Scope) belowReserved(path string) bool {
	return s.Reserved != "" && relpath.Below(path, s.Reserved)
}
