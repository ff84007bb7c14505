package relpath

import (
	"strings"
)

// parentOf returns the directory of path, "" for the root.
func Parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// below reports whether path is in the directory dir, at any depth.
func Below(path, dir string) bool {
	return dir == "" || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}
