package safefs

import (
	"encoding/hex"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Place identifies a directory over restarts, and over mounting its file system
// again: paths, device numbers and even inode numbers are given to another
// directory once the first is gone. What cannot be read is left empty. It is
// kept in the state as JSON.
type Place struct {
	UUID       string `json:"uuid,omitempty"` // of the file system
	FSID       string `json:"fsid,omitempty"` // statfs f_fsid, where it is more than the device number
	Ino        uint64 `json:"ino,omitempty"`
	Birth      int64  `json:"birth,omitempty"`      // in nanoseconds
	Generation string `json:"generation,omitempty"` // of the inode
}

// Verdict is what comparing two Places says.
type Verdict int

// The verdicts.
const (
	Unsure Verdict = iota // too little is known of one of them
	Same
	Other
)

// Compare reports whether now is the directory that was p.
func (p Place) Compare(now Place) Verdict {
	compared := false
	for _, attribute := range [][2]string{
		{p.UUID, now.UUID}, {p.FSID, now.FSID}, {birth(p), birth(now)},
	} {
		if attribute[0] == "" || attribute[1] == "" {
			continue
		}
		if attribute[0] != attribute[1] {
			return Other
		}
		compared = true
	}
	switch {
	case !compared || p.Ino == 0 || now.Ino == 0:
		return Unsure
	case p.Ino != now.Ino:
		return Other
	case p.Generation != "" && now.Generation != "" && p.Generation != now.Generation:
		return Other
	}
	return Same
}

func birth(p Place) string {
	if p.Birth == 0 {
		return ""
	}
	return strconv.FormatInt(p.Birth, 10)
}

// Place says which directory stands at rel, "" being the root.
func (r *Root) Place(rel string) (Place, error) {
	d, err := r.OpenDir(rel)
	if err != nil {
		return Place{}, err
	}
	defer d.Close()
	in, err := inspect(d.fd)
	if err != nil {
		return Place{}, pathError("statx", rel, err)
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(d.fd, &fs) }); err != nil {
		return Place{}, pathError("statfs", rel, err)
	}
	return placeOf(d.fd, in, &fs), nil
}

// placeOf needs a descriptor that is open for reading for all but the first
// attributes.
func placeOf(fd int, in inode, fs *unix.Statfs_t) Place {
	p := Place{Ino: in.ino, Birth: in.birth, UUID: fsUUID(fd), FSID: fsid(fs, in.dev)}
	if uint32(fs.Type) == unix.OVERLAYFS_SUPER_MAGIC {
		p.Birth = 0 // Of a directory it is another one once something is written there.
	}
	if p.Birth == 0 && in.ino == extRoot && uint32(fs.Type) == unix.EXT4_SUPER_MAGIC {
		p.Birth = madeAt(fd)
	}
	if g, err := unix.IoctlGetUint32(fd, uint(fsIocGetVersion)); err == nil {
		p.Generation = strconv.FormatUint(uint64(g), 10)
	}
	return p
}

// extRoot is the inode of the root of ext2, ext3 and ext4.
const extRoot = 2

// madeAt returns when lost+found in the directory fd last changed, 0 where there is
// none. That is when the file system was made or repaired: with inodes of 128 bytes
// its root has no birth, and no generation ever.
func madeAt(fd int) int64 {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(fd, "lost+found", &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0
	}
	return unix.TimespecToNsec(st.Mtim)
}

// fsid returns "" where the id is the device number, which the next boot may
// give to another disk.
func fsid(fs *unix.Statfs_t, dev uint64) string {
	low, high := uint32(fs.Fsid.Val[0]), uint32(fs.Fsid.Val[1])
	if low|high == 0 || high == 0 && uint64(low) == dev {
		return ""
	}
	return strconv.FormatUint(uint64(high)<<32|uint64(low), 16)
}

const (
	fsIocGetUUID    = 0x80111500 // FS_IOC_GETFSUUID, Linux 6.9
	fsIocGetVersion = 0x80007601 | unsafe.Sizeof(uintptr(0))<<16
)

// fsUUID asks for the UUID of the file system, "" where it has none or the
// kernel does not tell.
func fsUUID(fd int) string {
	var arg struct {
		Len  uint8
		UUID [16]byte
	}
	if err := ioctl(fd, fsIocGetUUID, unsafe.Pointer(&arg)); err != nil || arg.Len == 0 || arg.UUID == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(arg.UUID[:])
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	return retry(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

// inode is what statx says of an open file beyond Stat.
type inode struct {
	dev, ino, mount uint64
	birth           int64 // 0: not known
	encrypted       bool
}

// inspect asks for the inode of fd. The mount is told by its id where the kernel
// knows that (5.8), else by the device.
func inspect(fd int) (inode, error) {
	var sx unix.Statx_t
	const mounts = unix.STATX_MNT_ID_UNIQUE | unix.STATX_MNT_ID
	err := retry(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, mounts|unix.STATX_INO|unix.STATX_BTIME, &sx)
	})
	if err != nil {
		st, err := fstat(fd)
		return inode{dev: st.Dev, ino: st.Ino, mount: st.Dev}, err
	}
	in := inode{
		dev: unix.Mkdev(sx.Dev_major, sx.Dev_minor), ino: sx.Ino,
		encrypted: sx.Attributes&unix.STATX_ATTR_ENCRYPTED != 0,
	}
	in.mount = in.dev
	if sx.Mask&mounts != 0 {
		in.mount = sx.Mnt_id
	}
	if sx.Mask&unix.STATX_BTIME != 0 {
		in.birth = sx.Btime.Sec*1e9 + int64(sx.Btime.Nsec)
	}
	return in, nil
}
