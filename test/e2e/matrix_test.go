package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

const (
	answerOfError = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>`
	answerCutOff  = `<?xml version="1.0" encoding="UTF-8"?><CompleteMultipartUploadResult><Location>http://x/`
	answerGarbage = "<html><body>\x00\xff 502 bad gateway"
)

// sickness is one way in which a server or a network between is sick, for the
// files of one directory, whose name is the row's.
type sickness struct {
	name  string
	large bool // one file that goes as a multipart upload, else two small ones
	arm   func(p *s3test.Proxy, m s3test.Match) *s3test.Fault
	slow  bool // its end takes a minute: only in the thorough run
}

// answers is a sickness that answers n requests of op in the server's place.
func answers(op string, n, status int, code string) func(*s3test.Proxy, s3test.Match) *s3test.Fault {
	return func(p *s3test.Proxy, m s3test.Match) *s3test.Fault {
		m.Op, m.Times = op, n
		return p.Answer(m, status, code)
	}
}

// says is a sickness that answers n requests of op with a body of its own.
func says(op string, n int, act bool, status int, body string) func(*s3test.Proxy, s3test.Match) *s3test.Fault {
	return func(p *s3test.Proxy, m s3test.Match) *s3test.Fault {
		m.Op, m.Times = op, n
		return p.Say(m, act, status, body)
	}
}

// does is a sickness of the connection of n requests of op.
func does(op string, n int, fault func(*s3test.Proxy, s3test.Match) *s3test.Fault) func(*s3test.Proxy, s3test.Match) *s3test.Fault {
	return func(p *s3test.Proxy, m s3test.Match) *s3test.Fault {
		m.Op, m.Times = op, n
		return fault(p, m)
	}
}

func lose(p *s3test.Proxy, m s3test.Match) *s3test.Fault    { return p.Lose(m) }
func cut(p *s3test.Proxy, m s3test.Match) *s3test.Fault     { return p.Cut(m) }
func reset(p *s3test.Proxy, m s3test.Match) *s3test.Fault   { return p.Break(m) }
func shorten(p *s3test.Proxy, m s3test.Match) *s3test.Fault { return p.Truncate(m) }
func stall(p *s3test.Proxy, m s3test.Match) *s3test.Fault   { return p.Stall(m) }
func hold(p *s3test.Proxy, m s3test.Match) *s3test.Fault    { return p.Hold(m) }

// sicknesses lists them. Up to two times the request itself is sent again, beyond
// that it fails and the file is looked at again.
func sicknesses() []sickness {
	sent := 4
	if thorough {
		sent = 13
	}
	return []sickness{
		{name: "put-500-once", arm: answers("PutObject", 1, 500, "InternalError")},
		{name: "put-500", arm: answers("PutObject", sent, 500, "InternalError")},
		{name: "put-503", arm: answers("PutObject", sent, 503, "SlowDown")},
		{name: "put-429", arm: answers("PutObject", sent, 429, "TooManyRequests")},
		{name: "put-400-timeout", arm: answers("PutObject", sent, 400, "RequestTimeout")},
		{name: "put-409", arm: answers("PutObject", sent, 409, "ConditionalRequestConflict")},
		{name: "put-kms-throttled", arm: answers("PutObject", sent, 400, "KMS.ThrottlingException")},
		{name: "put-baddigest", arm: answers("PutObject", 1, 400, "BadDigest")},
		{name: "put-502-garbage", arm: says("PutObject", sent, false, 502, answerGarbage)},
		{name: "put-lost-once", arm: does("PutObject", 1, lose)},
		{name: "put-lost", arm: does("PutObject", 3, lose)},
		{name: "put-cut", arm: does("PutObject", sent, cut)},
		{name: "put-reset", arm: does("PutObject", sent, reset)},
		{name: "put-garbage-500-but-stored", arm: says("PutObject", 3, true, 500, answerGarbage)},
		{name: "head-500", arm: answers("HeadObject", sent, 500, "")},
		{name: "head-cut", arm: does("HeadObject", sent, cut)},
		{name: "create-500", large: true, arm: answers("CreateMultipartUpload", sent, 500, "InternalError")},
		{name: "create-garbage", large: true, arm: says("CreateMultipartUpload", sent, false, 200, answerGarbage)},
		{name: "create-lost", large: true, arm: does("CreateMultipartUpload", 3, lose)},
		{name: "create-truncated", large: true, arm: does("CreateMultipartUpload", 3, shorten)},
		{name: "part-500", large: true, arm: answers("UploadPart", sent, 500, "InternalError")},
		{name: "part-503", large: true, arm: answers("UploadPart", sent, 503, "SlowDown")},
		{name: "part-reset", large: true, arm: does("UploadPart", sent, reset)},
		{name: "part-lost", large: true, arm: does("UploadPart", sent, lose)},
		{name: "complete-200-with-error", large: true, arm: says("CompleteMultipartUpload", sent, false, 200, answerOfError)},
		{name: "complete-garbage", large: true, arm: says("CompleteMultipartUpload", sent, false, 200, answerGarbage)},
		{name: "complete-cut-off-but-done", large: true, arm: says("CompleteMultipartUpload", 3, true, 200, answerCutOff)},
		{name: "complete-lost", large: true, arm: does("CompleteMultipartUpload", 3, lose)},
		{name: "complete-409", large: true, arm: answers("CompleteMultipartUpload", sent, 409, "ConditionalRequestConflict")},
		{name: "put-never-answered", slow: true, arm: does("PutObject", 1, hold)},
		{name: "put-never-read", slow: true, arm: does("PutObject", 1, stall)},
		{name: "part-never-read", slow: true, large: true, arm: does("UploadPart", 1, stall)},
		{name: "head-never-answered", slow: true, arm: does("HeadObject", 1, hold)},
	}
}

// Every sickness at once, each for files of its own: whatever the server and the
// network do, in the end bucket, tree and trail agree, each upload is recorded
// once, and none of it is a failure that a person hears of.
func TestSickServersLoseNothing(t *testing.T) {
	t.Parallel()
	s := newFakeSite(t, "", "upload: {single_put_max: 5MiB, part_size: 5MiB}\nmanifest: {flush_interval: 1s, digest_interval: 1s}")
	armed := map[string]*s3test.Fault{}
	for _, row := range sicknesses() {
		if row.slow && !thorough {
			continue
		}
		armed[row.name] = row.arm(s.proxy, s3test.Match{Key: "/" + row.name + "/"})
		if row.large {
			random(t, s.path(filepath.Join(row.name, "large")), 11<<20, 7)
			continue
		}
		write(t, s.path(filepath.Join(row.name, "one")), row.name)
		write(t, s.path(filepath.Join(row.name, "two")), strings.Repeat(row.name, 1000))
	}
	// The trail is as sick as the data.
	for _, kind := range []string{"manifest_", "digest_"} {
		m := s3test.Match{Op: "PutObject", Key: "/_manifests/" + kind, Times: 4}
		armed[kind+"500"] = s.proxy.Answer(m, 500, "InternalError")
		m.Times, m.Skip = 3, 4
		armed[kind+"lost"] = s.proxy.Lose(m)
	}
	d, begin := s.daemon(t), time.Now()
	s.hasten(t, "every fault has happened and every file is there", func() bool {
		for _, f := range armed {
			if s.proxy.Fired(f) == 0 {
				return false
			}
		}
		return strings.Contains(metricsOf(t, d), `s3syncd_oldest_pending_timestamp_seconds{source="app"} 0`)
	})
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	postponed := 0
	for line := range strings.Lines(d.stderr.String()) {
		if strings.Contains(line, "postponed") && strings.Contains(line, `"level":"warn"`) {
			postponed++
		}
	}
	// A line each of what failed here and there and of what was throttled.
	if most := 4 * (int(time.Since(begin)/time.Minute) + 1); postponed < 1 || postponed > most {
		t.Errorf("%d warnings of looks that are tried again, want one of each kind a minute, %d at most", postponed, most)
	}
	tr := s.wantOnce(t)
	for _, r := range tr.records {
		if r.Status == "failed" {
			t.Errorf("a sickness that passes is recorded as a failure: %+v", r)
		}
	}
	if n := tr.count("uploaded"); n < len(armed)-4 {
		t.Errorf("%d uploads are recorded, want one at least for each of %d faults", n, len(armed)-4)
	}
	s.noUploads(t)
}

// noUploads fails for a multipart upload that was left behind. One whose number
// was in an answer that got lost cannot be known: the bucket's lifecycle rule is
// for those.
func (s *site) noUploads(t *testing.T) {
	t.Helper()
	for _, key := range s.fake.UploadKeys() {
		if !strings.Contains(key, "/create-lost/") && !strings.Contains(key, "/create-truncated/") {
			t.Errorf("a multipart upload of %s was left behind", key)
		}
	}
}

// hasten is eventually for what waits for many backoffs: they are cut short by
// asking for a rescan now and then. It has longer: a dozen of them, one after the
// other, and watchdogs of a minute add up where the processor is busy elsewhere.
func (s *site) hasten(t *testing.T, what string, ok func() bool) {
	t.Helper()
	asked := time.Now()
	within(t, 5*wait, what, func() bool {
		if ok() {
			return true
		}
		if time.Since(asked) > 2*time.Second {
			command(t, s.env, "rescan", "-c", s.file)
			asked = time.Now()
		}
		return false
	})
}

// refusal is one way in which everything is refused until a person acts.
type refusal struct {
	name   string
	class  string
	said   string // in the status
	status int
	code   string
	header []string
}

func refusals() []refusal {
	region := []string{"X-Amz-Bucket-Region", "eu-central-1"}
	return []refusal{
		{"denied", "configuration", "AccessDenied", 403, "AccessDenied", nil},
		{"key-disabled", "configuration", "KMS.DisabledException", 400, "KMS.DisabledException", nil},
		{"key-deleted", "configuration", "KMS.KMSInvalidStateException", 400, "KMS.KMSInvalidStateException", nil},
		{"key-unknown", "configuration", "KMS.NotFoundException", 400, "KMS.NotFoundException", nil},
		{"no-bucket", "configuration", "NoSuchBucket", 404, "NoSuchBucket", nil},
		{"locked", "configuration", "InvalidRequest", 400, "InvalidRequest", nil},
		{"expired", "credentials", "ExpiredToken", 400, "ExpiredToken", nil},
		{"unknown-credentials", "credentials", "InvalidAccessKeyId", 403, "InvalidAccessKeyId", nil},
		{"moved", "configuration", "PermanentRedirect", 301, "PermanentRedirect", region},
		{"wrong-region", "configuration", "AuthorizationHeaderMalformed", 400, "AuthorizationHeaderMalformed", region},
	}
}

// Every refusal at once, each for a source of its own: it parks that source and
// no other, costs a few requests and a few lines, shows in a gauge, and ends by
// itself when it is granted.
func TestRefusalsParkAndResume(t *testing.T) {
	t.Parallel()
	const files = 40
	s := newFakeSite(t, "", "")
	base := filepath.Dir(s.dir)
	var src strings.Builder
	fmt.Fprintf(&src, "- {name: good, path: %s, bucket: %s, prefix: good, kms_key_id: %q}\n", s.dir, s.bucket.bucket, s.key)
	faults := map[string][]*s3test.Fault{}
	rows := refusals()
	for _, row := range rows {
		fmt.Fprintf(&src, "- {name: %s, path: %s, bucket: %s, prefix: %s, kms_key_id: %q}\n",
			row.name, filepath.Join(base, row.name), s.bucket.bucket, row.name, s.key)
		for i := range files {
			write(t, filepath.Join(base, row.name, fmt.Sprintf("f%02d", i)), row.name)
		}
		for _, op := range []string{"PutObject", "GetObject", "HeadObject"} {
			if op == "HeadObject" && row.status == 404 {
				continue // A HEAD cannot say which of the two is missing.
			}
			m := s3test.Match{Op: op, Bucket: s.bucket.bucket, Prefix: row.name + "/", Times: -1}
			f := s.proxy.Answer(m, row.status, row.code, row.header...)
			f.MayRest()
			faults[row.name] = append(faults[row.name], f)
		}
	}
	write(t, s.file, yaml(s.proxy.URL, s.state, src.String(), ""))
	s.bucket.prefix = "good"
	d := s.daemon(t)
	write(t, s.path("f"), "content")
	eventually(t, "the good source and the parked ones", func() bool {
		_, page := d.get(t, "/metrics")
		for _, row := range rows {
			if !strings.Contains(page, fmt.Sprintf(`s3syncd_destination_state{source=%q,state="parked"} 1`, row.name)) ||
				!strings.Contains(page, fmt.Sprintf(`s3syncd_parked_files{class=%q,source=%q} %d`, row.class, row.name, files)) ||
				strings.Contains(page, fmt.Sprintf(`s3syncd_blocked_since_timestamp_seconds{class=%q,source=%q} 0`, row.class, row.name)) {
				return false
			}
		}
		return s.inBucket(t, "f", "content")
	})
	_, out, _ := command(t, s.env, "status", "-c", s.file)
	for _, row := range rows {
		sentence := ""
		for line := range strings.Lines(out) {
			if sentence == "" && strings.HasPrefix(line, row.name+": ") {
				sentence = line
			}
		}
		if !strings.Contains(sentence, row.said) || !strings.Contains(sentence, "next probe in") {
			t.Errorf("status says %q, want %s and the next probe", sentence, row.said)
		}
		if row.header != nil && !strings.Contains(out+d.stderr.String(), "eu-central-1") {
			t.Errorf("nothing names the bucket's region:\n%s", out)
		}
		warnings := 0
		for line := range strings.Lines(d.stderr.String()) {
			if strings.Contains(line, fmt.Sprintf(`"source":%q`, row.name)) && strings.Contains(line, `"level":"warn"`) {
				warnings++
			}
		}
		if warnings < 1 || warnings > 6 {
			t.Errorf("%s: %d warnings in the log, want one and not one for each of %d files", row.name, warnings, files)
		}
		fired := 0
		for _, f := range faults[row.name] {
			fired += s.proxy.Fired(f)
			s.proxy.Lift(f)
		}
		if fired < 1 || fired > 60 {
			t.Errorf("%s: %d requests were refused, want few", row.name, fired)
		}
	}
	if n := strings.Count(d.stderr.String(), `"msg":"ready"`); n != 1 {
		t.Errorf("the daemon was ready %d times", n)
	}
	for _, row := range rows {
		b := bucketView{client: s.bucket.client, bucket: s.bucket.bucket, prefix: row.name}
		eventually(t, row.name+" goes on", func() bool { return len(b.keys(t, false)) == files })
	}
	eventually(t, "no source is parked", func() bool {
		_, page := d.get(t, "/metrics")
		return !strings.Contains(page, `state="parked"} 1`) && !strings.Contains(page, `state="waiting"} 1`)
	})
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	for _, row := range rows {
		b := bucketView{client: s.bucket.client, bucket: s.bucket.bucket, prefix: row.name}
		tr := b.readTrail(t)
		b.wantTree(t, filepath.Join(base, row.name), &tr)
		for k, n := range tr.uploads() {
			if n != 1 {
				t.Errorf("%s is recorded %d times", k, n)
			}
		}
		failed := tr.count("failed")
		if failed < 1 || failed > 20 {
			t.Errorf("%s: %d failures in the trail, want those that met the refusal", row.name, failed)
		}
	}
}

// A server that slows everybody down gets fewer requests, and all of them again
// when it has recovered.
func TestSlowDownAtEveryRate(t *testing.T) {
	t.Parallel()
	rates, files := []int{10, 1}, 40
	if thorough {
		rates, files = []int{100, 10, 1}, 300
	}
	s := newFakeSite(t, "", "")
	d := s.daemon(t)
	for _, every := range rates {
		f := s.proxy.Answer(s3test.Match{Key: "app/", Times: -1, Every: every}, 503, "SlowDown")
		for i := range files {
			write(t, s.path(fmt.Sprintf("every%d/f%03d", every, i)), fmt.Sprint(every, i))
		}
		eventually(t, "some are slowed down", func() bool { return s.proxy.Fired(f) > 0 })
		if every == 1 {
			eventually(t, "the destination is left in peace", func() bool {
				_, page := d.get(t, "/metrics")
				return strings.Contains(page, `s3syncd_destination_state{source="app",state="waiting"} 1`)
			})
		}
		if every != 1 {
			s.hasten(t, "they all arrive all the same", func() bool {
				return strings.Contains(metricsOf(t, d), `s3syncd_oldest_pending_timestamp_seconds{source="app"} 0`) && s.count(t, fmt.Sprintf("every%d/", every)) == files
			})
		}
		s.proxy.Lift(f)
	}
	s.hasten(t, "everything", func() bool { return s.count(t, "every") == len(rates)*files })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.wantOnce(t)
	if n := tr.count("failed"); n != 0 {
		t.Errorf("%d failures in the trail, want none", n)
	}
}

func metricsOf(t *testing.T, d *process) string {
	t.Helper()
	_, page := d.get(t, "/metrics")
	return page
}

// count is how many objects there are below rel.
func (s *site) count(t *testing.T, rel string) int {
	t.Helper()
	n := 0
	for _, k := range s.bucket.keys(t, false) {
		if strings.HasPrefix(k, s.bucket.prefix+"/"+rel) {
			n++
		}
	}
	return n
}
