package config

import "strings"

func find(options []option, key string) (option, bool) {
	for _, o := range options {
		if o.key == key {
			return o, true
		}
	}
	return option{}, false
}

func keys(options []option) []string {
	list := make([]string, len(options))
	for i, o := range options {
		list[i] = o.key
	}
	return list
}

// names lists the keys of a block for a message.
func names(options []option) string { return strings.Join(keys(options), ", ") }

// allKeys returns the dotted path of every option, those of a source below
// sources[].
func allKeys(options []option, block string) []string {
	var list []string
	for _, o := range options {
		key := join(block, o.key)
		list = append(list, key)
		list = append(list, allKeys(o.block, key)...)
		if o.sources {
			list = append(list, allKeys((&Source{}).options(), key+"[]")...)
		}
	}
	return list
}

func join(block, key string) string {
	if block == "" {
		return key
	}
	return block + "." + key
}

func lastKey(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// keyText returns a key that is not known as a path shows it: as it is where it
// looks like one of ours, else quoted.
func keyText(key string) string {
	if matches(key, 64, "_-") {
		return key
	}
	return quote(key)
}
