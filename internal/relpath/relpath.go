// Package relpath does arithmetic on paths below a source: relative,
// slash-separated, in raw bytes, "" for the source itself.
package relpath

import "strings"

// Parent returns the directory of path, "" at the top.
func Parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return ""
}

// Join returns the path of name in the directory dir.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// Below reports whether path is in the directory dir, at any depth.
func Below(path, dir string) bool {
	return dir == "" || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}
