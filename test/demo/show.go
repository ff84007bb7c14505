package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// printer writes for a person and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *printer) title(format string, args ...any) { p.line("\n── "+format, args...) }

// play is the demo's story, up to the point where it only watches.
func (s *stage) play(ctx context.Context, p *printer) error {
	p.line("MinIO on http://%s with the KMS key %q; bucket %q.", s.bucket.endpoint, keyName, bucketName)
	if err := s.until(ctx, "the daemon to be ready", s.ready); err != nil {
		return err
	}
	p.line("s3syncd run watches %s.", s.data)

	p.title("Five files are written")
	begun := time.Now()
	if err := writeSamples(s.data); err != nil {
		return err
	}
	if err := s.until(ctx, "the files to be in the bucket", s.have(samples())); err != nil {
		return err
	}
	p.line("all in the bucket after %v (settle: 500ms).", time.Since(begun).Round(time.Millisecond))
	if err := s.showObjects(ctx, p); err != nil {
		return err
	}

	p.title("A populated directory is moved in")
	begun = time.Now()
	if err := moveIn(s.data); err != nil {
		return err
	}
	if err := s.until(ctx, "the moved directory to be in the bucket", s.have([]string{"moved/in/a.txt", "moved/in/b.txt"})); err != nil {
		return err
	}
	p.line("its files are in the bucket after %v, without a rescan.", time.Since(begun).Round(time.Millisecond))

	if err := s.showManifest(ctx, p); err != nil {
		return err
	}
	return s.showAdmin(ctx, p)
}

// samples names the files that the demo writes, below the watched directory.
func samples() []string {
	return []string{"empty", "orders/2026-01.csv", "orders/2026-02.csv", "reports/été, final (2).txt", "reports/scan.bin"}
}

func writeSamples(dir string) error {
	contents := [][]byte{
		{},
		[]byte("id,total\n1,9.90\n2,12.00\n"), []byte("id,total\n3,4.50\n"),
		[]byte("Names keep their spaces, commas and accents.\n"), bytes.Repeat([]byte("s3syncd "), 128<<10),
	}
	for i, name := range samples() {
		if err := write(filepath.Join(dir, name), contents[i]); err != nil {
			return err
		}
	}
	return nil
}

// moveIn builds a directory beside the watched one and renames it into it.
func moveIn(dir string) error {
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for _, name := range []string{"in/a.txt", "in/b.txt"} {
		if err := write(filepath.Join(outside, name), []byte("moved in: "+name+"\n")); err != nil {
			return err
		}
	}
	return os.Rename(outside, filepath.Join(dir, "moved"))
}

func write(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("sample directory: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("sample file: %w", err)
	}
	return nil
}

// have returns a check that the files are in the bucket.
func (s *stage) have(names []string) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, name := range names {
			if _, err := s.bucket.head(ctx, prefix+name); err != nil {
				return err
			}
		}
		return nil
	}
}

// showObjects prints each object with its encryption, and why its ETag says
// nothing about its content.
func (s *stage) showObjects(ctx context.Context, p *printer) error {
	keys, err := s.bucket.keys(ctx)
	if err != nil {
		return err
	}
	for _, key := range keys {
		o, err := s.bucket.head(ctx, key)
		if err != nil {
			return err
		}
		p.line("  %s", key)
		p.line("    %d bytes, %s under %s", aws.ToInt64(o.ContentLength), o.ServerSideEncryption, aws.ToString(o.SSEKMSKeyId))
		p.line("    md5checksum %s   ETag %s (not an MD5)", o.Metadata["md5checksum"], strings.Trim(aws.ToString(o.ETag), `"`))
	}
	return nil
}

var errNoManifest = errors.New("no manifest names the moved files yet")

// showManifest waits for the manifest with the moved files and prints it.
func (s *stage) showManifest(ctx context.Context, p *printer) error {
	var key string
	var data []byte
	err := s.until(ctx, "the manifest", func(ctx context.Context) error {
		keys, err := s.bucket.manifests(ctx)
		if err != nil {
			return err
		}
		for _, key = range keys {
			if data, err = s.bucket.get(ctx, key); err != nil {
				return err
			}
			if bytes.Contains(data, []byte("moved/in/b.txt")) {
				return nil
			}
		}
		return errNoManifest
	})
	if err != nil {
		return err
	}
	return printManifest(p, key, data)
}

// printManifest prints the first record in full and the others in brief.
func printManifest(p *printer, key string, data []byte) error {
	var records []json.RawMessage
	if err := json.Unmarshal(data, &records); err != nil {
		return fmt.Errorf("manifest %s: %w", key, err)
	}
	p.title("Its manifest: %s", key)
	for i, record := range records {
		var full bytes.Buffer
		var brief outcome
		err := errors.Join(json.Indent(&full, record, "", "  "), json.Unmarshal(record, &brief))
		switch {
		case err != nil:
			return fmt.Errorf("manifest %s: %w", key, err)
		case i == 0:
			p.line("%s", full.String())
		default:
			p.line("{ … %s %s … }", brief.Status, brief.Key)
		}
	}
	return nil
}

// outcome is what the demo reads of a record.
type outcome struct {
	Status string `json:"status"`
	Key    string `json:"s3_key"`
}

// ready asks the daemon whether it watches.
func (s *stage) ready(ctx context.Context) error {
	_, err := s.ask(ctx, "/-/ready")
	return err
}

// ask gets one page of the admin listener.
func (s *stage) ask(ctx context.Context, path string) (body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask the daemon: %w", err)
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask the daemon: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, strings.TrimSpace(string(b)))
	}
	return string(b), err
}

// showAdmin prints readiness and the metrics that tell the story.
func (s *stage) showAdmin(ctx context.Context, p *printer) error {
	ready, err := s.ask(ctx, "/-/ready")
	if err != nil {
		return err
	}
	metrics, err := s.ask(ctx, "/metrics")
	if err != nil {
		return err
	}
	p.title("http://%s/-/ready says %q; from /metrics:", s.admin, strings.TrimSpace(ready))
	for line := range strings.Lines(metrics) {
		for _, name := range []string{
			"s3syncd_files_total", "s3syncd_bytes_uploaded_total", "s3syncd_indexed_files",
			"s3syncd_oldest_pending_timestamp_seconds", "s3syncd_encryption_mismatches_total",
			"s3syncd_manifest_flushes_total", "s3syncd_manifest_sequence",
		} {
			if strings.HasPrefix(line, name+"{") {
				p.line("  %s", strings.TrimSpace(line))
			}
		}
	}
	return nil
}

// watch prints the manifests that appear, for so many seconds or until ctx ends.
func (s *stage) watch(ctx context.Context, p *printer, seconds int) {
	p.title("Still watching. Try it:  echo hello > %s/hello.txt", s.data)
	if seconds >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
		defer cancel()
		p.line("This run ends by itself after %d s.", seconds)
	} else {
		p.line("Ctrl-C ends the daemon, MinIO, and removes every file of the demo.")
	}
	seen := map[string]bool{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for first := true; ; first = false {
		s.news(ctx, p, seen, first)
		select {
		case <-ctx.Done():
			p.line("\nStopping: the daemon publishes its last manifest.")
			return
		case <-s.daemon.ended():
			p.line("s3syncd ended:\n%s", s.daemon.tail())
			return
		case <-tick.C:
		}
	}
}

// news prints the outcomes of manifests that were not there before.
func (s *stage) news(ctx context.Context, p *printer, seen map[string]bool, quiet bool) {
	keys, err := s.bucket.manifests(ctx)
	if err != nil {
		return // Asked again in a second.
	}
	for _, key := range keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		data, err := s.bucket.get(ctx, key)
		var records []outcome
		if quiet || err != nil || json.Unmarshal(data, &records) != nil {
			continue
		}
		for _, r := range records {
			p.line("  %-8s %s", r.Status, r.Key)
		}
	}
}
