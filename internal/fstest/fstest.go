// Package fstest makes file systems in loop devices, for tests only. Where that
// needs rights or programs that are not there, the test is skipped and says so.
package fstest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// size is that of an image.
const size = 32 << 20

// Disk is an ext4 file system in a file, mounted or not.
type Disk struct {
	tb    testing.TB
	image string
	mount string
}

// NewDisk returns a file system that mkfs.ext4 made with the given options and
// that is mounted at dir. The end of the test takes it away.
func NewDisk(tb testing.TB, dir string, options ...string) *Disk {
	tb.Helper()
	for _, program := range []string{"mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Skipf("no %s: %v", program, err)
		}
	}
	if os.Getuid() != 0 {
		tb.Skip("only root mounts a loop device")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		tb.Fatal(err)
	}
	d := &Disk{tb: tb, image: filepath.Join(tb.TempDir(), "image"), mount: dir}
	d.Make(options...)
	if out, err := d.tryMount(); err != nil {
		tb.Skipf("no loop device to be had: %v\n%s", err, out)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(d.mount, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			tb.Errorf("unmount %s: %v", d.mount, err)
		}
	})
	return d
}

// Make writes an empty file system, over what was in the image. It must not be
// mounted.
func (d *Disk) Make(options ...string) {
	d.tb.Helper()
	if err := errors.Join(os.RemoveAll(d.image), os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, size)); err != nil { //nolint:forbidigo // A test's own file.
		d.tb.Fatal(err)
	}
	d.run("mkfs.ext4", append([]string{"-q", "-F"}, append(options, d.image)...)...)
}

// Debug runs commands of debugfs on the file system, which must not be mounted.
func (d *Disk) Debug(command string) {
	d.tb.Helper()
	if _, err := exec.LookPath("debugfs"); err != nil {
		d.tb.Skipf("no debugfs: %v", err)
	}
	d.run("debugfs", "-w", "-R", command, d.image)
}

// Mount mounts the file system again.
func (d *Disk) Mount() {
	d.tb.Helper()
	if out, err := d.tryMount(); err != nil {
		d.tb.Fatalf("mount %s: %v\n%s", d.image, err, out)
	}
}

// Unmount takes the file system away at once, also when it is in use.
func (d *Disk) Unmount() {
	d.tb.Helper()
	if err := unix.Unmount(d.mount, unix.MNT_DETACH); err != nil {
		d.tb.Fatalf("unmount %s: %v", d.mount, err)
	}
}

func (d *Disk) tryMount() ([]byte, error) {
	return exec.CommandContext(d.tb.Context(), "mount", "-o", "loop", d.image, d.mount).CombinedOutput() //nolint:gosec // A test's own paths.
}

func (d *Disk) run(program string, args ...string) {
	d.tb.Helper()
	if out, err := exec.CommandContext(d.tb.Context(), program, args...).CombinedOutput(); err != nil { //nolint:gosec // Likewise.
		d.tb.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// Key is an encryption key that is added to a file system.
type Key struct {
	tb   testing.TB
	dir  string
	spec unix.FscryptKeySpecifier
}

// Encrypt makes dir, an empty directory of a Disk made with -O encrypt, one that
// is encrypted under a key of its own, and adds the key.
func Encrypt(tb testing.TB, dir string) *Key {
	tb.Helper()
	k := &Key{tb: tb, dir: filepath.Dir(dir)}
	k.Add()
	policy := struct {
		Version, Contents, Filenames, Flags, DataUnit uint8
		_                                             [3]uint8
		Identifier                                    [unix.FSCRYPT_KEY_IDENTIFIER_SIZE]byte
	}{
		Version: unix.FSCRYPT_POLICY_V2, Contents: unix.FSCRYPT_MODE_AES_256_XTS, Filenames: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32,
	}
	copy(policy.Identifier[:], k.spec.U[:])
	if err := ioctl(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy)); err != nil {
		tb.Fatalf("encrypt %s: %v", dir, err)
	}
	return k
}

// Add adds the key: names and content can be read.
func (k *Key) Add() {
	k.tb.Helper()
	var arg struct {
		unix.FscryptAddKeyArg
		raw [64]byte
	}
	arg.Key_spec.Type = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
	arg.Raw_size = uint32(len(arg.raw))
	for i := range arg.raw {
		arg.raw[i] = byte(i)
	}
	if err := ioctl(k.dir, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil {
		k.tb.Skipf("this kernel takes no encryption key: %v", err)
	}
	k.spec = arg.Key_spec
}

// Remove takes the key away: what was encrypted under it is locked.
func (k *Key) Remove() {
	k.tb.Helper()
	arg := unix.FscryptRemoveKeyArg{Key_spec: k.spec}
	if err := ioctl(k.dir, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil {
		k.tb.Fatalf("remove the key: %v", err)
	}
}

func ioctl(dir string, request uintptr, arg unsafe.Pointer) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // Nothing was written.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
