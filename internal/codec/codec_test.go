package codec

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"

	"github.com/s3syncd/s3syncd/internal/boltfile"
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
		"suspect":   {Stored: true, Suspect: true, ETag: "e"},
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
		got, err := DecodeEntry(EncodeEntry(&e))
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%s: DecodeEntry = %+v, %v, want %+v", name, got, err, e)
		}
	}
}

func TestEntryDecodingRefusesEveryPrefixAndSuffix(t *testing.T) {
	e := testEntry(3)
	e.FailClass, e.FailFence = archive.ClassFile, e.Fence
	whole := EncodeEntry(&e)
	for n := range whole {
		if _, err := DecodeEntry(whole[:n]); !errors.Is(err, boltfile.ErrDamaged) {
			t.Errorf("DecodeEntry(first %d bytes) = %v, want ErrDamaged", n, err)
		}
	}
	if _, err := DecodeEntry(append(whole, 0)); !errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("DecodeEntry(one byte more) = %v, want ErrDamaged", err)
	}
}

func TestSealFindsEveryFlippedBit(t *testing.T) {
	key, value := []byte("dir/file"), []byte("value")
	sealed := Seal(key, value)
	for i := range len(sealed) * 8 {
		bad := append([]byte(nil), sealed...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Unseal(key, bad); !errors.Is(err, boltfile.ErrDamaged) {
			t.Errorf("Unseal with bit %d flipped = %v, want ErrDamaged", i, err)
		}
	}
	if _, err := Unseal([]byte("dir/fila"), sealed); !errors.Is(err, boltfile.ErrDamaged) {
		t.Errorf("Unseal under another key = %v, want ErrDamaged", err)
	}
	if got, err := Unseal(key, sealed); string(got) != "value" || err != nil {
		t.Errorf("Unseal = %q, %v, want value", got, err)
	}
}

func TestRecordStatusSurvivesEncoding(t *testing.T) {
	key := []byte("record 2")
	for _, want := range archive.Statuses() {
		sealed, err := EncodeRecord(key, want, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		got, line, err := DecodeRecord(key, sealed)
		if got != want || string(line) != "{}" || err != nil {
			t.Errorf("DecodeRecord = %s, %s, %v, want %s, {}", got, line, err, want)
		}
	}
	if _, err := EncodeRecord(key, "lost", nil); err == nil {
		t.Error("EncodeRecord of an unknown status = nil, want an error")
	}
	for _, code := range []byte{0, 6, 255} {
		if _, _, err := DecodeRecord(key, Seal(key, []byte{code})); !errors.Is(err, boltfile.ErrDamaged) {
			t.Errorf("DecodeRecord of code %d = %v, want ErrDamaged", code, err)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for n := range 4 {
		e := testEntry(n)
		f.Add(EncodeEntry(&e))
	}
	f.Add([]byte{})
	f.Add([]byte{EntryVersion, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, boltfile.ErrDamaged) {
				t.Fatalf("DecodeEntry = %v, want ErrDamaged", err)
			}
			return
		}
		again, err := DecodeEntry(EncodeEntry(&e))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("decoded again: %+v, %v, want %+v", again, err, e)
		}
	})
}

// There is one encoding of an entry: a far one without its seconds is damage.
func TestAFarEntryWithoutItsSecondsIsDamage(t *testing.T) {
	e := archive.Entry{Fence: archive.Fence{Size: 1, MtimeNs: 2, MtimeSec: 10413792000}, Stored: true}
	b := EncodeEntry(&e)
	if _, err := DecodeEntry(bytes.Clone(b[:len(b)-1])); err == nil {
		t.Error("an entry that is cut short was read")
	}
	e.Fence.MtimeSec = 0
	b = append(EncodeEntry(&e), 0)
	b[0] = FarEntryVersion
	if _, err := DecodeEntry(b); err == nil {
		t.Error("an entry with no seconds was read")
	}
}

// testEntry returns a plausible entry that differs for each n.
func testEntry(n int) archive.Entry {
	return archive.Entry{
		Fence:      archive.Fence{Dev: 7, Ino: uint64(1000 + n), Size: int64(n), MtimeNs: 1_700_000_000_000_000_000 + int64(n), CtimeNs: 1_700_000_000_000_000_500},
		Attributes: archive.Attributes{Mode: 0o644, UID: 1000, GID: 100},
		Stored:     true, MD5: [16]byte{1, byte(n)}, SHA256: [32]byte{2, byte(n)},
		ETag: "d41d8cd98f00b204e9800998ecf8427e", VersionID: "v", SSE: "aws:kms", KMSKeyID: "key", Attempt: uint64(n + 1),
	}
}
