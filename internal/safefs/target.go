package safefs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What keeps a file from being written below a Target. They are matched with
// errors.Is; a name that cannot be is ErrEscapes.
var (
	// ErrTargetBusy: another process writes below the same directory.
	ErrTargetBusy = errors.New("another restore writes there")
	// ErrParent: something that is not a directory stands where a directory is
	// needed. A symbolic link is not followed.
	ErrParent = errors.New("a parent is not a directory")
	// ErrIsDirectory: a directory stands where the file belongs.
	ErrIsDirectory = errors.New("a directory stands there")
	// ErrNotReplaced: something stands where the file belongs.
	ErrNotReplaced = errors.New("something else stands there")
)

// tempPrefix begins the name of a file that is being written below a Target.
// The rest is derived from the name that it will have, so that a second try
// finds and replaces what a killed first one left.
const tempPrefix = ".s3syncd-restore-"

var targetTemp = regexp.MustCompile(`^\.s3syncd-restore-[0-9a-f]{32}$`)

// IsTargetTemp reports whether name, the last component of a path, is one that
// a Target gives to files that it is still writing.
func IsTargetTemp(name string) bool { return targetTemp.MatchString(name) }

// Target is a directory that files are written below. It is built for a caller
// with more rights than anybody who can change the directory: every path is walked
// from one descriptor, component by component, no symbolic link below the
// directory is followed, and attributes are set on descriptors, never on names.
// All methods but Close may be called concurrently.
type Target struct {
	fd      int
	path    string
	dirMode uint32       // of new directories
	made    atomic.Int64 // new directories
}

// OpenTarget opens the directory at path, which it makes first where it is
// missing, and locks it against other processes' Targets: ErrTargetBusy. Every
// directory that it and Create make gets dirMode: what the directories of an
// archived tree allowed is not known, and they may have kept others out. A
// symbolic link at path itself is followed. The lock ends with Close, or with
// the process.
func OpenTarget(dir string, dirMode fs.FileMode) (*Target, error) {
	if err := MkdirAll(dir, dirMode); err != nil {
		return nil, err
	}
	t, err := LookAtTarget(dir)
	if err != nil {
		return nil, err
	}
	t.dirMode = uint32(dirMode.Perm())
	err = retry(func() error { return unix.Flock(t.fd, unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK): // Some network file systems have no locks.
		return t, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = ErrTargetBusy
	}
	t.Close()
	return nil, &fs.PathError{Op: "lock", Path: dir, Err: err}
}

// LookAtTarget opens the directory at path for a caller that writes nothing. It
// neither makes it nor locks it.
func LookAtTarget(dir string) (*Target, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Target{fd: fd, path: dir}, nil
}

// Close gives the directory back. Nothing may be under way.
func (t *Target) Close() {
	closeFD(t.fd)
	t.fd = -1
}

// Free returns how many bytes and how many files the target's file system has
// room for. A file system that does not count files has room for any number.
func (t *Target) Free() (bytes, files uint64, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(t.fd, &st) }); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: t.path, Err: err}
	}
	files = st.Ffree
	if st.Files == 0 {
		files = 1<<64 - 1
	}
	return st.Bavail * uint64(st.Bsize), files, nil
}

// Sync makes everything that was committed survive a power cut, directories
// included.
func (t *Target) Sync() error {
	if err := retry(func() error { return unix.Syncfs(t.fd) }); err != nil {
		return &fs.PathError{Op: "syncfs", Path: t.path, Err: err}
	}
	return nil
}

// Lstat says what stands at rel. Where a parent is missing it is
// fs.ErrNotExist, where one is no directory ErrParent.
func (t *Target) Lstat(rel string) (Stat, error) {
	dir, name, err := t.enter(rel, nil)
	if err != nil {
		return Stat{}, &fs.PathError{Op: "lstat", Path: rel, Err: err}
	}
	defer closeFD(dir)
	st, err := fstatat(dir, name)
	if err != nil {
		return Stat{}, &fs.PathError{Op: "lstat", Path: rel, Err: err}
	}
	return st, nil
}

func openRegular(dir int, name string) (int, Stat, error) {
	st, err := fstatat(dir, name)
	if err == nil {
		err = regularOrDirectory(st)
	}
	if err != nil {
		return -1, st, err
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return -1, st, openError(err)
	}
	if st, err = fstat(fd); err == nil {
		err = regularOrDirectory(st)
	}
	if err != nil {
		closeFD(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func regularOrDirectory(st Stat) error {
	if st.IsDir() {
		return ErrIsDirectory
	}
	return regular(st)
}

// DirOwner is who gets the directories that are made.
type DirOwner int

// The owners of new directories.
const (
	DirOwnerSelf   DirOwner = iota // the caller
	DirOwnerParent                 // the owner of their parent
)

// enter goes to the directory that holds the last component of rel, and returns
// its descriptor and that component's name. With makeFor, directories that are
// missing are made.
func (t *Target) enter(rel string, makeFor *DirOwner) (dir int, name string, err error) {
	parts, err := split(rel)
	if err != nil {
		return -1, "", err
	}
	if len(parts) == 0 {
		return -1, "", ErrEscapes
	}
	dir, err = openat(t.fd, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, "", err
	}
	for _, p := range parts[:len(parts)-1] {
		next, err := openat(dir, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if makeFor != nil && errors.Is(err, unix.ENOENT) {
			next, err = t.makeDir(dir, p, *makeFor)
		}
		closeFD(dir)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = ErrParent
		}
		if err != nil {
			return -1, "", err
		}
		dir = next
	}
	return dir, parts[len(parts)-1], nil
}

// Made returns how many directories Create has made.
func (t *Target) Made() int64 { return t.made.Load() }

// makeDir makes the directory name in dir and opens it.
func (t *Target) makeDir(dir int, name string, owner DirOwner) (int, error) {
	above, err := fstat(dir)
	if err != nil {
		return -1, err
	}
	err = retry(func() error { return unix.Mkdirat(dir, name, 0o700) })
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	if !made { // Another worker has made it, and gives it its attributes.
		return fd, nil
	}
	if err := t.dress(fd, above, owner); err != nil {
		closeFD(fd)
		return -1, err
	}
	t.made.Add(1)
	return fd, nil
}

// dress gives the new directory fd its permissions, and where asked the owner of
// the one above. A directory that was put in its place since is left alone.
func (t *Target) dress(fd int, above Stat, owner DirOwner) error {
	st, err := fstat(fd)
	if err != nil || st.UID != uint32(os.Geteuid()) {
		return err
	}
	if owner == DirOwnerParent && (st.UID != above.UID || st.GID != above.GID) {
		if err := retry(func() error { return unix.Fchown(fd, int(above.UID), int(above.GID)) }); err != nil {
			return err
		}
	}
	mode := t.dirMode | st.Mode&unix.S_ISGID
	return retry(func() error { return unix.Fchmod(fd, mode) })
}

// Incoming is a file that is being written below a Target. It appears under its
// name by Commit. It is not safe for concurrent use.
type Incoming struct {
	f    *os.File // nil once committed or closed
	dir  int
	temp string
	name string
	rel  string
}

// Create begins to write the file at rel. The directories above it are made
// where they are missing. What a killed process left of an earlier try goes.
func (t *Target) Create(rel string, owner DirOwner) (*Incoming, error) {
	dir, name, err := t.enter(rel, &owner)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: rel, Err: err}
	}
	sum := sha256.Sum256([]byte(name))
	in := &Incoming{dir: dir, name: name, rel: rel, temp: tempPrefix + hex.EncodeToString(sum[:16])}
	fd, err := createTemp(dir, in.temp)
	if err != nil {
		closeFD(dir)
		return nil, &fs.PathError{Op: "create", Path: rel, Err: err}
	}
	in.f = os.NewFile(uintptr(fd), path.Join(path.Dir(rel), in.temp))
	return in, nil
}

func createTemp(dir int, name string) (int, error) {
	create := func() (int, error) {
		var fd int
		err := retry(func() (err error) {
			fd, err = unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			return err
		})
		return fd, err
	}
	fd, err := create()
	if !errors.Is(err, unix.EEXIST) {
		return fd, err
	}
	if err := retry(func() error { return unix.Unlinkat(dir, name, 0) }); err != nil && !errors.Is(err, unix.ENOENT) {
		return -1, err
	}
	return create()
}

// Write appends b.
func (in *Incoming) Write(b []byte) (int, error) {
	if in.f == nil {
		return 0, fmt.Errorf("write %s: %w", in.rel, fs.ErrClosed)
	}
	return in.f.Write(b)
}

// Commit gives the file its attributes and puts it in its place. With replace,
// whatever is not a directory makes way for it, else ErrNotReplaced says that
// something is there. The setuid and setgid bits come last, when the file has
// its name. When it returns nil, the content survives a power cut and so do,
// after Sync, the name and the attributes; after an error nothing of the write is
// left, or the whole file without these bits.
func (in *Incoming) Commit(a Attributes, replace bool) error {
	if in.f == nil {
		return &fs.PathError{Op: "commit", Path: in.rel, Err: fs.ErrClosed}
	}
	defer in.Close()
	plain, special := a.split()
	err := plain.Apply(in.f)
	if err == nil {
		err = in.f.Sync()
	}
	if err == nil {
		err = in.rename(replace)
	}
	if err == nil {
		in.temp = ""
		err = in.own()
	}
	if err == nil && special.Mode != nil {
		err = special.Apply(in.f)
	}
	if err != nil {
		return &fs.PathError{Op: "commit", Path: in.rel, Err: err}
	}
	return nil
}

// Place says two things of the directory that the file is in: whether the owner
// that a gives the file can enter it (one that may enter any can), and
// whether others than that owner and this process's user can change its names.
func (in *Incoming) Place(a Attributes) (ownerEnters, open bool, err error) {
	st, err := fstat(in.dir)
	if err != nil {
		return false, false, err
	}
	return a.enters(st), !a.trusts(st.UID) || openToOthers(st, hasACL(in.dir)), nil
}

// ErrMeddled says that another writer of the directory has put another file in
// the place of the one that was written, or given it a second name.
var ErrMeddled = errors.New("somebody else changed the directory while it was written")

// own checks that the file is under its name, and under no other.
func (in *Incoming) own() error {
	mine, err := Fstat(in.f)
	if err != nil {
		return err
	}
	there, err := fstatat(in.dir, in.name)
	if err != nil {
		return err
	}
	if mine.Nlink > 1 || there.Ino != mine.Ino || there.Dev != mine.Dev {
		return ErrMeddled
	}
	return nil
}

func (in *Incoming) rename(replace bool) error {
	var err error
	if replace {
		err = retry(func() error { return unix.Renameat(in.dir, in.temp, in.dir, in.name) })
	} else {
		err = in.renameOver()
	}
	switch {
	case errors.Is(err, unix.EISDIR):
		return ErrIsDirectory
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		return ErrNotReplaced
	}
	return err
}

// renameOver renames to a name that nothing may have. Where the file system
// cannot do that in one step it links and unlinks.
func (in *Incoming) renameOver() error {
	err := retry(func() error { return unix.Renameat2(in.dir, in.temp, in.dir, in.name, unix.RENAME_NOREPLACE) })
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := retry(func() error { return unix.Linkat(in.dir, in.temp, in.dir, in.name, 0) }); err != nil {
		return err
	}
	return retry(func() error { return unix.Unlinkat(in.dir, in.temp, 0) })
}

// Close discards what was written unless Commit was called. It may be called
// more than once.
func (in *Incoming) Close() {
	if in.f == nil {
		return
	}
	// The file is committed, or discarded: no error has a consequence.
	_ = in.f.Close()
	if in.temp != "" {
		_ = unix.Unlinkat(in.dir, in.temp, 0)
	}
	closeFD(in.dir)
	in.f = nil
}
