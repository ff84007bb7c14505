package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// answered is what a server said.
type answered struct {
	status int
	header http.Header
	length int64
	body   string
}

// nullForTest is a null server and a function that sends it one request.
func nullForTest(t *testing.T) (*nullServer, func(method, path, body string, header ...string) answered) {
	t.Helper()
	n, err := newNullServer(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.close() })
	return n, func(method, path, body string, header ...string) answered {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, n.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return answered{resp.StatusCode, resp.Header, resp.ContentLength, string(b)}
	}
}

func TestNullServerAnswersLikeS3(t *testing.T) {
	n, do := nullForTest(t)
	sum := md5.Sum([]byte("hello"))
	right := base64.StdEncoding.EncodeToString(sum[:])
	for _, c := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
	}{
		{"an absent object", "HEAD", "/b/k", "", nil, 404},
		{"a body that is not what its digest says", "PUT", "/b/k", "hullo", []string{"Content-Md5", right}, 400},
		{"which left nothing", "HEAD", "/b/k", "", nil, 404},
		{"an object", "PUT", "/b/k", "hello", []string{
			"Content-Md5", right, "X-Amz-Meta-A", "1", "X-Amz-Server-Side-Encryption", "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "key",
		}, 200},
		{"one that is there already", "PUT", "/b/k", "hello", []string{"If-None-Match", "*"}, 412},
		{"one that is another", "PUT", "/b/k", "hello", []string{"If-Match", `"00"`}, 412},
		{"the same", "PUT", "/b/k", "hello", []string{
			"If-Match", fmt.Sprintf(`"%x"`, sum), "X-Amz-Meta-A", "1", "X-Amz-Server-Side-Encryption", "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "key",
		}, 200},
		{"a part of no upload", "PUT", "/b/k?uploadId=x&partNumber=1", "hello", nil, 404},
	} {
		if got := do(c.method, c.path, c.body, c.header...); got.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, got.status, c.status, got.body)
		}
	}
	head := do("HEAD", "/b/k", "")
	for k, want := range map[string]string{
		"Content-Length": "5", "X-Amz-Meta-A": "1", "X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "arn:aws:kms:key",
	} {
		if got := head.header.Get(k); got != want {
			t.Errorf("HEAD says %s %q, want %q", k, got, want)
		}
	}
	want := map[string]int64{"HEAD": 3, "PUT": 5, "part": 1}
	if got := n.count(); !maps.Equal(got, want) {
		t.Errorf("requests = %v, want %v", got, want)
	}
}

func TestNullServerTakesMultipartUploads(t *testing.T) {
	n, do := nullForTest(t)
	n.watch()
	var created struct {
		UploadID string `xml:"UploadId"`
	}
	if err := xml.Unmarshal([]byte(do("POST", "/b/big?uploads", "").body), &created); err != nil || created.UploadID == "" {
		t.Fatalf("%+v: %v", created, err)
	}
	for part := range 2 {
		do("PUT", fmt.Sprintf("/b/big?uploadId=%s&partNumber=%d", created.UploadID, part+1), strings.Repeat("x", 2000))
	}
	if _, ok := n.arrival("big"); ok {
		t.Error("an upload that is not complete has arrived")
	}
	do("POST", "/b/big?uploadId="+created.UploadID, "<CompleteMultipartUpload/>")
	if got := do("HEAD", "/b/big", ""); got.length != 4000 {
		t.Errorf("the object has %d bytes, want 4000", got.length)
	}
	if _, ok := n.arrival("big"); !ok {
		t.Error("a complete upload has not arrived")
	}
}

// What a client sees that lists page by page.
func TestNullServerLists(t *testing.T) {
	_, do := nullForTest(t)
	for i := range 1100 {
		do("PUT", fmt.Sprintf("/b/p/%d/k%04d", i%2, i), "x")
	}
	do("PUT", "/b/other", "x")
	list := func(query string) (keys, commons []string) {
		for token := ""; ; {
			var page struct {
				Contents []struct {
					Key string `xml:"Key"`
				} `xml:"Contents"`
				CommonPrefixes []struct {
					Prefix string `xml:"Prefix"`
				} `xml:"CommonPrefixes"`
				Next string `xml:"NextContinuationToken"`
			}
			if err := xml.Unmarshal([]byte(do("GET", "/b?list-type=2&"+query+token, "").body), &page); err != nil {
				t.Fatal(err)
			}
			for _, c := range page.Contents {
				keys = append(keys, c.Key)
			}
			for _, c := range page.CommonPrefixes {
				commons = append(commons, c.Prefix)
			}
			if page.Next == "" {
				return keys, commons
			}
			token = "&continuation-token=" + page.Next
		}
	}
	if keys, _ := list("prefix=p/"); len(keys) != 1100 || !slices.IsSorted(keys) || len(slices.Compact(keys)) != 1100 {
		t.Errorf("%d keys, want 1100 in order, each once", len(keys))
	}
	keys, commons := list("prefix=p/&delimiter=/")
	if len(keys) != 0 || !slices.Equal(commons, []string{"p/0/", "p/1/"}) {
		t.Errorf("with a delimiter: %v and %v, want p/0/ and p/1/", keys, commons)
	}
}

func TestMixedTreeHasItsSizeAndChangesAreSeen(t *testing.T) {
	tr, err := mixedTree(t.TempDir(), 3<<20)
	if err != nil || tr.bytes != 3<<20 || len(tr.files) < 2 {
		t.Fatalf("%d files, %d bytes, %v", len(tr.files), tr.bytes, err)
	}
	first := filepath.Join(tr.dir, tr.files[0])
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	n, err := tr.change(0)
	if err != nil || n != (len(tr.files)+99)/100 {
		t.Errorf("change = %d, %v, want every hundredth of %d", n, err, len(tr.files))
	}
	if after, err := os.ReadFile(first); err != nil || len(after) != len(before)+1 {
		t.Errorf("the first file has %d bytes, %v, want one more than %d", len(after), err, len(before))
	}
}

const someResults = `{"work":"a","server":"null","program":"rclone","version":"v1.76.0","files":20000,"bytes":81920000,"load":2.5,"wall_s":10,"cpu_s":8,"rss_mib":80,"anon_mib":30,"requests":{"HEAD":20000,"PUT":20000,"LIST":1}}
{"work":"a","server":"null","program":"s3syncd","version":"unknown","files":20000,"bytes":81920000,"wall_s":9,"cpu_s":4,"rss_mib":40,"anon_mib":20,"requests":{"PUT":20000,"trail":9}}
{"work":"a","server":"null","program":"s3syncd","version":"unknown","files":20000,"bytes":81920000,"wall_s":7,"cpu_s":3,"rss_mib":40,"anon_mib":20,"requests":{"PUT":20000,"trail":9}}
{"work":"a","server":"null","program":"s3syncd","version":"unknown","files":20000,"bytes":81920000,"wall_s":8,"cpu_s":5,"rss_mib":40,"anon_mib":20,"requests":{"PUT":20000,"trail":9}}
{"work":"a","server":"null","program":"aws","version":"2.9.19","files":20000,"bytes":81920000,"wall_s":1,"failed":"not done after 1s"}
{"work":"g-500","server":"null","program":"s3syncd","files":100,"bytes":102400,"values":{"settle_ms":500,"median_ms":511,"p99_ms":520,"max_ms":530}}
`

func TestReportSaysWhatWasMeasured(t *testing.T) {
	groups, err := gather([]byte(someResults))
	if err != nil {
		t.Fatal(err)
	}
	got := render(groups)
	for _, want := range []string{
		"Beside s3syncd: rclone v1.76.0, aws 2.9.19.\nMissing: mc, s3cmd, script, lsyncd.\nLoad average of the machine at the end of each run, least, median and most: 2.5, 2.5, 2.5.\n",
		"| (a), 20,000 files, null | wall time ≤ 0.8× the best peer's | 0.80× (8.00 s, rclone 10.00 s) | yes |\n",
		"| (a), 20,000 files, null | processor time ≤ 0.5× the best peer's | 0.50× (4.00 s, rclone 8.00 s) | yes |\n",
		"| (g), 100 files, null | median ≤ settle + 10 ms | settle + 11.0 ms | **no** |\n",
		"| s3syncd | 8.00 s (7.00 s to 9.00 s, n=3) | 1.00× | 4.00 s | 40 MiB | 20 MiB | 20,000 PUT, 9 trail |\n| rclone | 10.00 s (10.00 s to 10.00 s, n=1) | 1.25× |",
		"| aws | failed: not done after 1s |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks\n%s\nin\n%s", want, got)
		}
	}
	var drawn struct {
		Bars []struct {
			Width string `xml:"width,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(plot(groups)), &drawn); err != nil || len(drawn.Bars) != 2 {
		t.Errorf("the plot is not an SVG of two bars: %v\n%s", err, plot(groups))
	}
}

func TestReportLeavesTheRestOfTheDocument(t *testing.T) {
	dir := t.TempDir()
	o := options{results: filepath.Join(dir, "r.jsonl"), report: filepath.Join(dir, "d.md"), plot: filepath.Join(dir, "p.svg")}
	for path, text := range map[string]string{o.results: someResults, o.report: "before\n" + beginMark + "\nold\n" + endMark + "\nafter\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // A report replaces the one before.
		if err := report(o); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := os.ReadFile(o.report)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(doc, []byte("before\n"+beginMark+"\n")) || !bytes.HasSuffix(doc, []byte("\n"+endMark+"\nafter\n")) ||
		bytes.Contains(doc, []byte("old")) || bytes.Count(doc, []byte("Beside s3syncd")) != 1 {
		t.Errorf("the document is\n%s", doc)
	}
	if _, err := between([]byte("no marks"), nil); err == nil {
		t.Error("a document without marks is taken")
	}
}

func TestUsageIsTheChildsAndFailuresAreTold(t *testing.T) {
	c, err := startChild(t.Context(), command{program: "/bin/sh", args: []string{"-c", "echo said; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := c.wait()
	if err == nil || !strings.Contains(err.Error(), "said") || u.Wall <= 0 {
		t.Errorf("wait = %+v, %v, want an error with what the program said", u, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if c, err = startChild(ctx, command{program: "/bin/sh", args: []string{"-c", "exec sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	c.stop()
}

func TestBadCommandLinesAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"-work", "z"}, {"-servers", "aws"}, {"-rounds", "0"}, {"-scale", "0"}, {"-scale", "NaN"}, {"-path", "mc"}, {"rest"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
