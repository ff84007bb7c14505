package safefs

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stat is what the kernel says of one file.
type Stat struct {
	Dev, Ino         uint64
	Size             int64
	MtimeNs, CtimeNs int64 // since the epoch; before 1678 and behind 2261 they wrap around
	MtimeSec         int64 // whole seconds where MtimeNs wraps around, else 0
	Mode             uint32
	UID, GID         uint32
	Nlink            uint64
}

// SizeMtime is s without what RootOptions.SizeMtime leaves out.
func (s Stat) SizeMtime() Stat {
	s.Dev, s.Ino, s.CtimeNs = 0, 0, s.MtimeNs
	return s
}

// IsRegular reports whether s is that of a regular file.
func (s Stat) IsRegular() bool { return s.Mode&unix.S_IFMT == unix.S_IFREG }

// IsDir reports whether s is that of a directory.
func (s Stat) IsDir() bool { return s.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsSymlink reports whether s is that of a symbolic link.
func (s Stat) IsSymlink() bool { return s.Mode&unix.S_IFMT == unix.S_IFLNK }

// Fstat returns what the kernel says of the open file f.
func Fstat(f *os.File) (Stat, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return Stat{}, fmt.Errorf("fstat %s: %w", f.Name(), err)
	}
	var st Stat
	var serr error
	if err := conn.Control(func(fd uintptr) { st, serr = fstat(int(fd)) }); err != nil {
		return Stat{}, fmt.Errorf("fstat %s: %w", f.Name(), err)
	}
	if serr != nil {
		return Stat{}, fmt.Errorf("fstat %s: %w", f.Name(), serr)
	}
	return st, nil
}

func fstat(fd int) (Stat, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return Stat{}, err
	}
	return fromUnix(&st), nil
}

func fstatat(dirfd int, name string) (Stat, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Stat{}, err
		}
		return fromUnix(&st), nil
	}
}

func fromUnix(st *unix.Stat_t) Stat {
	return Stat{
		Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size, //nolint:unconvert // Dev's width differs between architectures.
		MtimeNs: st.Mtim.Nano(), CtimeNs: st.Ctim.Nano(), MtimeSec: farSeconds(time.Unix(st.Mtim.Unix())),
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Nlink: uint64(st.Nlink), //nolint:unconvert // Likewise Nlink's.
	}
}

// farSeconds returns the whole seconds of a time that nanoseconds since the epoch
// cannot hold, else 0.
func farSeconds(t time.Time) int64 {
	if time.Unix(0, t.UnixNano()).Equal(t) {
		return 0
	}
	return t.Unix()
}

// Mtime returns the time of the last modification.
func (s Stat) Mtime() time.Time {
	if s.MtimeSec == 0 {
		return time.Unix(0, s.MtimeNs)
	}
	return time.Unix(s.MtimeSec, s.MtimeNs-s.MtimeSec*int64(time.Second)) // Both wrap around alike.
}

// retry calls f again for as long as a signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // A bare errno.
			return err
		}
	}
}
