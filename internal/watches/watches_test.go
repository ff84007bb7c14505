package watches

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestFileSystemTypes(t *testing.T) {
	for typ, want := range map[int64]bool{unix.EXT4_SUPER_MAGIC: false, unix.TMPFS_MAGIC: false, unix.NFS_SUPER_MAGIC: true, unix.FUSE_SUPER_MAGIC: true, 0xff534d42: true} {
		if got := IsNetwork(typ); got != want {
			t.Errorf("IsNetwork(%#x): got %v, want %v", typ, got, want)
		}
	}
}
