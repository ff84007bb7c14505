package safefs

import "errors"

// LinkPolicy says which files with several names (hard links) are archived.
type LinkPolicy string

// The policies, as the configuration spells them.
const (
	LinksSameOwner LinkPolicy = "same-owner" // unless another user may have linked a foreign file here
	LinksAllow     LinkPolicy = "allow"
	LinksSkip      LinkPolicy = "skip" // none, but for those that were archived under one name
)

// Why a file with several names is not archived.
var (
	// ErrForeignLink is a fault that an operator has to know of.
	ErrForeignLink = errors.New("hard link to a file of another owner than its directory's: " +
		"whoever may write to the directory could have linked a foreign file here; " +
		"change the owner of one of them, or set hardlinks: allow")
	// ErrLinkSkipped is what the configuration asks for.
	ErrLinkSkipped = errors.New("hard links are skipped (hardlinks: skip)")
)

// Valid reports whether p is one of the policies.
func (p LinkPolicy) Valid() bool {
	return p == LinksSameOwner || p == LinksAllow || p == LinksSkip
}

// Check returns why the file st must not be archived under a name in the
// directory dir, nil if it may. Archived says that this very file was archived
// under this name before: a further name, made elsewhere by anybody, does not
// take it out of the archive again. Where inodes say nothing (SizeMtime), nobody
// can say so.
//
// The number of names alone says nothing about who made this one. A user who
// may write to a directory can link a file there that only its owner can read,
// and have it archived: so the file has to be its directory's owner's, or the
// directory has to be one in which root alone can make names.
func (p LinkPolicy) Check(st, dir Stat, archived bool) error {
	switch {
	case st.Nlink <= 1 || archived || p == LinksAllow:
		return nil
	case p == LinksSkip:
		return ErrLinkSkipped
	case st.UID == dir.UID || dir.UID == 0 && dir.Mode&0o022 == 0:
		return nil
	}
	return ErrForeignLink
}
