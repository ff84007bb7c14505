// Package safefs reads a source without ever leaving it and writes the
// daemon's own files so that they survive a power cut.
//
// Paths below a source are raw bytes with slashes between the components. They
// are walked component by component, relative to descriptors, and a symbolic
// link is never followed by the kernel. So neither a link, nor a directory that
// is swapped for a link while it is walked, leads out of the source, and paths
// may be longer than PATH_MAX. Everything that is decided about a file is
// decided from the descriptor that was opened. No descriptor is held between
// calls, because it would make umount fail.
package safefs

import "errors"

// Reasons for which a path is not opened. They are matched with errors.Is.
// A path that is not there is io/fs.ErrNotExist, also when one of its parents
// is a file; a refused one is io/fs.ErrPermission.
var (
	// ErrNotRegular: the path is a directory, a device, a FIFO or a socket.
	ErrNotRegular = errors.New("not a regular file")
	// ErrSymlink: a component is a symbolic link, and links are not followed.
	// When it is not the last component, the error is fs.ErrNotExist as well:
	// nothing of the source is below it.
	ErrSymlink = errors.New("symbolic link")
	// ErrOtherMount: the path is on another mount, and these are not entered.
	ErrOtherMount = errors.New("on another mount")
	// ErrEscapes: the path or a symbolic link in it leads out of the source.
	ErrEscapes = errors.New("leads out of the source")
	// ErrPseudo: the path is in a file system that shows the kernel's own data.
	ErrPseudo = errors.New("in a file system of the kernel, which holds no files")
	// ErrLocked: the directory is encrypted and its key is not there. What of it
	// is not found may be there.
	ErrLocked = errors.New("encrypted, and its key is not there")
	// ErrRootChanged: the source's directory is not the one that was pinned.
	ErrRootChanged = errors.New("another directory is in the place of the source")
)
