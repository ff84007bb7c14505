package host

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/signer"
)

// serviceUser is the user that the packages make, and the service runs as.
const serviceUser = "s3syncd"

// The users that systemd draws for services with DynamicUser=yes.
const (
	dynamicFirst = 61184
	dynamicLast  = 65519
)

// trustedUsers are the users beside this one and root that may own what the
// service relies on: root checks a configuration for it.
func trustedUsers() (ids []uint32) {
	u, err := user.Lookup(serviceUser)
	if err != nil {
		return nil
	}
	if id, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
		ids = append(ids, uint32(id))
	}
	return ids
}

// LoadKey reads the signing key in file. It must belong to this user, to root,
// to the service's user, or to the owner of the state.
func LoadKey(file string, c *config.Config) (*signer.Ed25519, error) {
	owners := trustedUsers()
	if id, _, ok := ownerOf(c.StateDir); ok {
		owners = append(owners, id)
	}
	return signer.LoadEd25519(file, owners...)
}

// ownerOf returns who owns the directory at path, and its permissions; not ok
// where there is none.
func ownerOf(path string) (uid uint32, perm os.FileMode, ok bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return st.Uid, info.Mode().Perm(), true
}

// stateWarnings names who else can change the state and the copies of the trail,
// and so make files count as archived that are not.
func stateWarnings(c *config.Config) (warnings []string) {
	own := append(trustedUsers(), 0, uint32(os.Geteuid()))
	for _, dir := range []struct{ key, path string }{{"state_dir", c.StateDir}, {"manifest.local_dir", c.Manifest.LocalDir}} {
		uid, perm, ok := ownerOf(dir.path)
		const follows = ": whoever can may let files count as archived that are not"
		switch {
		case !ok:
		case perm&0o022 != 0:
			warnings = append(warnings, fmt.Sprintf("%s: others than its owner may write to %s (mode %04o)%s; chmod 700", dir.key, dir.path, perm, follows))
		case !slices.Contains(own, uid) && (uid < dynamicFirst || uid > dynamicLast):
			warnings = append(warnings, fmt.Sprintf("%s: %s belongs to the user %s, who may write to it%s; chown it to the user of the service", dir.key, dir.path, userName(uid), follows))
		}
	}
	return warnings
}

// exampleInstance is the one that the example of a configuration shows.
const exampleInstance = "app-01"

// Warnings names what of c is questionable on this host: directories that others
// can change, and the name of another host.
func Warnings(c *config.Config) []string {
	warnings := stateWarnings(c)
	host, err := os.Hostname()
	if short, _, _ := strings.Cut(host, "."); err == nil && c.Instance == exampleInstance && short != exampleInstance {
		warnings = append(warnings, fmt.Sprintf("instance: %s is that of the example, and this host is called %s: "+
			"two hosts with one instance overwrite each other's files; leave it out, or set a name that no other host has", exampleInstance, host))
	}
	return warnings
}

// userName is the name of a user, or the number.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
