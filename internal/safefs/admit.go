package safefs

import (
	"errors"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ground is where a source begins.
type ground struct{ dev, mount uint64 }

// admit refuses a file or directory that is not part of the source: on another
// mount, where these are not entered, or in a file system without files.
func (r *Root) admit(fd int, g ground) (inode, error) {
	in, err := inspect(fd)
	switch {
	case err != nil:
		return in, err
	case !r.o.CrossMounts && in.mount != g.mount:
		return in, ErrOtherMount
	case in.dev == g.dev:
		return in, nil
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return in, err
	}
	if Pseudo(int64(fs.Type)) { //nolint:unconvert // Type's width differs between architectures.
		return in, ErrPseudo
	}
	return in, nil
}

// Pseudo reports whether a file system of this type (statfs f_type) shows the
// kernel's own data instead of holding files.
func Pseudo(fsType int64) bool {
	switch uint32(fsType) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.BPF_FS_MAGIC,
		unix.SELINUX_MAGIC, unix.SMACK_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.BINFMTFS_MAGIC,
		unix.NSFS_MAGIC, unix.PIPEFS_MAGIC, unix.SOCKFS_MAGIC, unix.ANON_INODE_FS_MAGIC, unix.XENFS_SUPER_MAGIC,
		unix.RDTGROUP_SUPER_MAGIC, unix.HUGETLBFS_MAGIC, unix.OPENPROM_SUPER_MAGIC, unix.USBDEVICE_SUPER_MAGIC,
		unix.BINDERFS_SUPER_MAGIC, unix.BDEVFS_MAGIC, unix.AAFS_MAGIC, unix.MTD_INODE_FS_MAGIC,
		0x62656570, // configfs
		0x65735543, // fusectl
		0x19800202, // POSIX message queues
		0x67596969, // rpc_pipefs
		0x6e667364, // nfsd
		0x6f70726f: // oprofilefs
		return true
	}
	return false
}

// unlocked refuses a directory that is encrypted by fscrypt when its key is not
// there: it lists made-up names, and no name that it has is found in it.
func unlocked(fd int) error {
	if in, err := inspect(fd); err != nil || !in.encrypted {
		return err
	}
	d, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer closeFD(d)
	if keyPresent(d) || readsFiles(d) {
		return nil
	}
	return ErrLocked
}

// keyPresent reports whether the kernel says that the key of an encrypted
// directory has been added.
func keyPresent(fd int) bool {
	policy := unix.FscryptGetPolicyExArg{Size: uint64(len(unix.FscryptGetPolicyExArg{}.Policy))}
	if ioctl(fd, unix.FS_IOC_GET_ENCRYPTION_POLICY_EX, unsafe.Pointer(&policy)) != nil {
		return false
	}
	var status unix.FscryptGetKeyStatusArg
	switch policy.Policy[0] {
	case unix.FSCRYPT_POLICY_V1:
		status.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR
		copy(status.Key_spec.U[:], policy.Policy[4:4+unix.FSCRYPT_KEY_DESCRIPTOR_SIZE])
	case unix.FSCRYPT_POLICY_V2:
		status.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
		copy(status.Key_spec.U[:], policy.Policy[8:8+unix.FSCRYPT_KEY_IDENTIFIER_SIZE])
	default:
		return false
	}
	err := ioctl(fd, unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS, unsafe.Pointer(&status))
	return err == nil && status.Status == unix.FSCRYPT_KEY_STATUS_PRESENT
}

// readsFiles reports whether a regular file of an encrypted directory opens,
// which takes its key: the kernel does not tell of keys in a keyring of a
// process, nor what of a removed one is in use.
func readsFiles(fd int) bool {
	buf := make([]byte, direntBuffer)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return false
	}
	for _, e := range parse(buf[:max(0, n)], nil) {
		if !e.IsRegular() {
			continue
		}
		f, err := openat(fd, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err == nil {
			closeFD(f)
			return true
		}
		if errors.Is(err, unix.ENOKEY) {
			return false
		}
	}
	return false
}

// absent decides what it means that a name was not found in the directory dir.
func absent(dir int, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if locked := unlocked(dir); locked != nil {
			return locked
		}
	}
	return err
}
