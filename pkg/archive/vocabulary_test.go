package archive

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestKeyAndPathAreInverse(t *testing.T) {
	m := NewMapper("/backups/app/")
	for path, want := range map[string]string{
		"a":                 "backups/app/a",
		"dir/b c":           "backups/app/dir/b c",
		"grün/日本":           "backups/app/grün/日本",
		"back\\slash":       "backups/app/back\\slash",
		"100%":              "backups/app/100%",
		"50%ab":             "backups/app/50%ab",
		"50%AB":             "backups/app/50%25AB",
		"%25":               "backups/app/%2525",
		"bad\xff":           "backups/app/bad%FF",
		"bad\xff%":          "backups/app/bad%FF%25",
		"dir/_manifests":    "backups/app/dir/_manifests",
		"_manifests":        "backups/app/_manifests",
		"\xef\xbf\xbd":      "backups/app/\xef\xbf\xbd",
		"new\nline/tab\t":   "backups/app/new\nline/tab\t",
		"...":               "backups/app/...",
		"dir\xc3/x\x28%41y": "backups/app/dir%C3/x(%2541y",
	} {
		key, err := m.Key(path)
		if key != want || err != nil {
			t.Errorf("Key(%q) = %q, %v, want %q", path, key, err, want)
		}
		if back, ok := m.Path(key); back != path || !ok {
			t.Errorf("Path(%q) = %q, %v, want %q", key, back, ok, path)
		}
	}
}

func TestKeyRefusesWhatIsNotBelowTheSource(t *testing.T) {
	for _, path := range []string{"", "/a", "a//b", "a/", ".", "..", "a/../b", "a/./b", "a\x00b"} {
		if key, err := (Mapper{}).Key(path); err == nil {
			t.Errorf("Key(%q) = %q, want an error", path, key)
		}
	}
}

func TestKeyLimitCountsEscapes(t *testing.T) {
	long := strings.Repeat("x", MaxKeyBytes)
	if _, err := NewMapper("").Key(long); err != nil {
		t.Errorf("Key of %d bytes = %v, want nil", MaxKeyBytes, err)
	}
	for name, key := range map[string]func() (string, error){
		"prefix": func() (string, error) { return NewMapper("p").Key(long[2:] + "x") },
		"escape": func() (string, error) { return NewMapper("").Key(long[2:] + "\xff") },
	} {
		got, err := key()
		if !errors.Is(err, ErrKeyTooLong) || len(got) != MaxKeyBytes+1 {
			t.Errorf("%s: Key = %d bytes, %v, want %d and ErrKeyTooLong", name, len(got), err, MaxKeyBytes+1)
		}
	}
}

func TestPathRefusesKeysThatNoPathHas(t *testing.T) {
	m := NewMapper("p")
	for _, key := range []string{"", "p", "p/", "q/a", "pa", "p/_manifests/x", "p/%61", "p/%FF%25%41%", "p/a//b", "p/../a", "p/%C3%BC", "p/\xff"} {
		if path, ok := m.Path(key); ok {
			t.Errorf("Path(%q) = %q, want none", key, path)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, seed := range []string{"a/b", "%25", "\xff%FF", "50%AB/%", "%%41", "ü\xc3"} {
		f.Add(seed, "a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		m := NewMapper("p/q")
		keyA, errA := m.Key(a)
		if errA != nil {
			return
		}
		if !strings.HasPrefix(a, ReservedDir+"/") {
			if back, ok := m.Path(keyA); back != a || !ok {
				t.Fatalf("Path(Key(%q)) = %q, %v", a, back, ok)
			}
		}
		if keyB, errB := m.Key(b); errB == nil && (keyA == keyB) != (a == b) {
			t.Fatalf("Key(%q) = Key(%q) = %q", a, b, keyA)
		}
		if path, ok := m.Path(b); ok {
			if key, err := m.Key(path); key != b || err != nil {
				t.Fatalf("Key(Path(%q)) = %q, %v", b, key, err)
			}
		}
	})
}

func TestObjectIDIsReadAsWritten(t *testing.T) {
	id := ObjectID{Instance: "app-01.example_x", Chain: "0a1b2c3d", Attempt: math.MaxUint64}
	got, ok := ParseObjectID(id.String())
	if got != id || !ok {
		t.Errorf("ParseObjectID(%q) = %+v, %v, want %+v", id, got, ok, id)
	}
	for _, s := range []string{
		"", "a/b/c", "app/0a1b2c3d", "app/0a1b2c3d/", "app/0A1B2C3D/1", "app/0a1b2c3d/-1", "app/0a1b2c3d/1 ", "a/b/0a1b2c3d/1",
		"app/0a1b2c3d/18446744073709551616", "äpp/0a1b2c3d/1", "/0a1b2c3d/1",
	} {
		if got, ok := ParseObjectID(s); ok {
			t.Errorf("ParseObjectID(%q) = %+v, want none", s, got)
		}
	}
}

func TestRecordLinesAreAsPublished(t *testing.T) {
	full := Record{
		S3Key: "backups/app/<a>&b", S3URI: "s3://bucket/backups/app/<a>&b", Status: StatusUploaded,
		Timestamp: FormatTime(time.Date(2026, 3, 4, 5, 6, 7, 890, time.FixedZone("x", 3600))),
		Error:     "AccessDenied", ErrorClass: ClassCredentials, MD5: "0f", SHA256: "f0", ETag: "0f", VersionID: "v", KMSKeyID: "k",
		SSE: "aws:kms", Basis: BasisETag, Trigger: TriggerEvent, Source: "app", Instance: "app-01", Chain: "0011aabb", Attempt: 9,
		Recovered: true, ReplacedVID: "v0", ReplacedETag: "e0", S3Time: "2026-03-04T05:06:07Z", RequestID: "r", DetectedAt: "2026-03-04T05:06:00Z",
		ID: RecordID("0011aabb", 12),
	}
	full.SetPath("<a>&b")
	full.SetAttributes(Fence{Size: 0, MtimeNs: 1_700_000_000_123_456_789}, Attributes{Mode: 0o104755})
	raw := Record{Status: StatusFailed, Trigger: TriggerRescan, Source: "app", Instance: "app-01", Chain: "0011aabb", ID: RecordID("0011aabb", 13)}
	raw.SetPath("bad\xff")
	var got bytes.Buffer
	for _, r := range []*Record{&full, &raw} {
		got.Write(r.AppendLine(nil))
		got.WriteByte('\n')
	}
	golden := filepath.Join("testdata", "records_v1.jsonl")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("lines:\n%swant:\n%s", got.Bytes(), want)
	}
}

func TestFencesOfOneContent(t *testing.T) {
	f := Fence{Dev: 1, Ino: 2, Size: 3, MtimeNs: 4, CtimeNs: 5}
	for name, row := range map[string]struct {
		g    Fence
		want bool
	}{
		"the same":       {f, true},
		"another device": {Fence{Dev: 9, Ino: 2, Size: 3, MtimeNs: 4, CtimeNs: 5, MtimeSec: 0}, true},
		"another inode":  {Fence{Dev: 1, Ino: 9, Size: 3, MtimeNs: 4, CtimeNs: 5, MtimeSec: 0}, false},
		"another size":   {Fence{Dev: 1, Ino: 2, Size: 9, MtimeNs: 4, CtimeNs: 5, MtimeSec: 0}, false},
		"another mtime":  {Fence{Dev: 1, Ino: 2, Size: 3, MtimeNs: 9, CtimeNs: 5, MtimeSec: 0}, false},
		"another ctime":  {Fence{Dev: 1, Ino: 2, Size: 3, MtimeNs: 4, CtimeNs: 9, MtimeSec: 0}, false},
		"a far mtime":    {Fence{Dev: 1, Ino: 2, Size: 3, MtimeNs: 4, CtimeNs: 5, MtimeSec: 9}, false},
	} {
		if got := f.SameContent(row.g); got != row.want {
			t.Errorf("%s: SameContent = %v, want %v", name, got, row.want)
		}
	}
}

func TestClassOfIsTheOutermostClass(t *testing.T) {
	inner := Classified(ClassThrottled, "PutObject", errors.New("slow down"))
	for want, err := range map[Class]error{
		ClassTransient:     errors.New("whatever"),
		ClassThrottled:     fmt.Errorf("upload: %w", inner),
		ClassConfiguration: Classified(ClassConfiguration, "", inner),
	} {
		if got := ClassOf(err); got != want {
			t.Errorf("ClassOf(%v) = %s, want %s", err, got, want)
		}
	}
	if !errors.Is(Classified(ClassFile, "open", fs.ErrPermission), fs.ErrPermission) {
		t.Error("a classified error does not unwrap to its cause")
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("denied")
	for want, err := range map[string]*Error{
		"denied":                            {Err: cause},
		"open: denied":                      {Op: "open", Err: cause},
		"PutObject: AccessDenied: denied":   {Op: "PutObject", Code: "AccessDenied", Err: cause},
		"PutObject: SlowDown (503): denied": {Op: "PutObject", Code: "SlowDown", Status: 503, Err: cause},
	} {
		if got := err.Error(); got != want {
			t.Errorf("Error() = %q, want %q", got, want)
		}
	}
}

func TestInterruptedNeedsAnEndedContext(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for err, want := range map[error]bool{
		fmt.Errorf("get: %w", context.Canceled): true,
		context.DeadlineExceeded:                true,
		fs.ErrPermission:                        false,
		nil:                                     false,
	} {
		if got := Interrupted(ended, err); got != want {
			t.Errorf("Interrupted(ended, %v) = %v, want %v", err, got, want)
		}
	}
	if Interrupted(t.Context(), context.DeadlineExceeded) {
		t.Error("Interrupted(running, its own deadline) = true, want false")
	}
}

func TestClosedSetsAreComplete(t *testing.T) {
	if got, want := len(Classes()), 8; got != want {
		t.Errorf("%d classes, want %d", got, want)
	}
	if got, want := len(Statuses()), 5; got != want {
		t.Errorf("%d statuses, want %d", got, want)
	}
}
