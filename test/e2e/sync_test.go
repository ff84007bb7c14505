package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// random writes size bytes that no compression shortens.
func random(t *testing.T, path string, size int64, seed uint64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	if _, err := io.CopyN(f, src, size); err != nil {
		t.Fatal(err)
	}
}

func TestManySmallFilesAndALargeOneAreStoredOnceUnderTheKey(t *testing.T) {
	files, large := 1000, int64(300<<20)
	if thorough {
		files, large = 5000, 2<<30
	}
	s := newSite(t, "", "")
	for i := range files {
		write(t, s.path(fmt.Sprintf("d%02d/e%d/f%04d.txt", i%40, i%7, i)), fmt.Sprintf("content of file %d\n", i))
	}
	random(t, s.path("large.bin"), large, 1)
	write(t, s.path("empty"), "")
	s.mustSync(t, files+2, 0, 0)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if got := tr.count("uploaded"); got != files+2 {
		t.Errorf("the trail has %d uploads, want %d", got, files+2)
	}

	s.proxy.Forget()
	s.mustSync(t, 0, files+2, 0)
	for _, op := range []string{"HeadObject", "PutObject", "CreateMultipartUpload", "GetObject"} {
		if n := s.data(op); n != 0 {
			t.Errorf("the second run made %d %s requests for data, want 0", n, op)
		}
	}
	if n := len(s.proxy.Ledger()); n > 4 {
		t.Errorf("the second run made %d requests, want only its trail's: %v", n, s.proxy.Ledger())
	}
	tr = s.bucket.readTrail(t)
	if got := tr.count("skipped"); got != files+2 {
		t.Errorf("the trail lists %d skips, want %d", got, files+2)
	}
}

func TestALostStateIsRebuiltFromTheObjects(t *testing.T) {
	s := newSite(t, "", "")
	for i := range 50 {
		write(t, s.path(fmt.Sprintf("f%02d", i)), fmt.Sprintf("content %d", i))
	}
	random(t, s.path("large"), 70<<20, 2)
	s.mustSync(t, 51, 0, 0)
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	s.proxy.Forget()
	s.mustSync(t, 0, 51, 0)
	if n := s.data("PutObject") + s.data("CreateMultipartUpload"); n > 5 {
		t.Errorf("a run without its state sent %d writes for files that are there", n)
	}
	tr := s.bucket.readTrail(t)
	n := 0
	for _, r := range tr.records {
		if r.Status == "skipped" && r.Basis == "metadata" {
			n++
		}
	}
	if n != 51 {
		t.Errorf("%d records are skipped on the basis of metadata, want 51", n)
	}
	last := tr.digests[len(tr.digests)-1]
	if !slices.ContainsFunc(tr.digests, func(d digest) bool { return d.Begins == "state-lost" }) {
		t.Errorf("no chain begins with state-lost; the last begins %q", last.Begins)
	}
}

func TestObjectsOfTheFirstScriptAreSkipped(t *testing.T) {
	s := newSite(t, "", "")
	small, big := "written by the script", strings.Repeat("0123456789abcdef", 1<<20)
	write(t, s.path("report.csv"), small)
	write(t, s.path("sub/big.bin"), big)
	s.asTheScript(t, "report.csv", small)
	s.asTheScript(t, "sub/big.bin", big)
	s.mustSync(t, 0, 2, 0)
}

// asTheScript stores an object as the boto3 script did.
func (s *site) asTheScript(t *testing.T, rel, content string) {
	t.Helper()
	_, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + rel), Body: strings.NewReader(content),
		ServerSideEncryption: types.ServerSideEncryptionAwsKms, SSEKMSKeyId: aws.String(s3test.KeyName),
		Metadata: map[string]string{"md5checksum": md5Of(content)},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnUnencryptedObjectIsReplacedByAnEncryptedOne(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("plain.txt"), "the same bytes")
	_, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/plain.txt"), Body: strings.NewReader("the same bytes"),
		Metadata: map[string]string{"md5checksum": md5Of("the same bytes")},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 1, 0, 0)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
}

func TestOddNamesAreKeptApart(t *testing.T) {
	s := newSite(t, "", "")
	long := strings.Repeat("k", 200)
	names := []string{
		"with space", "new\nline", "tab\tname", "cafe\u0301", "caf\u00e9", "a\\b", "a%41", "a%2541", "100%", "plus+and&amp;", "q?x=1#y",
		"日本語/ファイル", "quote\"'", "trailing ", ".hidden/.file", strings.Join([]string{long, long, long, long, strings.Repeat("z", 1024-len("backups/app/")-4*201)}, "/"),
	}
	for i, n := range names {
		write(t, s.path(n), fmt.Sprintf("odd %d", i))
	}
	raw := "not-utf8-\xff\xfe"
	write(t, s.path(raw), "raw bytes")
	tooLong := strings.Join([]string{long, long, long, long, long, "more than fits"}, "/")
	write(t, s.path(tooLong), "no key is this long")
	s.mustSync(t, len(names)+1, 0, 1)
	tr := s.bucket.readTrail(t)
	got := s.bucket.keys(t, false)
	want := map[string]string{"not-utf8-%FF%FE": "raw bytes", "a%2541": "odd 6", "a%252541": "odd 7"}
	for i, n := range names {
		if !strings.HasPrefix(n, "a%") {
			want[n] = fmt.Sprintf("odd %d", i)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the bucket has %d keys, want %d: %q", len(got), len(want), got)
	}
	for n, content := range want {
		if body, _ := s.bucket.get(t, s.bucket.prefix+"/"+n); string(body) != content {
			t.Errorf("key %q holds %q, want %q", n, body, content)
		}
	}
	i := slices.IndexFunc(tr.records, func(r record) bool { return r.Status == "failed" })
	if i < 0 || tr.records[i].ErrorClass != "file" || !strings.Contains(tr.records[i].Error, "1,024") {
		t.Errorf("the key that is too long has no failed record of class file: %+v", tr.records)
	}
	// Once per content: the next runs say the same, and the trail does not grow by it.
	if n := tr.count("failed"); n != 1 {
		t.Errorf("%d failed records, want 1", n)
	}
}

func TestWhatCannotBeArchivedIsSaidAndTheRestGoesOn(t *testing.T) {
	s := newSite(t, "", "")
	s.unprivileged(t)
	write(t, s.path("good.txt"), "good")
	write(t, s.path("secret.txt"), "unreadable")
	chmod(t, s.path("secret.txt"), 0)
	write(t, s.path("closed/inside.txt"), "in a closed directory")
	chmod(t, s.path("closed"), 0)
	t.Cleanup(func() { _ = os.Chmod(s.path("closed"), 0o755) })
	write(t, filepath.Join(filepath.Dir(s.dir), "outside.txt"), "outside")
	for target, link := range map[string]string{"../outside.txt": "escape", "good.txt": "inside-link", ".": "loop"} {
		if err := os.Symlink(target, s.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(s.path("fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("_manifests/mine.json"), "reserved")
	s.mustSync(t, 1, 0, 3) // The file, the directory, the reserved name.
	tr := s.bucket.readTrail(t)
	if got, want := s.bucket.keys(t, false), []string{s.bucket.prefix + "/good.txt"}; !slices.Equal(got, want) {
		t.Errorf("keys = %q, want %q", got, want)
	}
	for _, p := range []string{"secret.txt", "closed", "_manifests"} {
		if !slices.ContainsFunc(tr.records, func(r record) bool {
			return r.LocalPath == s.path(p) && r.Status == "failed" && r.ErrorClass == "file" && r.Error != ""
		}) {
			t.Errorf("no failed record of class file for %s: %+v", p, tr.records)
		}
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestAWrongDestinationFailsInOrder(t *testing.T) {
	cases := []struct {
		name, old, new string
		code           int
		says           string
	}{
		{"a bucket that is not there", "bucket: ", "bucket: no-", 1, "NoSuchBucket"},
		{"a key that is not there", "kms_key_id: " + s3test.KeyName, "kms_key_id: no-such-key", 1, "KeyNotFound"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "", "")
			write(t, s.path("f"), "content")
			b, err := os.ReadFile(s.file)
			if err != nil {
				t.Fatal(err)
			}
			write(t, s.file, strings.Replace(string(b), c.old, c.new, 1))
			code, out, errs := s.sync(t, "--give-up", "2s")
			if code != c.code && code != 3 {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(out+errs, c.says) {
				t.Errorf("nobody says %s:\n%s%s", c.says, out, errs)
			}
			if got := s.bucket.keys(t, false); len(got) != 0 {
				t.Errorf("keys = %q, want none", got)
			}
		})
	}
}

func TestARunWithoutAFileToSendPublishesItsTrail(t *testing.T) {
	s := newSite(t, "", "")
	// The scan of an empty directory ends long before the canary's answer.
	canary := s.proxy.Delay(s3test.Match{Op: "PutObject", Key: ".canary/"}, 300*time.Millisecond)
	code, out, errs := s.sync(t) // It is ended long before an outage is given up.
	if code != 0 || errs != "" {
		t.Errorf("exit code %d, stderr %q, want 0 and nothing to say:\n%s", code, errs, out)
	}
	if s.proxy.Fired(canary) == 0 {
		t.Error("no canary was sent")
	}
	if tr := s.bucket.readTrail(t); len(tr.digests) != 1 {
		t.Errorf("digests: %d, want 1", len(tr.digests))
	}
}

func TestAServerThatDoesNotEncryptGetsNoFile(t *testing.T) {
	fake := s3test.NewFake(t, "lies")
	fake.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = true })
	dir := t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), "plaintext secret")
	}
	code, out, errs := command(t, fake.Credentials().Environ(), "sync", "--dir", dir, "--bucket", "lies", "--prefix", "p",
		"--kms-key-id", s3test.FakeKeyARN, "--endpoint-url", fake.URL, "--region", s3test.Region, "--state-dir", t.TempDir(), "--give-up", "3s")
	if code == 0 || strings.Contains(out, "Uploaded: 20") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	for _, k := range fake.Keys("lies", "p/") {
		o, _ := fake.Object("lies", k)
		if strings.Contains(string(o.Body), "plaintext secret") {
			t.Errorf("%q was sent to a server that does not encrypt", k)
		}
	}
}

func TestThePolicyOfTheFirstScriptIsEnough(t *testing.T) {
	s := newSite(t, "", "")
	s.env = s.server.User(t, fmt.Sprintf(`{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["s3:PutObject","s3:GetObject"],"Resource":"arn:aws:s3:::%s/*"}]}`, s.bucket.bucket)).Environ()
	write(t, s.path("a"), "one")
	random(t, s.path("large"), 70<<20, 3)
	s.mustSync(t, 2, 0, 0)
	write(t, s.path("b"), "two")
	s.mustSync(t, 1, 2, 0)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if got := tr.digests[0].Begins; got != "unknown" {
		t.Errorf("the chain begins %q, want unknown: nobody may list", got)
	}
}

func TestA403OnHeadMeansAbsentWithoutTheRightToList(t *testing.T) {
	fake := s3test.NewFake(t, "limited")
	fake.Behave(func(b *s3test.Behavior) { b.ListDenied = true })
	dir, st := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "a"), "one")
	write(t, filepath.Join(dir, "large"), strings.Repeat("x", 200<<10))
	args := []string{
		"sync", "--dir", dir, "--bucket", "limited", "--prefix", "p", "--kms-key-id", s3test.FakeAlias,
		"--endpoint-url", fake.URL, "--region", s3test.Region, "--state-dir", st, "--give-up", "5s",
	}
	code, out, errs := command(t, fake.Credentials().Environ(), args...)
	if code != 0 || !strings.Contains(out, "Uploaded: 2\n") {
		t.Fatalf("exit code %d:\n%s%s", code, out, errs)
	}
	if o, ok := fake.Object("limited", "p/a"); !ok || o.KMSKeyID != s3test.FakeKeyARN {
		t.Errorf("p/a = %+v, want it under %s", o, s3test.FakeKeyARN)
	}
	if err := os.RemoveAll(st); err != nil {
		t.Fatal(err)
	}
	code, out, errs = command(t, fake.Credentials().Environ(), args...)
	if code != 0 || !strings.Contains(out, "Uploaded: 0\nSkipped: 2") {
		t.Errorf("without the state, exit code %d:\n%s%s", code, out, errs)
	}
}

func TestSyncOverTLSWithAPrivateCA(t *testing.T) {
	srv := s3test.MinIOTLS(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), "one")
	random(t, filepath.Join(dir, "large"), 70<<20, 4)
	b := bucketView{client: srv.Client(), bucket: srv.Bucket(t), prefix: "p"}
	args := []string{
		"sync", "--dir", dir, "--bucket", b.bucket, "--prefix", "p", "--kms-key-id", s3test.KeyName,
		"--endpoint-url", srv.URL, "--region", s3test.Region, "--state-dir", t.TempDir(), "--give-up", "5s",
	}
	if code, out, errs := command(t, srv.Root.Environ(), args...); code == 0 {
		t.Errorf("a certificate of an unknown CA was accepted:\n%s%s", out, errs)
	}
	code, out, errs := command(t, append(srv.Root.Environ(), "AWS_CA_BUNDLE="+srv.CAFile), args...)
	if code != 0 || !strings.Contains(out, "Uploaded: 2\n") {
		t.Fatalf("exit code %d:\n%s%s", code, out, errs)
	}
	tr := b.readTrail(t)
	b.wantTree(t, dir, &tr)
}

func TestManifestOutHoldsAllRecordsOfTheRun(t *testing.T) {
	s := newSite(t, "", "")
	for i := range 5 {
		write(t, s.path(fmt.Sprintf("f%d", i)), "x")
	}
	s.mustSync(t, 5, 0, 0)
	write(t, s.path("f5"), "new")
	out := filepath.Join(t.TempDir(), "run.json")
	if code, _, errs := s.sync(t, "--manifest-out", out); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	body, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var recs []record
	if err := json.Unmarshal(body, &recs); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	got := map[string]int{}
	for _, r := range recs {
		got[r.Status]++
	}
	if got["uploaded"] != 1 || got["skipped"] != 5 || len(recs) != 6 {
		t.Errorf("--manifest-out holds %v, want 1 uploaded and 5 skipped", got)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "12345")
	write(t, s.path("b"), "67890")
	code, out, errs := s.sync(t, "--dry-run")
	if code != 0 || !strings.Contains(out, "Would upload: 2 files, 10 B") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	if n := len(s.proxy.Ledger()); n != s.proxy.Count(s3test.Match{Op: "ListObjectsV2"}) || n > 2 {
		t.Errorf("a dry run of an empty bucket made the requests %v, want a listing", s.proxy.Ledger())
	}
	if _, err := os.Stat(s.state); err == nil {
		t.Errorf("a dry run made the state directory")
	}
}

// What a dry run says is what the run does, whatever is in the bucket.
func TestADryRunForeseesTheRun(t *testing.T) {
	s := newSite(t, "", "")
	big := strings.Repeat("0123456789abcdef", 1<<20)
	for rel, content := range map[string]string{"script.csv": "by the script", "sub/big.bin": big, "odd/\xff%41": "odd", "b.txt": "same size!"} {
		write(t, s.path(rel), content)
	}
	s.asTheScript(t, "script.csv", "by the script")
	s.asTheScript(t, "sub/big.bin", big)
	s.asTheScript(t, "odd/%FF%2541", "odd")
	s.asTheScript(t, "b.txt", "other size") // Of as many bytes.
	write(t, s.path("plain.txt"), "without a key")
	s.byHand(t, "plain.txt", "without a key", map[string]string{"md5checksum": md5Of("without a key")})
	write(t, s.path("theirs.txt"), "ours")
	s.byHand(t, "theirs.txt", "theirs", map[string]string{"s3syncd-id": "test-02/0badcafe/1"})
	write(t, s.path("new.txt"), "new")
	foresees := func(uploads, skips, failures int) {
		t.Helper()
		s.proxy.Forget()
		code, out, errs := s.sync(t, "--dry-run")
		for _, want := range []string{fmt.Sprintf("Would upload: %d files", uploads), fmt.Sprintf("Unchanged: %d\n", skips)} {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("the dry run exited with %d and does not say %q:\n%s%s", code, want, out, errs)
			}
		}
		if says := strings.Contains(out, fmt.Sprintf("Would fail: %d\n", failures)); says != (failures > 0) {
			t.Errorf("the dry run foresees %d failures: %v\n%s", failures, says, out)
		}
		for _, r := range s.proxy.Ledger() {
			if r.Op != "ListObjectsV2" && r.Op != "HeadObject" {
				t.Errorf("the dry run made the request %+v", r)
			}
		}
		if code, out, _ := s.sync(t); !strings.Contains(out, fmt.Sprintf("Uploaded: %d\nSkipped: %d (unchanged)\nFailed: %d\n", uploads, skips, failures)) {
			t.Errorf("the run exited with %d and did otherwise:\n%s", code, out)
		}
	}
	foresees(3, 3, 1) // b.txt, plain.txt and new.txt.
	foresees(0, 6, 1)
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("new.txt"), "newer")
	foresees(1, 5, 1)
}

func TestADryRunSaysThatItDidNotAsk(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "12345")
	s.asTheScript(t, "a", "12345")
	s.proxy.Answer(s3test.Match{Op: "ListObjectsV2", Times: -1}, 403, "AccessDenied")
	if code, out, errs := s.sync(t, "--dry-run"); code != 0 || !strings.Contains(out, "Would upload: 0 files") || !strings.Contains(out, "Unchanged: 1\n") {
		t.Errorf("without the right to list the dry run exited with %d and said:\n%s%s", code, out, errs)
	}
	s.proxy.Answer(s3test.Match{Op: "HeadObject", Times: -1}, 403, "")
	const unsaid = "S3 did not say whether it holds 1 of these files"
	if code, out, errs := s.sync(t, "--dry-run"); code != 0 || !strings.Contains(out, "Would upload: 1 files") || !strings.Contains(out, unsaid) {
		t.Errorf("without the right to see, the dry run exited with %d and said:\n%s%s", code, out, errs)
	}
	down := newSite(t, "", "")
	write(t, down.path("a"), "12345")
	down.proxy.Answer(s3test.Match{Times: -1}, 503, "ServiceUnavailable")
	if code, out, errs := down.sync(t, "--dry-run"); code != 0 || !strings.Contains(out, "Would upload: 1 files") || !strings.Contains(out, unsaid) || !strings.Contains(out, "ServiceUnavailable") {
		t.Errorf("without an answer the dry run exited with %d and said:\n%s%s", code, out, errs)
	}
}

func TestSyncRefusesAStateThatADaemonHolds(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	code, _, errs := s.sync(t)
	if code != 1 || !strings.Contains(errs, "rescan") || !strings.Contains(errs, strconv.Itoa(d.cmd.Process.Pid)) {
		t.Errorf("exit code %d, want 1 with the pid %d and rescan: %s", code, d.cmd.Process.Pid, errs)
	}
}

func TestAnotherPrefixBeginsAnotherChain(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	s.mustSync(t, 1, 0, 0)
	s.bucket.prefix = "moved/app"
	s.configure(t, "", "")
	s.mustSync(t, 1, 0, 0)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if got := tr.digests[0].Begins; got != "reconfigured" {
		t.Errorf("the chain under the new prefix begins %q, want reconfigured", got)
	}
}
