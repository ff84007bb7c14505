package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
)

// Canonical returns the effective configuration as one line of JSON: every key,
// in the order of the file, with defaults and inherited settings. It is a valid
// configuration file that has the same effect on this host. It holds no secret.
func (c *Config) Canonical() []byte {
	var b bytes.Buffer
	writeBlock(&b, c.neutral().options(), c.Sources)
	return b.Bytes()
}

// SHA256 returns the hash of Canonical in hex.
func (c *Config) SHA256() string { return hash(c.Canonical()) }

// SourceCanonical is Canonical with source i alone and without state_dir, admin
// and log: what decides what is archived from that source and how. It is what
// may be published beside the source's objects, as it names no other source.
func (c *Config) SourceCanonical(i int) []byte {
	var b bytes.Buffer
	options := slices.DeleteFunc(c.neutral().options(), func(o option) bool {
		return o.key == "state_dir" || o.key == "admin" || o.key == "log"
	})
	writeBlock(&b, options, c.Sources[i:i+1])
	return b.Bytes()
}

// SourceSHA256 returns the hash of SourceCanonical in hex.
func (c *Config) SourceSHA256(i int) string { return hash(c.SourceCanonical(i)) }

// Diff returns the dotted keys whose effective values differ, sorted. Sources
// are matched by name, as in sources[app-data].bucket; one that was added or
// removed is sources[app-data] as a whole. Their order is not compared.
func Diff(prev, next *Config) []string {
	changed := differ("", prev.neutral().options(), next.neutral().options())
	before := prev.byName()
	for name, s := range next.byName() {
		key := "sources[" + name + "]"
		if old := before[name]; old != nil {
			changed = append(changed, differ(key, old.options(), s.options())...)
		} else {
			changed = append(changed, key)
		}
		delete(before, name)
	}
	for name := range before {
		changed = append(changed, "sources["+name+"]")
	}
	slices.Sort(changed)
	return changed
}

func (c *Config) byName() map[string]*Source {
	m := make(map[string]*Source, len(c.Sources))
	for i := range c.Sources {
		m[c.Sources[i].Name] = &c.Sources[i]
	}
	return m
}

// differ compares two bindings of the same options, those of sources left out.
func differ(block string, prev, next []option) []string {
	var changed []string
	for i, o := range next {
		key := join(block, o.key)
		switch {
		case o.block != nil:
			changed = append(changed, differ(key, prev[i].block, o.block)...)
		case !o.sources && o.encode() != prev[i].encode():
			changed = append(changed, key)
		}
	}
	return changed
}

// neutral returns a copy whose control socket is as open as it was written:
// where systemd puts it is not a setting.
func (c *Config) neutral() *Config {
	n := *c
	if n.Admin.defaultSocket {
		n.Admin.Socket = ""
	}
	return &n
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func writeBlock(b *bytes.Buffer, options []option, sources []Source) {
	b.WriteByte('{')
	for i, o := range options {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(encode(o.key) + ":")
		switch {
		case o.block != nil:
			writeBlock(b, o.block, nil)
		case o.sources:
			b.WriteByte('[')
			for j := range sources {
				if j > 0 {
					b.WriteByte(',')
				}
				writeBlock(b, sources[j].options(), nil)
			}
			b.WriteByte(']')
		default:
			b.WriteString(o.encode())
		}
	}
	b.WriteByte('}')
}

// encode returns the value of an option that is no block.
func (o option) encode() string {
	switch {
	case o.list != nil && len(*o.list.p) == 0:
		return "[]"
	case o.list != nil:
		return encode(*o.list.p)
	case o.dict != nil && len(*o.dict.p) == 0:
		return "{}"
	case o.dict != nil:
		return encode(*o.dict.p)
	}
	return encode(o.value.get())
}

// encode returns v as JSON. Strings, numbers, booleans and lists and maps of
// strings always have one.
func encode(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n")
}
