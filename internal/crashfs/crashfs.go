// Package crashfs finds out what a power cut may leave of a directory. It reads
// the log of a process that ran under strace, and builds what a disk may hold
// that had only done what it was told to make durable, and any part of the rest.
// Tests use it; no production package does.
package crashfs

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Args are what strace has to be called with, before the log's name (-o), for a
// log that Parse reads. Strings are whole, and descriptors have their paths.
func Args() []string {
	return []string{
		"-f", "-qq", "-y", "-xx", "-s", "16777216", "-e", "signal=none", "-e",
		"trace=openat,close,write,pwrite64,lseek,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdirat,linkat",
	}
}

const (
	page   = 4096 // What a cut leaves whole, or leaves out.
	sector = 512  // What a disk never tears.
)

// kind is what an operation does.
type kind uint8

const (
	kindCreate kind = iota // An empty file gets a name.
	kindMkdir
	kindRename
	kindUnlink
	kindWrite
	kindTruncate
)

// operation is one change of a file or a directory, made at one moment and made
// durable at a later one.
type operation struct {
	kind    kind
	at      int // The moment it was made.
	durable int // The moment a sync that covers it had returned; never: forever.
	file    int // Of which file, where it concerns one.
	path    string
	to      string // kindRename
	offset  int64
	data    []byte
}

const forever = 1 << 62

// Log is what a process did to one directory.
type Log struct {
	dir  string
	ops  []operation
	acks []ack
	now  int
}

type ack struct {
	at   int
	text string
}

// Moments is how many moments there are at which the power may end, from 0,
// before the first operation, to the one after the last.
func (l *Log) Moments() int { return l.now + 2 }

// Acknowledged returns what the process had written to its standard output
// before a moment.
func (l *Log) Acknowledged(moment int) string {
	var b strings.Builder
	for _, a := range l.acks {
		if a.at < moment {
			b.WriteString(a.text)
		}
	}
	return b.String()
}

// Parse reads what a process did below dir, an absolute path without symbolic
// links.
func Parse(log io.Reader, dir string) (*Log, error) {
	p := &parser{
		l: &Log{dir: filepath.Clean(dir)}, names: map[string]int{}, offsets: map[string]int64{}, open: map[string]call{},
	}
	in := bufio.NewReaderSize(log, 1<<20)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			if err := p.line(strings.TrimSuffix(line, "\n")); err != nil {
				return nil, err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
	}
	if len(p.l.ops) == 0 {
		return nil, fmt.Errorf("the log says of nothing below %s", dir)
	}
	return p.l, nil
}

// call is one system call that has begun.
type call struct {
	name, args string
	begun      int // How many operations there were.
}

type parser struct {
	l       *Log
	names   map[string]int   // The file behind each path.
	files   int              // Numbered so far.
	offsets map[string]int64 // Of each descriptor.
	open    map[string]call  // By thread.
}

// line takes in one line of the log: "PID NAME(ARGS) = RESULT", or its two halves.
// They may be long, and hold no parentheses but the outer ones.
func (p *parser) line(s string) error {
	pid, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimLeft(rest, " ")
	if half, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
		if name, args, ok := strings.Cut(half, "("); ok {
			p.open[pid] = call{name: name, args: args, begun: len(p.l.ops)}
		}
		return nil
	}
	end := strings.LastIndex(rest, ") ")
	if end < 0 {
		return nil
	}
	result, _, _ := strings.Cut(strings.TrimLeft(rest[end+1:], " ="), " ")
	result, _, _ = strings.Cut(result, "<") // A descriptor has its path.
	rest = rest[:end]
	if half, ok := strings.CutPrefix(rest, "<... "); ok {
		name, args, _ := strings.Cut(half, " resumed>")
		c := p.open[pid]
		delete(p.open, pid)
		if c.name != name {
			return nil // It began before the log.
		}
		c.args += args
		return p.ended(c, result)
	}
	name, args, _ := strings.Cut(rest, "(")
	return p.ended(call{name: name, args: args, begun: len(p.l.ops)}, result)
}

// ended takes in a call that has returned.
func (p *parser) ended(c call, result string) error {
	if strings.HasPrefix(result, "-") {
		return nil
	}
	args := split(c.args)
	switch c.name {
	case "openat":
		p.opened(args, result)
	case "close":
		delete(p.offsets, number(args[0]))
	case "lseek":
		at, err := strconv.ParseInt(result, 10, 64)
		p.offsets[number(args[0])] = at
		return err
	case "write", "pwrite64", "ftruncate":
		return p.wrote(c.name, args)
	case "fsync", "fdatasync":
		p.synced(pathOf(args[0]), c.begun)
	default:
		p.renamed(c.name, args)
	}
	return nil
}

// opened takes in a descriptor, and a file that it may have made.
func (p *parser) opened(args []string, fd string) {
	path := join(args[0], args[1])
	p.offsets[fd] = 0
	if !p.below(path) {
		return
	}
	_, known := p.names[path]
	if strings.Contains(args[2], "O_CREAT") && !known {
		p.create(path)
	} else if strings.Contains(args[2], "O_TRUNC") && known {
		p.add(operation{kind: kindTruncate, file: p.names[path], path: path})
	}
}

func (p *parser) create(path string) {
	p.names[path] = p.files
	p.add(operation{kind: kindCreate, file: p.files, path: path})
	p.files++
}

func (p *parser) wrote(name string, args []string) error {
	fd, path := number(args[0]), pathOf(args[0])
	if name == "ftruncate" {
		size, err := strconv.ParseInt(args[1], 10, 64)
		if file, ok := p.names[path]; ok {
			p.add(operation{kind: kindTruncate, file: file, path: path, offset: size})
		}
		return err
	}
	data := []byte(unquote(args[1]))
	at := p.offsets[fd]
	if name == "pwrite64" {
		var err error
		if at, err = strconv.ParseInt(args[3], 10, 64); err != nil {
			return fmt.Errorf("offset of a write: %w", err)
		}
	} else {
		p.offsets[fd] += int64(len(data))
	}
	if fd == "1" && name == "write" {
		p.l.now++
		p.l.acks = append(p.l.acks, ack{at: p.l.now, text: string(data)})
		return nil
	}
	if file, ok := p.names[path]; ok {
		p.add(operation{kind: kindWrite, file: file, path: path, offset: at, data: data})
	}
	return nil
}

// synced marks what a sync covers: of a file its content, of a directory its
// names. What was written while it was under way is not covered.
func (p *parser) synced(path string, before int) {
	if !p.below(path) && path != p.l.dir {
		return
	}
	p.l.now++
	file, isFile := p.names[path]
	for i := range p.l.ops[:before] {
		op := &p.l.ops[i]
		covered := op.names(path)
		if isFile {
			covered = op.kind >= kindWrite && op.file == file
		}
		if covered {
			op.durable = min(op.durable, p.l.now)
		}
	}
}

// names reports whether the operation changes a name in dir.
func (op *operation) names(dir string) bool {
	return op.kind < kindWrite && (filepath.Dir(op.path) == dir || op.kind == kindRename && filepath.Dir(op.to) == dir)
}

func (p *parser) renamed(name string, args []string) {
	var from, to string
	switch name {
	case "rename":
		from, to = unquote(args[0]), unquote(args[1])
	case "renameat", "renameat2":
		from, to = join(args[0], args[1]), join(args[2], args[3])
	case "unlink":
		from = unquote(args[0])
	case "unlinkat", "mkdirat":
		from = join(args[0], args[1])
	default:
		return
	}
	if !p.below(from) {
		return
	}
	switch {
	case name == "mkdirat":
		p.add(operation{kind: kindMkdir, path: from})
	case to == "":
		delete(p.names, from)
		p.add(operation{kind: kindUnlink, path: from})
	default:
		if file, ok := p.names[from]; ok {
			delete(p.names, from)
			p.names[to] = file
		}
		p.add(operation{kind: kindRename, path: from, to: to})
	}
}

func (p *parser) add(op operation) {
	p.l.now++
	op.at, op.durable = p.l.now, forever
	p.l.ops = append(p.l.ops, op)
}

func (p *parser) below(path string) bool { return strings.HasPrefix(path, p.l.dir+"/") }

// Cut builds in an empty directory what may be left when the power ends at a
// moment: everything that was made durable before, of the rest of the names the
// first so many changes, and of the rest of the content any pages, one of them
// torn between its sectors.
func (l *Log) Cut(moment int, rng *rand.Rand, into string) error {
	var done []operation
	pending := 0
	for _, op := range l.ops {
		if op.at < moment && op.kind < kindWrite && op.durable >= moment {
			pending++
		}
	}
	kept := rng.IntN(pending + 1)
	for _, op := range l.ops {
		switch {
		case op.at >= moment:
		case op.durable < moment:
			done = append(done, op)
		case op.kind < kindWrite:
			if kept--; kept >= 0 {
				done = append(done, op)
			}
		default:
			done = append(done, tear(op, rng)...)
		}
	}
	return l.build(done, into)
}

// tear returns the part of an operation that reaches the disk.
func tear(op operation, rng *rand.Rand) (parts []operation) {
	if op.kind == kindTruncate {
		if rng.IntN(2) == 0 {
			return []operation{op}
		}
		return nil
	}
	torn := rng.IntN(4) == 0
	for from := int64(0); from < int64(len(op.data)); {
		to := min(int64(len(op.data)), (op.offset+from)/page*page+page-op.offset)
		if rng.IntN(2) == 0 {
			part := op
			part.offset += from
			part.data = op.data[from:to]
			if torn && len(part.data) > sector {
				part.data = part.data[:sector*(1+rng.IntN(len(part.data)/sector))]
				torn = false
			}
			parts = append(parts, part)
		}
		from = to
	}
	return parts
}

// build plays operations in their order. The content of a file that has no name
// in the end is lost with it.
func (l *Log) build(ops []operation, into string) error {
	content, names, dirs := l.play(ops, into)
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for path, file := range names {
		to := l.move(path, into)
		if _, err := os.Stat(filepath.Dir(to)); err != nil {
			continue // Its directory did not reach the disk.
		}
		if err := write(to, content[file]); err != nil {
			return err
		}
	}
	return nil
}

// play returns the content of the files, which of them each name stands for,
// and the directories below into.
func (l *Log) play(ops []operation, into string) (content map[int][]byte, names map[string]int, dirs []string) {
	content, names, dirs = map[int][]byte{}, map[string]int{}, []string{into}
	for _, op := range ops {
		switch op.kind {
		case kindCreate:
			names[op.path] = op.file
		case kindMkdir:
			dirs = append(dirs, l.move(op.path, into))
		case kindUnlink:
			delete(names, op.path)
		case kindRename:
			if file, ok := names[op.path]; ok {
				delete(names, op.path)
				names[op.to] = file
			}
		case kindTruncate:
			content[op.file] = resize(content[op.file], op.offset)
		case kindWrite:
			b := content[op.file]
			b = resize(b, max(int64(len(b)), op.offset+int64(len(op.data))))
			copy(b[op.offset:], op.data)
			content[op.file] = b
		}
	}
	slices.Sort(dirs)
	return content, names, dirs
}

// move returns where a path of the log stands below another directory.
func (l *Log) move(path, into string) string {
	return filepath.Join(into, strings.TrimPrefix(path, l.dir))
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Close() // The write has failed already.
		return err
	}
	return f.Close()
}

func resize(b []byte, size int64) []byte {
	if int64(len(b)) >= size {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// split separates arguments at the commas outside of strings. Hexadecimal
// strings hold no quotes.
func split(args string) []string {
	var list []string
	quoted, from := false, 0
	for i := range len(args) {
		switch {
		case args[i] == '"':
			quoted = !quoted
		case args[i] == ',' && !quoted:
			list = append(list, strings.TrimSpace(args[from:i]))
			from = i + 1
		}
	}
	return append(list, strings.TrimSpace(args[from:]), "", "", "")
}

// number is the number of a descriptor like 7</path>.
func number(fd string) string {
	n, _, _ := strings.Cut(fd, "<")
	return n
}

// pathOf is the path of a descriptor like 7</path>.
func pathOf(fd string) string {
	_, path, _ := strings.Cut(fd, "<")
	return unquote(strings.TrimSuffix(path, ">"))
}

// join is a path relative to a directory's descriptor.
func join(dir, name string) string {
	name = unquote(name)
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(pathOf(dir), name)
}

// unquote decodes a string of strace.
func unquote(s string) string {
	s = strings.Trim(s, `"`)
	if !strings.Contains(s, `\x`) {
		return s
	}
	b := make([]byte, 0, len(s)/4)
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
