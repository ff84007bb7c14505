package safefs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Attributes are what a file gets beside its content. A nil field is left as it
// is.
type Attributes struct {
	Mode     *uint32 // permission, setuid, setgid and sticky bits
	UID, GID *uint32
	MTime    *time.Time
}

// Equal reports whether a file with st has the attributes.
func (a Attributes) Equal(st Stat) bool {
	return (a.Mode == nil || *a.Mode == st.Mode&0o7777) && (a.UID == nil || *a.UID == st.UID) &&
		(a.GID == nil || *a.GID == st.GID) && (a.MTime == nil || a.MTime.Equal(st.Mtime()))
}

// RunsAs reports whether the file would run with its owner's or group's rights.
func (a Attributes) RunsAs() bool {
	return a.Mode != nil && *a.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
}

// split takes the setuid and setgid bits out of a. The second part has them with
// the permissions, or no mode where there are none.
func (a Attributes) split() (plain, special Attributes) {
	if !a.RunsAs() {
		return a, Attributes{}
	}
	special.Mode = a.Mode
	mode := *a.Mode &^ (unix.S_ISUID | unix.S_ISGID)
	a.Mode = &mode
	return a, special
}

// Apply gives the open file f the attributes, in the order in which none undoes
// another: the owner, then the permissions, then the time.
func (a Attributes) Apply(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var aerr error
	if err := conn.Control(func(fd uintptr) { aerr = a.apply(int(fd)) }); err != nil {
		return err
	}
	return aerr
}

func (a Attributes) apply(fd int) error {
	if a.UID != nil || a.GID != nil {
		if err := retry(func() error { return unix.Fchown(fd, orKeep(a.UID), orKeep(a.GID)) }); err != nil {
			return fmt.Errorf("change the owner: %w", err)
		}
	}
	if a.Mode != nil {
		if err := retry(func() error { return unix.Fchmod(fd, *a.Mode&0o7777) }); err != nil {
			return fmt.Errorf("change the mode: %w", err)
		}
	}
	if a.MTime == nil {
		return nil
	}
	if err := setTime(fd, *a.MTime); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// orKeep is the id, or what chown(2) leaves alone.
func orKeep(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

// setTime sets the modification time of an open file, and leaves the access
// time alone.
func setTime(fd int, at time.Time) error {
	mtime, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
	err = retry(func() error { return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // Before Linux 5.8.
		err = retry(func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), ts, 0)
		})
	}
	return err
}

// enters reports whether the owner in a can enter a directory.
func (a Attributes) enters(dir Stat) bool {
	switch {
	case a.UID == nil, *a.UID == 0:
		return true
	case dir.UID == *a.UID:
		return dir.Mode&0o100 != 0
	case a.GID != nil && dir.GID == *a.GID:
		return dir.Mode&0o010 != 0
	}
	return dir.Mode&0o001 != 0
}
