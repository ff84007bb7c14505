package safefs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Stat is what the kernel says of one file.
type Stat struct {
	Dev, Ino         uint64
	Size             int64
	MtimeNs, CtimeNs int64 // since the epoch
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
		MtimeNs: st.Mtim.Nano(), CtimeNs: st.Ctim.Nano(),
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Nlink: uint64(st.Nlink), //nolint:unconvert // Likewise Nlink's.
	}
}

// retry calls f again for as long as a signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // A bare errno.
			return err
		}
	}
}

// mount identifies the mount that fd is on: by the mount's id where the kernel
// tells it (5.8), else by the device.
func mount(fd int) (uint64, error) {
	var sx unix.Statx_t
	const mask = unix.STATX_MNT_ID_UNIQUE | unix.STATX_MNT_ID
	err := retry(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, mask, &sx)
	})
	if err == nil && sx.Mask&mask != 0 {
		return sx.Mnt_id, nil
	}
	st, err := fstat(fd)
	return st.Dev, err
}
