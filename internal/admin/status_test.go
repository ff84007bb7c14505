package admin

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func at(s string) *time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return &t
}

// sample is a Status with every field set, and one as empty as it gets.
func sample() Status {
	return Status{
		Format: StatusFormat, Time: *at("2026-03-02T09:14:05Z"), Instance: "app-01", Version: "1.0.0", Revision: "abc123", PID: 4711,
		StartedAt: *at("2026-02-27T05:14:05Z"), State: "ready", Current: false,
		Sources: []SourceStatus{
			{
				Name: "app-data", State: StateParked, Reason: "kms:GenerateDataKey denied", Since: at("2026-03-02T02:14:00Z"),
				Sentence: "app-data: behind since 02:14:00Z: kms:GenerateDataKey denied; 8,412 waiting; next probe in 40 s",
				Path:     "/opt/app/data", Bucket: "my-company-data", Prefix: "backups/app-01/app-data",
				Available: true, DeletesWithheld: true,
				Destination: Destination{
					State: "parked", Class: "configuration", Error: "PutObject: AccessDenied (403): not authorized to perform: kms:GenerateDataKey",
					Since: at("2026-03-02T02:14:00Z"), NextProbe: at("2026-03-02T09:14:45Z"),
				},
				Queue:    Queue{Settling: 12, Queued: 8396, InFlight: 2, Delayed: 2, Total: 8412, Oldest: at("2026-03-02T02:13:51Z")},
				Indexed:  Indexed{Files: 1203114, Bytes: 123456789012},
				Outcomes: map[string]int64{"uploaded": 1203, "failed": 3}, Parked: map[string]int64{"file": 2, "conflict": 1},
				InFlight: []InFlight{
					{Name: NewName("big.bin"), Size: 1 << 30, Sent: 1 << 28, Phase: "send", StartedAt: *at("2026-03-02T09:13:05Z")},
					{Name: NewName("bad\x1b]0;x\a\n\xff"), Size: 0, Phase: "hash", StartedAt: *at("2026-03-02T09:14:04Z")},
				},
				Failures: []Failure{{
					Name: NewName("orders/" + strings.Repeat("x", 200)), Class: "file", Error: "open: permission denied",
					FirstAt: *at("2026-03-02T01:00:00Z"), LastAt: *at("2026-03-02T09:00:00Z"), Count: 33, ResolvedAt: at("2026-03-02T09:10:00Z"),
					Advice: Advice("file", "open: permission denied"),
				}},
				LastOutcomes: []Outcome{{Name: NewName("orders/1"), Status: "uploaded", Size: 4096, At: *at("2026-03-02T02:09:58Z")}},
				Trail: Trail{
					Chain: "c2ea2e8f", Sequence: 17, LastManifest: "backups/app-01/app-data/_manifests/m.json", LastManifestAt: at("2026-03-02T02:10:00Z"),
					LastDigest: "backups/app-01/app-data/_manifests/d.json", LastDigestAt: at("2026-03-02T02:10:00Z"),
					LastDigestSHA256: strings.Repeat("0a", 32), Signing: true, UnsignedDigests: 1,
					UnpublishedRecords: 3, WaitingDocuments: 2, Error: "publish: AccessDenied", ErrorSince: at("2026-03-02T02:15:00Z"),
				},
				LastScan: &Scan{
					Trigger: "rescan", StartedAt: *at("2026-03-02T09:00:00Z"), EndedAt: *at("2026-03-02T09:00:09Z"), Complete: false,
					Files: 1203114, New: 1, Changed: 2, Gone: 3, Unreadable: 4, Error: "the root changed",
				},
				Watched: 20111, Polled: 2, Busy: []BusyDirectory{{Name: NewName(""), Events: 12345, Window: 600}, {Name: NewName("tmp"), Events: 9, Window: 600}},
			},
			{
				Name: "logs", State: StateCurrent, Sentence: "logs: current", Path: "/var/log/app", Bucket: "b", Available: true,
				Destination: Destination{State: "ok"}, Outcomes: map[string]int64{}, Parked: map[string]int64{},
				InFlight: []InFlight{}, Failures: []Failure{}, LastOutcomes: []Outcome{}, Busy: []BusyDirectory{},
			},
		},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s, which others rely on; got:\n%s", file, got)
	}
}

func TestStatusJSONKeepsItsForm(t *testing.T) {
	s := sample()
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", append(b, '\n'))
	var back Status
	if err := json.Unmarshal(b, &back); err != nil || back.Sources[0].InFlight[1].Quoted() != `"bad\x1b]0;x\a\n\xff"` {
		t.Errorf("read back: %v, name %s", err, back.Sources[0].InFlight[1].Quoted())
	}
}

func TestStatusTextIsPlainLines(t *testing.T) {
	s := sample()
	var b bytes.Buffer
	if err := s.Text(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", b.Bytes())
	if strings.ContainsFunc(b.String(), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == '\uFFFD' }) {
		t.Errorf("the text has control characters: %q", b.String())
	}
	for line := range strings.Lines(b.String()) {
		if len([]rune(line)) > 200 {
			t.Errorf("a line of %d characters: %s", len([]rune(line)), line)
		}
	}
}

func TestNumbersReadWell(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 8412: "8,412", 1234567: "1,234,567", -1000: "-1,000", -999: "-999"} {
		if got := Count(n); got != want {
			t.Errorf("Count(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 40 * time.Second: "40 s", 90 * time.Second: "1 min", 3*time.Hour + 5*time.Minute: "3 h 5 min", 76 * time.Hour: "3 d 4 h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
	if got := Plain("a\x1b[1m\n\"é\" "+strings.Repeat("x", 50), 20); got != `a\x1b[1m\n"é" xxxxx…` {
		t.Errorf("Plain = %q", got)
	}
}

func TestStatusOfAStartSaysSoFirst(t *testing.T) {
	now := time.Now()
	var b strings.Builder
	s := Status{Time: now, StartedAt: now.Add(-14 * time.Second), State: "starting"}
	if err := s.Text(&b); err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(b.String(), "\n"); first != "starting for 14 s: no source is in use yet" {
		t.Errorf("first line %q", first)
	}
}
