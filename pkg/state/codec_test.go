package state

import (
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestEntrySurvivesEncoding(t *testing.T) {
	full := testEntry(3)
	full.Racy = true
	full.FailClass, full.FailFence = archive.ClassFile, archive.Fence{Dev: 1, Ino: 2, Size: 3, MtimeNs: 4, CtimeNs: 5}
	for name, e := range map[string]archive.Entry{
		"zero":      {},
		"full":      full,
		"multipart": {Stored: true, ETag: "d41d8cd98f00b204e9800998ecf8427e-12"},
		"doubted":   {Stored: true, Suspect: true, ETag: "e"},
		"upper hex": {Stored: true, ETag: "D41D8CD98F00B204E9800998ECF8427E"},
		"only failed": {
			FailClass: archive.ClassConflict, FailFence: archive.Fence{Size: 9},
		},
		"extreme": {
			Fence:      archive.Fence{Dev: math.MaxUint64, Ino: math.MaxUint64, Size: math.MaxInt64, MtimeNs: math.MinInt64, CtimeNs: math.MaxInt64},
			Attributes: archive.Attributes{Mode: math.MaxUint32, UID: math.MaxUint32, GID: math.MaxUint32},
			Attempt:    math.MaxUint64,
		},
	} {
		got, err := codec.DecodeEntry(codec.EncodeEntry(&e))
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%s: decodeEntry = %+v, %v, want %+v", name, got, err, e)
		}
	}
}

func TestEntryDecodingRefusesEveryPrefixAndSuffix(t *testing.T) {
	e := testEntry(3)
	e.FailClass, e.FailFence = archive.ClassFile, e.Fence
	whole := codec.EncodeEntry(&e)
	for n := range whole {
		if _, err := codec.DecodeEntry(whole[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("decodeEntry(first %d bytes) = %v, want ErrDamaged", n, err)
		}
	}
	if _, err := codec.DecodeEntry(append(whole, 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("decodeEntry(one byte more) = %v, want ErrDamaged", err)
	}
}

func TestSealFindsEveryFlippedBit(t *testing.T) {
	key, value := []byte("dir/file"), []byte("value")
	sealed := codec.Seal(key, value)
	for i := range len(sealed) * 8 {
		bad := append([]byte(nil), sealed...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := codec.Unseal(key, bad); !errors.Is(err, ErrDamaged) {
			t.Errorf("unseal with bit %d flipped = %v, want ErrDamaged", i, err)
		}
	}
	if _, err := codec.Unseal([]byte("dir/fila"), sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("unseal under another key = %v, want ErrDamaged", err)
	}
	if got, err := codec.Unseal(key, sealed); string(got) != "value" || err != nil {
		t.Errorf("unseal = %q, %v, want value", got, err)
	}
}

func TestRecordStatusSurvivesEncoding(t *testing.T) {
	key := recordKey(1, 2)
	for _, want := range archive.Statuses() {
		sealed := must(codec.EncodeRecord(key, want, []byte("{}")))(t)
		got, line, err := codec.DecodeRecord(key, sealed)
		if got != want || string(line) != "{}" || err != nil {
			t.Errorf("decodeRecord = %s, %s, %v, want %s, {}", got, line, err, want)
		}
	}
	if _, err := codec.EncodeRecord(key, "lost", nil); err == nil {
		t.Error("encodeRecord of an unknown status = nil, want an error")
	}
	for _, code := range []byte{0, 6, 255} {
		if _, _, err := codec.DecodeRecord(key, codec.Seal(key, []byte{code})); !errors.Is(err, ErrDamaged) {
			t.Errorf("decodeRecord of code %d = %v, want ErrDamaged", code, err)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for n := range 4 {
		e := testEntry(n)
		f.Add(codec.EncodeEntry(&e))
	}
	f.Add([]byte{})
	f.Add([]byte{codec.EntryVersion, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := codec.DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("decodeEntry = %v, want ErrDamaged", err)
			}
			return
		}
		again, err := codec.DecodeEntry(codec.EncodeEntry(&e))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("decoded again: %+v, %v, want %+v", again, err, e)
		}
	})
}
