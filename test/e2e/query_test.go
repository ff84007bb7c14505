package e2e_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// row is one row of an answer: DuckDB's JSON has large numbers as strings.
type row map[string]any

func (r row) text(column string) string {
	if r[column] == nil {
		return ""
	}
	return fmt.Sprint(r[column])
}

// duckDB runs statements in DuckDB and returns the rows of each, or skips the
// test: DuckDB comes from npm, with `make e2e`.
func duckDB(t *testing.T, statements ...string) [][]row {
	t.Helper()
	dir := os.Getenv("S3SYNCD_TEST_DUCKDB")
	node, err := exec.LookPath("node")
	if dir == "" || err != nil {
		t.Skip("no DuckDB here: `make e2e` gets it where npm is installed")
	}
	in, err := json.Marshal(statements)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, node, filepath.Join("testdata", "duckdb.mjs"), dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("DuckDB: %v\n%s", err, errs.String())
	}
	var answers [][]row
	if err := json.Unmarshal(out.Bytes(), &answers); err != nil || len(answers) != len(statements) {
		t.Fatalf("DuckDB answered %v:\n%s", err, tail(out.String(), 2000))
	}
	return answers
}

var (
	sqlComment = regexp.MustCompile(`(?m)^\s*--.*$`)
	sqlName    = regexp.MustCompile(`(?m)^-- name: ([a-z-]+)$`)
)

// shipped reads a file of deploy/.
func shipped(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "deploy"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sqlStatements splits a file of SQL.
func sqlStatements(text string) []string {
	var list []string
	for s := range strings.SplitSeq(sqlComment.ReplaceAllString(text, ""), ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// fleet answers the shipped queries from the manifests below a directory.
func fleet(t *testing.T, dir string, change *strings.Replacer) map[string][]row {
	t.Helper()
	statements := []string{fmt.Sprintf("SET VARIABLE manifests = '%s/backups/*/app/_manifests/dt=*/instance=*/*.jsonl.gz'", dir)}
	statements = append(statements, sqlStatements(shipped(t, "duckdb", "tables.sql"))...)
	statements = append(statements, sqlStatements(shipped(t, "athena", "views.sql"))...)
	queries := shipped(t, "athena", "queries.sql")
	names := sqlName.FindAllStringSubmatch(queries, -1)
	asked := sqlStatements(change.Replace(queries))
	if len(names) != len(asked) || len(names) < 5 {
		t.Fatalf("%d names for %d queries", len(names), len(asked))
	}
	first := len(statements)
	answers := duckDB(t, append(statements, asked...)...)
	byName := map[string][]row{}
	for i, n := range names {
		byName[n[1]] = answers[first+i]
	}
	return byName
}

// member is one host of a fleet that shares a bucket.
func member(t *testing.T, bucket bucketView, endpoint, instance string) *site {
	t.Helper()
	base := t.TempDir()
	srv := s3test.MinIO(t)
	s := &site{
		dir: filepath.Join(base, "data"), state: filepath.Join(base, "state"), file: filepath.Join(base, "s3syncd.yaml"),
		env: srv.Root.Environ(), proxy: s3test.NewProxy(t, endpoint), server: srv, key: s3test.KeyName, uid: os.Getuid(), bucket: bucket,
	}
	s.bucket.prefix = "backups/" + instance + "/app"
	src := fmt.Sprintf("- {name: app, path: %s, bucket: %s, prefix: 'backups/{instance}/app', kms_key_id: %s}", s.dir, bucket.bucket, s.key)
	write(t, s.file, strings.Replace(yaml(s.proxy.URL, s.state, src, "manifest: {layout: hive, flush_interval: 1s}"), "instance: test-01", "instance: "+instance, 1))
	return s
}

// download copies what is below a prefix of the bucket to a directory.
func (b bucketView) download(t *testing.T, dir string) (files []string) {
	t.Helper()
	for _, k := range b.keys(t, true) {
		body, _ := b.get(t, k)
		write(t, filepath.Join(dir, k), string(body))
		files = append(files, k)
	}
	return files
}

func TestThreeHostsAreAskedAboutAsOneTable(t *testing.T) {
	if !thorough {
		t.Skip("the queries over a fleet run in `make e2e`")
	}
	srv := s3test.MinIO(t)
	bucket := bucketView{client: srv.Client(), bucket: srv.Bucket(t, s3test.BucketOptions{Versioning: true})}
	one, two, three := member(t, bucket, srv.URL, "app-01"), member(t, bucket, srv.URL, "app-02"), member(t, bucket, srv.URL, "app-03")
	write(t, one.path("report.csv"), "first")
	write(t, one.path("same"), "the same bytes")
	write(t, two.path("same"), "the same bytes")
	write(t, two.path("comes-late"), "refused at first")
	write(t, two.path("hopeless/"+strings.Repeat(strings.Repeat("d", 250)+"/", 4)+strings.Repeat("f", 100)), "its key is too long")
	write(t, three.path("goes"), "the same bytes")
	write(t, three.path("unlucky \"quoted\", 'name'\nof two lines"), "content")

	refuse := two.proxy.Answer(s3test.Match{Op: "PutObject", Key: "comes-late", Times: -1}, 503, "SlowDown")
	if code, out, errs := two.sync(t, "--give-up", "1s"); code != 3 {
		t.Fatalf("sync exited with %d, want 3 for files that failed:\n%s%s", code, out, tail(errs, 2000))
	}
	refuse.Wait(t)
	two.proxy = s3test.NewProxy(t, srv.URL)
	b, err := os.ReadFile(two.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, two.file, regexp.MustCompile(`endpoint_url: \S+`).ReplaceAllString(string(b), "endpoint_url: "+two.proxy.URL))

	hosts := []*site{one, two, three}
	var daemons []*process
	for _, s := range hosts {
		daemons = append(daemons, s.daemon(t))
	}
	eventually(t, "the first uploads", func() bool {
		return one.inBucket(t, "report.csv", "first") && two.inBucket(t, "comes-late", "refused at first") && three.inBucket(t, "goes", "the same bytes")
	})
	write(t, one.path("report.csv"), "second, longer")
	if err := os.Remove(three.path("goes")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second upload", func() bool { return one.inBucket(t, "report.csv", "second, longer") })
	eventually(t, "the removal", func() bool { return strings.Contains(daemons[2].stderr.String(), `"msg":"deleted"`) })
	for _, d := range daemons {
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	}

	dir := t.TempDir()
	for i, s := range hosts {
		instance := fmt.Sprintf("app-%02d", i+1)
		place := regexp.MustCompile(`^backups/` + instance + `/app/_manifests/dt=\d{4}-\d\d-\d\d/instance=` + instance + `/manifest_[^/]+\.jsonl\.gz$`)
		if files := s.bucket.download(t, dir); !slices.ContainsFunc(files, place.MatchString) {
			t.Fatalf("no manifest of %s stands where the table looks: %q", instance, files)
		}
	}
	wantFleet(t, one, two, fleet(t, dir, strings.NewReplacer("/opt/app/data/report.csv", one.path("report.csv"))))
}

// wantFleet checks the answers about what TestThreeHosts… did.
func wantFleet(t *testing.T, one, two *site, got map[string][]row) {
	t.Helper()
	var uploaded []string
	for _, r := range got["uploaded-last-week-by-host"] {
		uploaded = append(uploaded, r.text("instance")+" "+r.text("files")+" "+r.text("bytes"))
	}
	if want := []string{"app-01 3 33", "app-02 2 30", "app-03 2 21"}; !slices.Equal(uploaded, want) {
		t.Errorf("uploaded by host: %q, want %q", uploaded, want)
	}
	if r := got["failed-and-never-recovered"]; len(r) != 1 || r[0].text("instance") != "app-02" || r[0].text("error_class") != "file" ||
		!strings.HasPrefix(r[0].text("local_path"), two.path("hopeless/")) {
		t.Errorf("failed and never recovered: %v, want the file with the long name alone", r)
	}
	if r := got["keys-in-use"]; len(r) != 1 || !strings.HasSuffix(r[0].text("kms_key_id"), s3test.KeyName) || r[0].text("objects") != "6" || r[0].text("hosts") != "3" {
		t.Errorf("keys: %v, want one with 6 objects of 3 hosts", r)
	}
	if r := got["duplicates"]; len(r) != 1 || r[0].text("copies") != "2" || r[0].text("bytes_spare") != "14" {
		t.Errorf("duplicates: %v, want the two files that are still there", r)
	}
	newest := got["newest-version-of-a-file"]
	if len(newest) != 1 || newest[0].text("size_bytes") != "14" || newest[0].text("gone") != "false" {
		t.Fatalf("newest version: %v, want one of 14 bytes", newest)
	}
	key := one.bucket.prefix + "/report.csv"
	if _, out := one.bucket.get(t, key); out.VersionId == nil || *out.VersionId != newest[0].text("version_id") ||
		newest[0].text("s3_uri") != "s3://"+one.bucket.bucket+"/"+key {
		t.Errorf("newest version: %v, want the one in the bucket", newest[0])
	}
	if r := got["uploaded-most-often"]; len(r) != 1 || r[0].text("uploads") != "2" || r[0].text("local_path") != one.path("report.csv") {
		t.Errorf("uploaded most often: %v, want the report", r)
	}
	if r := got["silent-hosts"]; len(r) != 0 {
		t.Errorf("silent hosts: %v, want none", r)
	}
}

// The views come to what docs/FORMAT.md says, row by row and for each basis.
func TestTheViewsComeToWhatTheFormatSays(t *testing.T) {
	format, err := os.ReadFile(filepath.Join("..", "..", "docs", "FORMAT.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(format), "| records, oldest first |")
	table, _, _ = strings.Cut(table, "\n\n")
	lines := strings.Split(table, "\n")
	if len(lines) < 20 {
		t.Fatalf("the table has %d rows", len(lines))
	}
	var manifest strings.Builder
	want := map[string]string{}
	failed := map[string]bool{}
	number := 0
	for i, line := range lines[2:] {
		cells := strings.Split(strings.Trim(strings.ReplaceAll(line, "`", ""), "| "), " | ")
		for _, basis := range []string{"index", "metadata", "etag", "attributes"} {
			key := fmt.Sprintf("p/%02d-%s", i, basis)
			want[key] = cells[len(cells)-1]
			last := ""
			for what := range strings.SplitSeq(cells[0], ", ") {
				status, with, _ := strings.Cut(what, " ")
				number++
				r := map[string]any{
					"local_path": "/data/" + key, "s3_key": key, "s3_uri": "s3://b/" + key, "status": status,
					"timestamp": fmt.Sprintf("2026-03-01T10:00:00.%09dZ", number), "trigger": "event", "source": "app", "instance": "app-01",
					"chain": "0a1b2c3d", "id": fmt.Sprintf("0a1b2c3d-%d", number), "size_bytes": 1,
				}
				switch {
				case status == "uploaded", status == "skipped":
					r["sha256"] = strings.Repeat("a", 64)
				case status == "rekeyed", with != "":
					r["attempt"] = number
				}
				if status == "skipped" {
					r["basis"] = basis
				}
				if status != "rekeyed" {
					last = status
				}
				line, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				manifest.Write(append(line, '\n'))
			}
			failed["/data/"+key] = last == "failed"
		}
	}
	dir := t.TempDir()
	var packed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	if _, err := gz.Write([]byte(manifest.String())); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/backups/app-01/app/_manifests/dt=2026-03-01/instance=app-01/manifest_20260301_100000_app-01_0a1b2c3d_00000001.jsonl.gz", packed.String())
	statements := []string{fmt.Sprintf("SET VARIABLE manifests = '%s/backups/*/app/_manifests/dt=*/instance=*/*.jsonl.gz'", dir)}
	statements = append(statements, sqlStatements(shipped(t, "duckdb", "tables.sql"))...)
	statements = append(statements, sqlStatements(shipped(t, "athena", "views.sql"))...)
	answers := duckDB(t, append(statements, "SELECT s3_key, gone, removed FROM s3syncd_archived")...)
	got := map[string]string{}
	for _, r := range answers[len(answers)-1] {
		got[r.text("s3_key")] = map[string]string{"false false": "there", "true false": "gone", "true true": "removed"}[r.text("gone")+" "+r.text("removed")]
	}
	for key, w := range want {
		if w == "–" {
			w = ""
		}
		if got[key] != w {
			t.Errorf("of %s s3syncd_archived says %q, docs/FORMAT.md %q", key, got[key], w)
		}
	}
	for _, r := range fleet(t, dir, strings.NewReplacer())["failed-and-never-recovered"] {
		if !failed[r.text("local_path")] {
			t.Errorf("%s is no failure", r.text("local_path"))
		}
		delete(failed, r.text("local_path"))
	}
	for path, is := range failed {
		if is {
			t.Errorf("%s failed, and the query does not say so", path)
		}
	}
}

// Every table has the columns that the format documents, and no other.
func TestTheTablesHaveTheColumnsOfTheFormat(t *testing.T) {
	format, err := os.ReadFile(filepath.Join("..", "..", "docs", "FORMAT.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(format), "| key | type | when |\n")
	section, _, _ = strings.Cut(section, "\n\n")
	var want []string
	for line := range strings.Lines(section) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(first, -1) {
			if m[1] != "instance" { // That is a partition.
				want = append(want, m[1])
			}
		}
	}
	slices.Sort(want)
	if len(want) < 30 {
		t.Fatalf("%d fields in docs/FORMAT.md, want at least 30", len(want))
	}
	athena, _, _ := strings.Cut(shipped(t, "athena", "tables.sql"), "PARTITIONED BY")
	_, duck, _ := strings.Cut(shipped(t, "duckdb", "tables.sql"), "columns = {")
	for name, got := range map[string][][]string{
		"Athena": regexp.MustCompile("(?m)^  `?([a-z0-9_]+)`? +(?:string|bigint|boolean)").FindAllStringSubmatch(athena, -1),
		"DuckDB": regexp.MustCompile(`"?([a-z0-9_]+)"?: '[A-Z]+'`).FindAllStringSubmatch(duck, -1),
	} {
		var columns []string
		for _, m := range got {
			columns = append(columns, m[1])
		}
		slices.Sort(columns)
		if !slices.Equal(columns, want) {
			t.Errorf("%s has the columns\n%q, the format\n%q", name, columns, want)
		}
	}
}

// tutorialReader is how scripts of the time before s3syncd read a manifest:
// a JSON array, and the fields that were there then.
const tutorialReader = `
import json, sys
with open(sys.argv[1]) as f:
    manifest = json.load(f)
stats = {"uploaded": 0, "skipped": 0, "failed": 0}
for entry in manifest:
    stats[entry["status"]] += 1
    if entry["status"] == "failed":
        print("  [ERROR]  %s: %s" % (entry["local_path"], entry["error"]))
    else:
        print("%s %s %d %s" % (entry["s3_key"], entry["s3_uri"], entry["size_bytes"], entry["timestamp"]))
        assert entry["timestamp"].endswith("Z")
print("Uploaded: %(uploaded)d Skipped: %(skipped)d Failed: %(failed)d" % stats)
`

// tool runs a program that may be missing, and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("no %s here", name)
	}
	out, err := exec.CommandContext(t.Context(), program, args...).Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%s: %v\n%s", name, err, e.Stderr)
		}
		t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}

func TestTheFlatManifestIsReadByWhatPeopleHave(t *testing.T) {
	s := newSite(t, "", "manifest: {list_skipped: all}")
	write(t, s.path("a.csv"), "content")
	write(t, s.path("ünï \"cödé\".txt"), "more")
	s.mustSync(t, 2, 0, 0)
	write(t, s.path("b.csv"), "later")
	write(t, s.path(strings.Repeat(strings.Repeat("d", 250)+"/", 4)+strings.Repeat("f", 100)), "its key is too long")
	s.mustSync(t, 1, 2, 1)
	dir := t.TempDir()
	var manifests []string
	for _, k := range s.bucket.download(t, dir) {
		if strings.Contains(k, "/manifest_") {
			manifests = append(manifests, filepath.Join(dir, k))
		}
	}
	slices.Sort(manifests)
	if len(manifests) != 2 {
		t.Fatalf("%d manifests, want 2", len(manifests))
	}
	last := manifests[1]

	t.Run("the tutorial's reader", func(t *testing.T) {
		got := tool(t, "python3", "-c", tutorialReader, last)
		for _, want := range []string{
			"Uploaded: 1 Skipped: 2 Failed: 1\n",
			"backups/app/b.csv s3://" + s.bucket.bucket + "/backups/app/b.csv 5 ",
			"  [ERROR]  " + s.path("ddd"),
		} {
			if !strings.Contains(got, want) {
				t.Errorf("it printed\n%s\nwant %q", got, want)
			}
		}
	})
	t.Run("jq", func(t *testing.T) {
		if got := tool(t, "jq", "-r", `map(select(.status == "uploaded").s3_key) | sort | join(" ")`, manifests[0]); got != "backups/app/a.csv backups/app/ünï \"cödé\".txt\n" {
			t.Errorf("jq printed %q", got)
		}
	})
	t.Run("the commands of the document", func(t *testing.T) {
		wantDocumentedCommands(t, filepath.Dir(last))
	})
	t.Run("DuckDB", func(t *testing.T) {
		sql := fmt.Sprintf("SELECT status, count(*) AS n, sum(size_bytes) AS bytes FROM read_json('%s/backups/app/_manifests/manifest_*.json') GROUP BY status ORDER BY status", dir)
		var got []string
		for _, r := range duckDB(t, sql)[0] {
			got = append(got, r.text("status")+" "+r.text("n")+" "+r.text("bytes"))
		}
		if want := []string{"failed 1 ", "skipped 2 11", "uploaded 3 16"}; !slices.Equal(got, want) {
			t.Errorf("DuckDB says %q, want %q", got, want)
		}
	})
}

// wantDocumentedCommands runs the commands for one host that docs/QUERIES.md
// names, where their manifests are.
func wantDocumentedCommands(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "QUERIES.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)\n```sh\n(jq .*?)\n```\n").FindStringSubmatch(string(text))
	if block == nil {
		t.Fatal("docs/QUERIES.md has no block that begins with jq")
	}
	example := regexp.MustCompile(`manifest_[0-9]+_[0-9]+_app-01\S+\.json`)
	ran := 0
	for command := range strings.Lines(block[1]) {
		name, _, _ := strings.Cut(command, " ")
		if name == "duckdb" {
			sql, _, _ := strings.Cut(strings.SplitN(command, `"`, 2)[1], `"`)
			if rows := duckDB(t, strings.ReplaceAll(sql, "manifest_", dir+"/manifest_"))[0]; len(rows) == 0 {
				t.Errorf("no rows of %s", command)
			}
			continue
		}
		tool(t, name, "--version")
		manifests, err := filepath.Glob(filepath.Join(dir, "manifest_*.json"))
		if err != nil || len(manifests) == 0 {
			t.Fatalf("%d manifests, %v", len(manifests), err)
		}
		sh := exec.CommandContext(t.Context(), "sh", "-c", example.ReplaceAllString(command, filepath.Base(manifests[0])))
		sh.Dir = dir
		if out, err := sh.CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		ran++
	}
	if ran < 3 {
		t.Errorf("%d commands found, want at least 3", ran)
	}
}
