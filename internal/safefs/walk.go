package safefs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links in one path, as the kernel does.
const maxLinks = 40

// maxTarget is the longest text of a symbolic link.
const maxTarget = unix.PathMax

// cursor is a place in a source while a path is walked: the descriptor of a
// directory and the names of its parents from the root, links resolved.
type cursor struct {
	root   *Root
	fd     int
	ground ground
	names  []string
	links  int
}

func (r *Root) start() (*cursor, error) {
	fd, err := r.open()
	if err != nil {
		return nil, err
	}
	in, err := inspect(fd)
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	return &cursor{root: r, fd: fd, ground: ground{dev: in.dev, mount: in.mount}}, nil
}

func (c *cursor) close() {
	if c.fd >= 0 {
		closeFD(c.fd)
		c.fd = -1
	}
}

// walk goes to the directory that holds the last component of rel and returns
// that component's name. With follow, the last component is resolved too when
// it is a symbolic link and links are followed; the name is then the target's,
// "" when the target is the directory c itself.
func (r *Root) walk(rel string, follow bool) (*cursor, string, error) {
	parts, err := split(rel)
	if err != nil {
		return nil, "", err
	}
	c, err := r.start()
	if err != nil {
		return nil, "", err
	}
	name, err := c.resolve(parts, follow && r.o.Follow)
	if err != nil {
		err = absent(c.fd, err)
		c.close()
		return nil, "", err
	}
	return c, name, nil
}

// split returns the components of rel, which must be clean.
func split(rel string) ([]string, error) {
	if rel == "" {
		return nil, nil
	}
	parts := strings.Split(rel, "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || strings.IndexByte(p, 0) >= 0 {
			return nil, ErrEscapes
		}
	}
	return parts, nil
}

// resolve enters all parts but the last one.
func (c *cursor) resolve(parts []string, followLast bool) (name string, err error) {
	for len(parts) > 0 {
		p := parts[0]
		parts = parts[1:]
		var target []string
		switch {
		case p == "..":
			err = c.up()
		case len(parts) > 0:
			target, err = c.enter(p)
		case !followLast:
			return p, nil
		default:
			var is bool
			if target, is, err = c.link(p); err == nil && !is {
				return p, nil
			}
		}
		if err != nil {
			return "", err
		}
		if target != nil {
			parts = append(target, parts...)
		}
	}
	return "", nil
}

// enter goes into the directory p. When p is a symbolic link that is followed,
// it stays (or goes to the root, for an absolute one) and returns the link's
// components.
func (c *cursor) enter(p string) (target []string, err error) {
	fd, err := openat(c.fd, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err == nil {
		return nil, c.moveTo(fd, p)
	}
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return nil, err
	}
	st, serr := fstatat(c.fd, p)
	if serr != nil {
		return nil, serr
	}
	if !st.IsSymlink() {
		return nil, fs.ErrNotExist
	}
	if !c.root.o.Follow {
		return nil, fmt.Errorf("%w in its path: %w", ErrSymlink, fs.ErrNotExist)
	}
	target, _, err = c.link(p)
	return target, err
}

func (c *cursor) moveTo(fd int, name string) error {
	if _, err := c.root.admit(fd, c.ground); err != nil {
		closeFD(fd)
		return err
	}
	closeFD(c.fd)
	c.fd = fd
	c.names = append(c.names, name)
	return nil
}

// up goes to the parent by walking to it again from the root: ".." of a
// directory that was moved out of the source would leave it.
func (c *cursor) up() error {
	if len(c.names) == 0 {
		return ErrEscapes
	}
	names := c.names[:len(c.names)-1]
	if err := c.toRoot(); err != nil {
		return err
	}
	for _, n := range names {
		fd, err := openat(c.fd, n, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		if err := c.moveTo(fd, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *cursor) toRoot() error {
	fd, err := c.root.open()
	if err != nil {
		return err
	}
	closeFD(c.fd)
	c.fd, c.names = fd, nil
	return nil
}

// link reads the symbolic link p and returns the components to go on with;
// never nil for a link. An absolute target must be inside the source.
func (c *cursor) link(p string) (target []string, is bool, err error) {
	buf := make([]byte, maxTarget)
	var n int
	err = retry(func() error {
		n, err = unix.Readlinkat(c.fd, p, buf)
		return err
	})
	if errors.Is(err, unix.EINVAL) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if c.links++; c.links > maxLinks {
		return nil, true, fmt.Errorf("%w: %w", ErrSymlink, unix.ELOOP)
	}
	text := string(buf[:n])
	if strings.HasPrefix(text, "/") {
		if text, err = c.inside(text); err != nil {
			return nil, true, err
		}
	}
	target = []string{}
	for part := range strings.SplitSeq(text, "/") {
		if part != "" && part != "." {
			target = append(target, part)
		}
	}
	return target, true, nil
}

// inside goes to the root and returns the absolute target relative to it.
func (c *cursor) inside(text string) (string, error) {
	id, ok := c.root.Pinned()
	if !ok {
		var err error
		if id, err = c.root.Identify(); err != nil {
			return "", err
		}
	}
	rest, ok := strings.CutPrefix(text, strings.TrimSuffix(id.RealPath, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return "", ErrEscapes
	}
	return rest, c.toRoot()
}

func openat(dirfd int, name string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}
