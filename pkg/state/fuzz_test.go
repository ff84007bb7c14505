package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// What stands in the state file is decoded, or is damage: whether its seal is
// broken or true.
func FuzzDecodeSealed(f *testing.F) {
	key := []byte("source/key\x00\x00\x00\x00\x00\x00\x00\x01")
	for _, v := range []any{
		archive.Intent{Op: archive.OpPut, Path: "a", Key: "p/a", Attempt: 7},
		archive.Intent{Op: archive.OpMultipart, Path: "b", UploadID: "u", PartSize: 5 << 20, Unresolved: true},
		ledger{},
		news{},
		map[string]any{},
		[]int{1},
		nil, "x",
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(codec.Seal(key, b), false)
	}
	for n := range 3 {
		e := testEntry(n)
		f.Add(codec.EncodeEntry(&e), true)
	}
	line, err := codec.EncodeRecord(key, archive.StatusUploaded, []byte(`{"local_path":"/a"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line, false)
	f.Add([]byte{1, '{', '}'}, true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		before := bytes.Clone(b)
		if sealed {
			b = codec.Seal(key, bytes.Clone(b))
		}
		var l ledger
		var n news
		_, _, rerr := codec.DecodeRecord(key, b)
		_, ierr := decodeIntent(key, b)
		_, eerr := openEntry(key, b)
		for what, err := range map[string]error{
			"record": rerr, "intent": ierr, "entry": eerr, "head": codec.DecodeJSON(key, b, &l), "news": codec.DecodeJSON(key, b, &n),
		} {
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Errorf("%s of %q: %v, want ErrDamaged", what, before, err)
			}
		}
	})
}
