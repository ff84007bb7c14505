package archive

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// encoded is r as encoding/json has it.
func encoded(t *testing.T, r *Record) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// TestLineHasEveryField sets each field of a record, alone and with all others.
func TestLineHasEveryField(t *testing.T) {
	var all Record
	fields := reflect.TypeFor[Record]()
	for i := range fields.NumField() {
		var one Record
		for _, r := range []*Record{&one, &all} {
			f := reflect.ValueOf(r).Elem().Field(i)
			switch f.Kind() {
			case reflect.String:
				f.SetString("v" + fields.Field(i).Name)
			case reflect.Bool:
				f.SetBool(true)
			case reflect.Uint64:
				f.SetUint(1<<64 - 1)
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			default:
				t.Fatalf("%s is a %s, which this test does not know", fields.Field(i).Name, f.Kind())
			}
		}
		if got, want := string(one.AppendLine(nil)), encoded(t, &one); got != want {
			t.Errorf("%s: %s, want %s", fields.Field(i).Name, got, want)
		}
	}
	if got, want := string(all.AppendLine([]byte("x"))), "x"+encoded(t, &all); got != want {
		t.Errorf("all: %s, want %s", got, want)
	}
}

// FuzzLine compares lines of any content with those of encoding/json.
func FuzzLine(f *testing.F) {
	f.Add("a/b.txt", "", "R1", int64(3), uint64(7))
	f.Add("\"\\\x00\x1f\x7f\n<&>\u2028\xff", "é", "😀", int64(-1), uint64(0))
	f.Fuzz(func(t *testing.T, path, text, id string, size int64, attempt uint64) {
		r := Record{LocalPath: path, S3Key: text, Error: text, RequestID: id, SizeBytes: &size, Attempt: attempt, Status: Status(id)}
		if got, want := string(r.AppendLine(nil)), encoded(t, &r); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

func lineRecord() *Record {
	size, uid := int64(4096), uint32(1000)
	return &Record{
		LocalPath: "/srv/data/2026/11/26/file-000123.log", S3Key: "data/2026/11/26/file-000123.log", S3URI: "s3://my-bucket/data/2026/11/26/file-000123.log",
		SizeBytes: &size, Status: StatusSkipped, Timestamp: "2026-11-26T10:00:00.123456789Z", MD5: "d41d8cd98f00b204e9800998ecf8427e",
		SHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", ETag: "d41d8cd98f00b204e9800998ecf8427f",
		KMSKeyID: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", SSE: "aws:kms", Basis: BasisIndex,
		Trigger: TriggerSync, Source: "data", Instance: "host-1", UID: &uid, GID: &uid, Chain: "0badcafe", ID: "0badcafe-123",
	}
}

func BenchmarkAppendLine(b *testing.B) {
	r, line := lineRecord(), make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		line = r.AppendLine(line[:0])
	}
	b.SetBytes(int64(len(line)))
}
