package manifest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/anchor"
	bundlepkg "github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// ambiguities are ways to change a JSON object that begins with a known key so
// that programs read different things, or fail, each by its own rule.
func ambiguities(known string) map[string]func(string) string {
	after := func(insert string) func(string) string {
		return func(doc string) string { return strings.Replace(doc, "{", "{"+insert+",", 1) }
	}
	return map[string]func(string) string{
		"a known key twice":         after(`"` + known + `":"x"`),
		"an unknown key twice":      after(`"x":1,"x":2`),
		"a key twice, once escaped": after(`"x":1,"\u0078":2`),
		"keys that differ in case":  after(`"x":1,"X":2`),
		"a known key in upper case": after(`"` + strings.ToUpper(known) + `":"x"`),
		"a known key in another case alone": func(doc string) string {
			return strings.Replace(doc, `"`+known, `"`+strings.ToUpper(known[:1])+known[1:], 1)
		},
		"a key with the Kelvin sign": after(`"\u212a":1,"k":2`),
		"a key with a long s":        after(`"x\u017f":1,"xs":2`),
		"a key twice inside":         after(`"x":[{"y":{"z":1,"z":2}}]`),
		"a number beyond 2^53":       after(`"x":9007199254740993`),
		"a number far below":         after(`"x":-9007199254740993`),
		"a number beyond 64 bits":    after(`"x":123456789012345678901234567890`),
		"a fraction beyond":          after(`"x":9007199254740994.5`),
		"an exponent":                after(`"x":1e400`),
		"bytes that are no text":     after("\"x\":\"\xff\""),
		"a surrogate in bytes":       after("\"x\":\"\xed\xa0\x80\""),
		"half a character":           after(`"x":"\ud800"`),
		"the other half":             after(`"x":"\udc00 "`),
		"two first halves":           after(`"x":"\ud800\ud800"`),
		"deep nesting":               after(`"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)),
		"very deep nesting":          after(`"x":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000)),
		"a second value":             func(doc string) string { return strings.TrimRight(doc, "\n") + "{}" },
		"a byte order mark":          func(doc string) string { return "\ufeff" + doc },
		"an end too many":            func(doc string) string { return strings.TrimRight(doc, "\n") + "}" },
	}
}

// harmless changes are read alike by everyone.
var harmless = map[string]string{
	"an unknown key":             `"later":1`,
	"an unknown key in capitals": `"laterAdded":1`,
	"nested unknown keys":        `"later":{"a":[{"b":1},{"b":2}],"c":{"b":1}}`,
	"the same key elsewhere":     `"later":[{"x":1},{"x":1}]`,
	"the highest number":         `"later":9007199254740992`,
	"the lowest number":          `"later":-9007199254740992`,
	"a fraction":                 `"later":0.5e3`,
	"a whole pair of halves":     `"later":"\ud83d\ude00"`,
	"an escaped backslash":       `"later":"\\ud800"`,
}

// Each kind of document with each ambiguity is none of this format.
func TestADocumentIsReadTheSameByEveryone(t *testing.T) {
	size := int64(1)
	r := rec(archive.StatusUploaded, "a", atTen, func(r *archive.Record) { r.SizeBytes, r.Chain, r.ID = &size, "0a1b2c3d", "0a1b2c3d-1" })
	record := string(r.AppendLine(nil))
	l := newLibrary()
	_, key := l.add(t, "app-01", "0a1b2c3d", 1, true, nil, r)
	digest := string(l.objects[key])
	_, b, _ := signed(t)
	bundle, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	readers := map[string]struct {
		doc, known string
		read       func(doc string) error
	}{
		"a record of an array": {record, "s3_key", func(doc string) error {
			return trail.ReadManifest(strings.NewReader("[\n"+doc+"\n]\n"), func(archive.Record) error { return nil })
		}},
		"a record of lines": {record, "s3_key", func(doc string) error {
			return trail.ReadManifest(strings.NewReader(doc+"\n"), func(archive.Record) error { return nil })
		}},
		"a record in gzip": {record, "s3_key", func(doc string) error {
			return trail.ReadManifest(bytes.NewReader(packed(t, doc+"\n")), func(archive.Record) error { return nil })
		}},
		"a record that verify reads": {record, "s3_key", func(doc string) error {
			l.objects["p/m"] = []byte("[\n" + doc + "\n]\n")
			m, err := verify.ScanManifest(t.Context(), trail.NewTrail(l, "p/"), &trail.Digest{}, archive.ManifestRef{S3Key: "p/m"})
			return errors.Join(err, m.Format)
		}},
		"a digest":    {digest, "instance", func(doc string) error { _, err := trail.ParseDigest(strings.NewReader(doc)); return err }},
		"a signature": {`{"algorithm":"ed25519","public_key_fingerprint":"","signature":""}` + "\n", "algorithm", func(doc string) error { _, err := trail.ParseSignature([]byte(doc)); return err }},
		"a bundle":    {string(bundle), "created_at", func(doc string) error { _, err := bundlepkg.Read(strings.NewReader(doc)); return err }},
		"an anchor file": {`{"version":1,"trails":[{"bucket":"b","prefix":"p/","seen_at":"","heads":[]}]}`, "version", func(doc string) error {
			path := filepath.Join(dir, "anchor.json")
			if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
				return err
			}
			_, err := anchor.Read(path)
			return err
		}},
		"a configuration": {`{"instance":"app-01"}`, "instance", func(doc string) error {
			if err := trail.UnambiguousConfig([]byte(doc)); err != nil {
				return fmt.Errorf("%w: %w", trail.ErrFormat, err)
			}
			return nil
		}},
	}
	for kind, reader := range readers {
		if err := reader.read(reader.doc); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for name, insert := range harmless {
			if kind == "a signature" {
				continue // There is one way to write it.
			}
			if err := reader.read(strings.Replace(reader.doc, "{", "{"+insert+",", 1)); err != nil {
				t.Errorf("%s with %s: %v", kind, name, err)
			}
		}
		for name, change := range ambiguities(reader.known) {
			if err := reader.read(change(reader.doc)); !errors.Is(err, trail.ErrFormat) {
				t.Errorf("%s with %s is read: %v", kind, name, err)
			}
		}
	}
}

func packed(t *testing.T, parts ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		w := gzip.NewWriter(&b)
		if _, err := w.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// What stands around the records is read the same by everyone, too.
func TestAManifestIsOneArrayOrOneMemberOfLines(t *testing.T) {
	line := `{"local_path":"/a","s3_key":"a","s3_uri":"s3://b/a","status":"failed","timestamp":"2026-01-01T00:00:00Z","id":"x-1"}`
	long := `{"local_path":"` + strings.Repeat("x", trail.MaxRecordBytes) + `"}`
	for name, c := range map[string]struct {
		data []byte
		good bool
	}{
		"two lines":                 {[]byte(line + "\n" + line + "\n"), true},
		"no newline at the end":     {[]byte(line), true},
		"an indented array":         {[]byte("[\n  {\n    \"s3_key\": \"a\"\n  }\n]\n"), true},
		"one member":                {packed(t, line+"\n"), true},
		"two records on a line":     {[]byte(line + line + "\n"), false},
		"a comma between lines":     {[]byte(line + ",\n" + line + "\n"), false},
		"two members":               {packed(t, line+"\n", line+"\n"), false},
		"bytes behind the member":   {append(packed(t, line+"\n"), 0), false},
		"a huge line":               {[]byte(long + "\n"), false},
		"a huge record of an array": {[]byte("[" + long + "]"), false},
		"a huge line in gzip":       {packed(t, strings.Repeat(" ", 100<<20)), false},
		"a second array":            {[]byte("[" + line + "][" + line + "]"), false},
		"a line behind the array":   {[]byte("[\n" + line + "\n]\n" + line + "\n"), false},
		"a number for a record":     {[]byte("1\n"), false},
	} {
		err := trail.ReadManifest(bytes.NewReader(c.data), func(archive.Record) error { return nil })
		if good := err == nil; good != c.good || !good && !errors.Is(err, trail.ErrFormat) {
			t.Errorf("%s: %v, want it read: %v", name, err, c.good)
		}
		l := newLibrary()
		l.objects["p/m"] = c.data
		m, err := verify.ScanManifest(t.Context(), trail.NewTrail(l, "p/"), &trail.Digest{}, archive.ManifestRef{S3Key: "p/m"})
		if good := m.Format == nil; err != nil || good != c.good {
			t.Errorf("%s: verify says %v and %v, want it read: %v", name, m.Format, err, c.good)
		}
	}
}

// An ambiguous document is a finding, and its records are not used.
func TestVerifyFindsAmbiguousDocuments(t *testing.T) {
	s := publishTrail(t, 2, nil)
	key := s.documents("manifest_")[0]
	n, _ := trail.ParseName(key)
	v := s.verify(t, s.library(func(o map[string][]byte) {
		o[key] = bytes.Replace(o[key], []byte(`"s3_key":`), []byte(`"s3_key":"p/other","s3_key":`), 1)
		forge(&s, o, int(n.Sequence)-1, func(d *trail.Digest) {
			d.Manifests[0].SHA256, d.Manifests[0].SizeBytes = hexSHA(o[key]), int64(len(o[key]))
		})
	}), func(o *verify.Options) { o.Keys, o.Anchors = nil, nil })
	if !namesFinding(v, []string{key}, []verify.FindingKind{verify.FindingFormat}) {
		t.Errorf("found %+v", v.Findings)
	}
	config := []byte(`{"instance":"app-01","Instance":"app-02"}`)
	v = s.verify(t, s.library(func(o map[string][]byte) { o["p/_manifests/"+trail.ConfigName(hexSHA(config))] = config }), nil)
	wantKinds(t, v, []string{"format"}, "stopped")
}

// A size beyond what others read exactly is left out.
func TestASizeThatOthersCannotReadIsLeftOut(t *testing.T) {
	for size, want := range map[int64]bool{0: true, archive.MaxNumber: true, archive.MaxNumber + 1: false, math.MaxInt64: false} {
		r := rec(archive.StatusFailed, "a", atTen, func(r *archive.Record) { r.SizeBytes = &size })
		if got := bytes.Contains(r.AppendLine(nil), []byte(`"size_bytes"`)); got != want {
			t.Errorf("%d: written %v, want %v", size, got, want)
		}
	}
}

// A key of each document in another case is refused.
func TestFormatKeysAreAllKeys(t *testing.T) {
	for _, want := range []string{"s3_key", "sha256", "version", "manifests", "uploaded", "event", "trigger", "path_b64", "algorithm", "signature", "kms_key_id"} {
		if err := trail.Unambiguous([]byte(`{"` + want + `": 1}`)); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if err := trail.Unambiguous([]byte(`{"` + strings.ToUpper(want) + `": 1}`)); err == nil {
			t.Errorf("%s in capitals is taken", want)
		}
	}
}
