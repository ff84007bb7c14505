package config

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxSources bounds the checks of sources against each other.
const maxSources = 1000

// decoder walks one YAML document along the options. It never follows the
// document deeper than the options go, so nesting and aliases cost nothing.
type decoder struct {
	*loader
	anchors map[string]ast.Node
}

// decode stores what data sets. A document that cannot be read at all is one
// fault, and nothing else is worth checking.
func (l *loader) decode(data []byte) (ok bool) {
	body, ok := l.parse(data)
	if !ok || body == nil {
		return ok
	}
	d := &decoder{loader: l, anchors: map[string]ast.Node{}}
	d.block("", body, l.cfg.options())
	return l.usable("")
}

// parse returns the body of the only document in data; nil for an empty one.
func (l *loader) parse(data []byte) (body ast.Node, ok bool) {
	if len(data) > MaxFileSize {
		l.faultAt(origin{file: l.file, line: 1, column: 1}, "", "", "is larger than "+formatSize(MaxFileSize), "")
		return nil, false
	}
	if !utf8.Valid(data) {
		line := 1 + bytes.Count(data[:invalidUTF8(data)], []byte("\n"))
		l.faultAt(origin{file: l.file, line: line, column: 1}, "", "", "is not UTF-8", "")
		return nil, false
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if line := tooDeep(data); line != 0 {
		l.faultAt(origin{file: l.file, line: line, column: 1}, "", "", "is nested too deeply", "")
		return nil, false
	}
	f, err := parseYAML(data)
	if err != nil {
		o := origin{file: l.file, line: 1, column: 1}
		problem := err.Error()
		if ye, found := errors.AsType[yaml.Error](err); found {
			problem = ye.GetMessage()
			o = l.place(ye.GetToken())
		}
		l.faultAt(o, "", "", "is not YAML: "+problem, "")
		return nil, false
	}
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case body != nil:
			l.faultAt(l.place(doc.Body.GetToken()), "", "", "is a second document", "one document")
			return nil, false
		default:
			body = doc.Body
		}
	}
	return body, true
}

// parseYAML keeps a panic of the parser on malformed input from ending the
// daemon on a reload.
func parseYAML(data []byte) (f *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("the parser cannot read it (%v)", r)
		}
	}()
	return parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
}

// tooDeep returns the first line at which the document may be nested beyond
// every use, or 0. The parser keeps the path of each node, so its memory grows
// with the square of the depth. Quotes and comments are not told apart: no
// sensible file has as many brackets open in them either.
func tooDeep(data []byte) int {
	const limit = 500
	open, number := 0, 0
	for line := range bytes.Lines(data) {
		number++
		items := 0
		for i, c := range line {
			switch c {
			case '[', '{':
				open++
			case ']', '}':
				open = max(open-1, 0)
			case '-', '?':
				if i+1 == len(line) || line[i+1] == ' ' || line[i+1] == '\t' {
					items++
				}
			}
			if open > limit || items > limit {
				return number
			}
		}
	}
	return 0
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8.
func invalidUTF8(data []byte) int {
	at := 0
	for at < len(data) {
		r, n := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		at += n
	}
	return at
}

func (l *loader) place(t *token.Token) origin {
	o := origin{file: l.file, line: 1, column: 1}
	if t != nil && t.Position != nil {
		o.line, o.column = max(t.Position.Line, 1), max(t.Position.Column, 1)
	}
	return o
}

// where returns the place of a node. A mapping begins at its first key.
func (d *decoder) where(n ast.Node) origin {
	if m, isMap := n.(*ast.MappingNode); isMap && !m.IsFlowStyle && len(m.Values) > 0 {
		return d.place(m.Values[0].Key.GetToken())
	}
	return d.place(n.GetToken())
}

// pairs returns the entries of a mapping, none for nothing, or false for
// another node.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	case *ast.NullNode:
		return nil, true
	}
	return nil, false
}

// block stores what a mapping sets of options. The document's own key is "".
func (d *decoder) block(key string, n ast.Node, options []option) {
	n = d.resolve(n)
	d.origins[key] = d.where(n)
	entries, isMap := pairs(n)
	if !isMap {
		d.fault(key, "", wrongKind(scalarOf(n).kind), "a mapping of "+names(options))
		return
	}
	seen := map[string]int{}
	for _, e := range entries {
		name, known := d.key(key, e, seen)
		if !known {
			continue
		}
		o, found := find(options, name)
		if !found {
			d.unknown(key, e, options)
			continue
		}
		d.option(join(key, name), e, o)
	}
}

// key returns the key of an entry, once: a repeated one is a fault.
func (d *decoder) key(block string, e *ast.MappingValueNode, seen map[string]int) (name string, ok bool) {
	t := e.Key.GetToken()
	at := d.place(t)
	switch k := e.Key.(type) {
	case *ast.StringNode:
		name = k.Value
	case *ast.MergeKeyNode:
		d.faultAt(at, block, "", "has a merge key (<<), which is not read", "keys written out")
		return "", false
	default:
		d.faultAt(at, block, "", "has a key that is not a string", "plain keys")
		return "", false
	}
	if line := seen[name]; line != 0 {
		d.faultAt(at, join(block, keyText(name)), "", "is repeated; it stands in line "+strconv.Itoa(line)+" already", "")
		return "", false
	}
	seen[name] = at.line
	return name, true
}

// unknown records a key that no option has, and what it was meant to be.
func (d *decoder) unknown(block string, e *ast.MappingValueNode, options []option) {
	name := e.Key.GetToken().Value
	key := join(block, keyText(name))
	switch {
	case looksLikeCredential(name):
		d.faultAt(d.place(e.Key.GetToken()), key, "", "is not a key of this file; "+credentialsHint, "")
	case key == "s3.profile":
		d.faultAt(d.place(e.Key.GetToken()), key, "", "is not known; a source may have a profile, and AWS_PROFILE is one for all", "")
	default:
		d.faultAt(d.place(e.Key.GetToken()), key, "", "is not known"+d.meant(name, options), names(options))
	}
}

// meant looks for name among the options of its block, then among all others.
func (d *decoder) meant(name string, options []option) string {
	if hint := didYouMean(name, keys(options)); hint != "" {
		return hint
	}
	for _, path := range allKeys(d.cfg.options(), "") {
		if lastKey(path) == name {
			return "; did you mean " + path + "?"
		}
	}
	return ""
}

// option stores one entry in its field.
func (d *decoder) option(key string, e *ast.MappingValueNode, o option) {
	n := d.resolve(e.Value)
	switch {
	case o.block != nil:
		d.block(key, n, o.block)
	case o.sources:
		d.sources(key, n)
	case o.list != nil:
		d.list(key, n, o.list)
	case o.dict != nil:
		d.dict(key, n, o.dict)
	default:
		at := d.where(n)
		if _, empty := n.(*ast.NullNode); empty {
			at = d.place(e.Key.GetToken()) // The parser puts a value that is not there anywhere.
		}
		d.set(at, key, o.value, scalarOf(n))
	}
}

func (d *decoder) sources(key string, n ast.Node) {
	d.origins[key] = d.where(n)
	items, isList := elements(n)
	if !isList {
		d.fault(key, "", wrongKind(scalarOf(n).kind), "a list of sources")
		return
	}
	if len(items) > maxSources {
		d.fault(key, "", "are "+strconv.Itoa(len(items)), "up to "+strconv.Itoa(maxSources)+" sources")
		return
	}
	d.cfg.Sources = make([]Source, len(items))
	for i, item := range items {
		d.cfg.Sources[i] = defaultSource()
		d.block(sourceKey(i), item, d.cfg.Sources[i].options())
	}
}

// list stores a list of strings. Null is an empty list, as for a block whose
// keys are all commented out.
func (d *decoder) list(key string, n ast.Node, o *list) {
	d.origins[key] = d.where(n)
	items, isList := elements(n)
	if !isList {
		s := scalarOf(n)
		d.fault(key, shown(s), wrongKind(s.kind), "a list, each "+o.item.form)
		return
	}
	values := make([]string, len(items))
	for i, item := range items {
		item = d.resolve(item)
		v := o.item
		v.p = &values[i]
		d.set(d.where(item), key+"["+strconv.Itoa(i)+"]", v, scalarOf(item))
	}
	*o.p = values
}

func (d *decoder) dict(key string, n ast.Node, o *dict) {
	d.origins[key] = d.where(n)
	const form = "a mapping of strings to strings"
	entries, isMap := pairs(n)
	if !isMap {
		s := scalarOf(n)
		d.fault(key, shown(s), wrongKind(s.kind), form)
		return
	}
	values := make(map[string]string, len(entries))
	seen := map[string]int{}
	for _, e := range entries {
		name, ok := d.key(key, e, seen)
		if !ok {
			continue
		}
		if problem := checkContextKey(name); problem != "" {
			d.faultAt(d.place(e.Key.GetToken()), key, quote(name), problem, form)
			continue
		}
		var v string
		item := d.resolve(e.Value)
		d.set(d.where(item), join(key, name), text{p: &v, optional: true, form: "a string"}, scalarOf(item))
		values[name] = v
	}
	*o.p = values
}

// elements returns the items of a list, none for nothing, or false for another
// node.
func elements(n ast.Node) ([]ast.Node, bool) {
	switch n := n.(type) {
	case *ast.SequenceNode:
		return n.Values, true
	case *ast.NullNode:
		return nil, true
	}
	return nil, false
}

// resolve returns the node behind an anchor or an alias. An alias that is not
// known, or that stands for another, stays what it is: no option takes it.
func (d *decoder) resolve(n ast.Node) ast.Node {
	switch v := n.(type) {
	case *ast.AnchorNode:
		d.anchors[v.Name.GetToken().Value] = v.Value
		return v.Value
	case *ast.AliasNode:
		if target, found := d.anchors[v.Value.GetToken().Value]; found {
			return target
		}
	}
	return n
}

// scalarOf returns the text and kind of a node.
func scalarOf(n ast.Node) scalar {
	switch v := n.(type) {
	case *ast.StringNode:
		return scalar{v.Value, kindString}
	case *ast.LiteralNode:
		return scalar{v.Value.Value, kindString}
	case *ast.IntegerNode:
		return scalar{v.Token.Value, kindInteger}
	case *ast.FloatNode:
		return scalar{v.Token.Value, kindFloat}
	case *ast.BoolNode:
		return scalar{v.Token.Value, kindBool}
	case *ast.SequenceNode:
		return scalar{"", kindList}
	case *ast.MappingNode, *ast.MappingValueNode:
		return scalar{"", kindMap}
	case *ast.NullNode:
		return scalar{"", kindNull}
	case *ast.TagNode:
		return scalar{"", kindTagged}
	case *ast.AliasNode:
		return scalar{"", kindAlias}
	}
	return scalar{"", kindOther}
}
