// Package strictjson refuses JSON that programs read in different ways: keys that
// repeat or differ in case, numbers that lose digits, text that is not Unicode.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// deepest is how deep the documents of this format may nest, with what later
// releases may add.
const deepest = 32

// Format is the keys of some documents, and the largest number in them.
type Format struct {
	keys      map[string]struct{}
	maxNumber int64
}

// Of returns the format of documents that are decoded into values of these
// types. Whole numbers beyond maxNumber are refused.
func Of(maxNumber int64, documents ...any) *Format {
	f := &Format{keys: map[string]struct{}{}, maxNumber: maxNumber}
	seen := map[reflect.Type]bool{}
	for _, d := range documents {
		f.add(reflect.TypeOf(d), seen)
	}
	return f
}

// add adds the keys of a type and of what it consists of.
func (f *Format) add(t reflect.Type, seen map[reflect.Type]bool) {
	switch t.Kind() { //nolint:exhaustive // The others have no keys.
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		f.add(t.Elem(), seen)
	case reflect.Struct:
		if seen[t] {
			return
		}
		seen[t] = true
		for field := range t.Fields() {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "-" {
				f.keys[name] = struct{}{}
			}
			f.add(field.Type, seen)
		}
	}
}

// Check returns an error for JSON that other programs read as something else
// than this one does: keys that repeat or differ only in case, a key of this
// format in another case, numbers that are too large, text that is not Unicode,
// and deep nesting. It does not check whether data is JSON at all.
func (f *Format) Check(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	s := jsonScan{format: f, data: data}
	for s.at < len(data) {
		if err := s.step(); err != nil {
			return err
		}
	}
	return nil
}

// jsonScan walks through valid JSON token by token.
type jsonScan struct {
	format *Format
	data   []byte
	at     int
	open   []int    // for each open object where its keys begin, -1 for an array
	keys   [][]byte // of the open objects, folded
	atKey  bool     // the next string is a key
}

// step passes one token.
func (s *jsonScan) step() error {
	switch c := s.data[s.at]; {
	case c == '"':
		return s.text()
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	default:
		s.at++
		return s.structure(c)
	}
}

// structure consumes what is between values.
func (s *jsonScan) structure(c byte) error {
	switch c {
	case '{', '[':
		if len(s.open) == deepest {
			return fmt.Errorf("it nests deeper than %d", deepest)
		}
		from := -1
		if c == '{' {
			from = len(s.keys)
		}
		s.open, s.atKey = append(s.open, from), c == '{'
	case '}', ']':
		return s.close()
	case ':':
		s.atKey = false
	case ',':
		s.atKey = len(s.open) > 0 && s.open[len(s.open)-1] >= 0
	}
	return nil
}

// close ends an object or array, and compares the keys of an object.
func (s *jsonScan) close() error {
	if len(s.open) == 0 {
		return nil
	}
	from := s.open[len(s.open)-1]
	s.open, s.atKey = s.open[:len(s.open)-1], false
	if from < 0 {
		return nil
	}
	keys := s.keys[from:]
	slices.SortFunc(keys, bytes.Compare)
	for i := 1; i < len(keys); i++ {
		if bytes.Equal(keys[i-1], keys[i]) {
			return fmt.Errorf("the key %.100q is there twice, or in two cases", keys[i])
		}
	}
	s.keys = s.keys[:from]
	return nil
}

// text passes a string.
func (s *jsonScan) text() error {
	from := s.at
	escaped := false
	for s.at++; s.at < len(s.data) && s.data[s.at] != '"'; s.at++ {
		if s.data[s.at] != '\\' {
			continue
		}
		escaped = true
		if s.at++; s.at < len(s.data) && s.data[s.at] == 'u' {
			if err := s.escape(); err != nil {
				return err
			}
		}
	}
	s.at++
	if !s.atKey {
		return nil
	}
	return s.key(s.data[from:min(s.at, len(s.data))], escaped)
}

// escape passes \uXXXX, up to its last digit, with the half that belongs to it.
func (s *jsonScan) escape() error {
	first, ok := s.unit(s.at)
	s.at += 4
	switch {
	case !ok || first < 0xd800 || first > 0xdfff:
		return nil
	case first > 0xdbff || s.at+2 >= len(s.data) || s.data[s.at+1] != '\\' || s.data[s.at+2] != 'u':
		return errors.New("it has half a character")
	}
	if second, ok := s.unit(s.at + 2); !ok || second < 0xdc00 || second > 0xdfff {
		return errors.New("it has half a character")
	}
	s.at += 6
	return nil
}

// unit reads the four digits behind the u at a place.
func (s *jsonScan) unit(at int) (uint64, bool) {
	if at+5 > len(s.data) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s.data[at+1:at+5]), 16, 16)
	return n, err == nil
}

// key consumes a key, with its quotes.
func (s *jsonScan) key(quoted []byte, escaped bool) error {
	key := quoted[1:max(1, len(quoted)-1)]
	if escaped {
		var text string
		if err := json.Unmarshal(quoted, &text); err != nil {
			return err
		}
		key = []byte(text)
	}
	if folded := foldKey(key); !bytes.Equal(folded, key) {
		if _, ours := s.format.keys[string(folded)]; ours {
			return fmt.Errorf("it has the key %.100q, which is written %s", key, folded)
		}
		key = folded
	}
	s.keys = append(s.keys, key)
	return nil
}

// number passes a number.
func (s *jsonScan) number() error {
	from, whole := s.at, true
	for s.at < len(s.data) && strings.IndexByte("+-.0123456789eE", s.data[s.at]) >= 0 {
		whole = whole && strings.IndexByte("+.eE", s.data[s.at]) < 0
		s.at++
	}
	text := string(s.data[from:s.at])
	if whole && len(text) < 16 {
		return nil
	}
	if whole {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n <= s.format.maxNumber && n >= -s.format.maxNumber {
			return nil
		}
	} else if f, err := strconv.ParseFloat(text, 64); err == nil && math.Abs(f) <= float64(s.format.maxNumber) {
		return nil
	}
	return fmt.Errorf("the number %.100s is beyond %d", text, s.format.maxNumber)
}

// foldKey returns a key as those that ignore case compare it.
func foldKey(key []byte) []byte {
	for _, c := range key {
		if c >= utf8.RuneSelf || c >= 'A' && c <= 'Z' {
			return bytes.Map(foldRune, key)
		}
	}
	return key
}

// foldRune returns the lower-case ASCII letter that r stands for, else the first
// of the characters that differ from it only in case.
func foldRune(r rune) rune {
	first := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		if f >= 'a' && f <= 'z' {
			return f
		}
		first = min(first, f)
	}
	if first >= 'A' && first <= 'Z' {
		return first + 'a' - 'A'
	}
	return first
}
