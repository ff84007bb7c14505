package safefs

import "strings"

// Misnamed reports whether rel is not the name of what a system call finds by
// it: on a file system that ignores case, a file that was renamed from File to
// file is still found as File. Only a listing tells its name. It returns false
// where a directory on the way cannot be listed.
func (r *Root) Misnamed(rel string) bool {
	dir := ""
	for name := range strings.SplitSeq(rel, "/") {
		listed, folded := r.lists(dir, name)
		if !listed {
			return folded
		}
		if dir != "" {
			dir += "/"
		}
		dir += name
	}
	return false
}

// lists reports whether the directory lists exactly this name, and whether it
// lists one that differs from it in case alone.
func (r *Root) lists(dir, name string) (exact, folded bool) {
	d, err := r.OpenDir(dir)
	if err != nil {
		return false, false
	}
	defer d.Close()
	var buf []Entry
	err = d.read(func(chunk []byte) bool {
		buf = parse(chunk, buf[:0])
		for _, e := range buf {
			if e.Name == name {
				exact = true
				return false
			}
			folded = folded || strings.EqualFold(e.Name, name)
		}
		return true
	})
	if err != nil || exact {
		return exact, false
	}
	return false, folded
}
