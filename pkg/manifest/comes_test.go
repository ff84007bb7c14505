package manifest

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/restore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// documented is a row of the table in docs/FORMAT.md of what the records of a
// key come to.
type documented struct {
	records []string // a status, or "deleted with attempt"
	want    []string // file, restore, verify --source, verify --remote, bundle, view
}

func documentedRows(t *testing.T) (rows []documented) {
	t.Helper()
	text, err := os.ReadFile("../../docs/FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| records, oldest first |")
	if !ok {
		t.Fatal("docs/FORMAT.md has no table of what records come to")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for _, line := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(strings.Trim(strings.ReplaceAll(line, "`", ""), "| "), " | ")
		rows = append(rows, documented{strings.Split(cells[0], ", "), cells[1:]})
	}
	if len(rows) < 20 {
		t.Fatalf("only %d rows", len(rows))
	}
	return rows
}

// story is the records of one key, and the object that they come to.
type story struct {
	key     string
	records []archive.Record
	left    *archive.Object // nil: none
	was     archive.Object  // the last one that was there
}

// tell makes the records of a row. Each basis of a skip is another story.
func (d *documented) tell(key string, basis archive.Basis, begin time.Time, attempt *uint64) story {
	s := story{key: key}
	size := int64(len(key))
	sha := hexSHA([]byte(key))
	o := archive.Object{Key: "p/" + key, Size: size, ETag: "first", Metadata: map[string]string{archive.MetaSHA256: sha}, LastModified: begin}
	for i, what := range d.records {
		status, with, _ := strings.Cut(what, " ")
		r := rec(archive.Status(status), key, archive.FormatTime(begin.Add(time.Duration(i)*time.Minute)))
		*attempt++
		id := archive.ObjectID{Instance: "app-01", Chain: "0a1b2c3d", Attempt: *attempt}.String()
		switch r.Status {
		case archive.StatusUploaded:
			o.ETag, o.Metadata = fmt.Sprintf("upload %d", i), map[string]string{archive.MetaSHA256: sha, archive.MetaID: id}
			s.left = &o
			r.SizeBytes, r.SHA256, r.ETag, r.Attempt = &size, sha, o.ETag, *attempt
		case archive.StatusSkipped:
			s.left = &o
			r.SizeBytes, r.SHA256, r.ETag, r.Basis = &size, sha, o.ETag, basis
		case archive.StatusRekeyed:
			r.ReplacedETag = o.ETag
			o.ETag, o.Metadata = fmt.Sprintf("rekey %d", i), map[string]string{archive.MetaSHA256: sha, archive.MetaID: id}
			s.left = &o
			r.SizeBytes, r.ETag, r.Attempt = &size, o.ETag, *attempt
		case archive.StatusDeleted:
			if with != "" {
				s.left, r.Attempt = nil, *attempt
			}
		case archive.StatusFailed:
			r.Error, r.ErrorClass = "open: permission denied", archive.ClassFile
		}
		s.records = append(s.records, r)
	}
	s.was = o
	return s
}

// Every reader comes to what docs/FORMAT.md says, for every row and basis.
func TestReadersComeToWhatTheFormatSays(t *testing.T) {
	rows := documentedRows(t)
	s := newShelf()
	var records []archive.Record
	want, stories := map[string][]string{}, map[string]story{}
	attempt := uint64(0)
	for i, row := range rows {
		bases := []archive.Basis{archive.BasisIndex}
		if slices.Contains(row.records, "skipped") {
			bases = []archive.Basis{archive.BasisIndex, archive.BasisMetadata, archive.BasisETag, archive.BasisAttributes}
		}
		for _, basis := range bases {
			key := fmt.Sprintf("%02d-%s", i, basis)
			st := row.tell(key, basis, trailStart.Add(-time.Hour), &attempt)
			records = append(records, st.records...)
			want[key], stories[key] = row.want, st
		}
	}
	for key, st := range stories {
		if st.left != nil {
			s.heads["p/"+key] = *st.left
			s.set("p/"+key, []byte(key))
		}
	}
	s.add(t, "app-01", "0a1b2c3d", 1, true, withReason(trail.ReasonStop), records...)
	tr := trail.NewTrail(s, "p/")
	now := trailStart.Add(3 * time.Hour)

	files := map[string]string{}
	if err := tr.Newest(t.Context(), trail.Query{}, func(h trail.Held) error {
		files[strings.TrimPrefix(h.Record.S3Key, "p/")] = map[bool]string{false: "there", true: "gone"}[h.Gone]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	planned, _, err := s.restore(t, t.TempDir(), func(o *restore.Options) { o.DryRun = true })
	if err != nil {
		t.Fatal(err)
	}
	root := safefs.NewRoot(t.TempDir(), safefs.RootOptions{})
	id, err := root.Identify()
	if err != nil {
		t.Fatal(err)
	}
	root.Pin(id)
	source := &verify.Result{}
	if err := source.CheckSource(t.Context(), tr, root, verify.SourceOptions{Mapper: archive.NewMapper("p")}); err != nil {
		t.Fatal(err)
	}
	asTold := s.check(t, now, nil)
	heads, objects := s.heads, s.objects
	s.heads, s.objects = map[string]archive.Object{}, map[string][]byte{}
	for key, data := range objects {
		if strings.Contains(key, "/_manifests/") {
			s.objects[key] = data
		}
	}
	absent := s.check(t, now, nil)
	for key, st := range stories {
		s.heads["p/"+key] = st.was
	}
	back := s.check(t, now, nil)
	for key := range want {
		o := heads["p/"+key]
		o.Key, o.ETag, o.Size = "p/"+key, "another", 1
		o.Metadata = map[string]string{archive.MetaID: "app-01/0a1b2c3d/1"}
		s.heads["p/"+key], s.objects["p/"+key] = o, []byte("?")
	}
	altered := s.check(t, now, nil)

	for key, w := range want {
		got := []string{"unknown", "–", "–", "–", "–"}
		if f, ok := files[key]; ok && (w[0] != "unknown" || f != "gone") {
			got[0] = f
		}
		if planned["p/"+key] == string(restore.FileRestored) {
			got[1] = "restored"
		}
		if len(about(source, key)) > 0 {
			got[2] = "compared"
		}
		got[3] = remoteDoes(fmt.Sprint(about(asTold, key)), fmt.Sprint(about(absent, key)), fmt.Sprint(about(altered, key)), fmt.Sprint(about(back, key)))
		var latest trail.Latest
		q := trail.HistoryQuery{Match: func(r *archive.Record) bool { return r.S3Key == "p/"+key }, Distrust: func(_ string, err error) error { return err }}
		seen := 0
		if err := tr.History(t.Context(), q, func(it trail.HistoryItem) error { seen++; latest.Add(it); return nil }); err != nil {
			t.Fatal(err)
		}
		if latest.OK {
			got[4] = string(latest.Item.Record.Status)
		}
		if !slices.Equal(got, w[:5]) || seen != len(stories[key].records) {
			t.Errorf("%s, %v: the readers say %q (%d records of history), docs/FORMAT.md %q", key, stories[key].statuses(), got, seen, w[:5])
		}
	}
}

func (s story) statuses() (list []string) {
	for _, r := range s.records {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s", r.Status, r.Basis)))
	}
	return list
}

// remoteDoes says what verify --remote does with a key, from what it says of the
// object as the trail tells of it, without one, with another one, and with the
// last one that was there.
func remoteDoes(asTold, absent, altered, back string) string {
	switch fault := regexp.MustCompile("object-(missing|content)"); {
	case fault.MatchString(asTold):
		return "a finding where none is due: " + asTold
	case fault.MatchString(absent):
		return "compared"
	case strings.Contains(back, "content"):
		return "absent"
	case fault.MatchString(altered) && strings.Contains(altered, "content"):
		return "if there"
	default:
		return "–"
	}
}
