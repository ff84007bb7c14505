// Command bench does the same work with s3syncd and with other programs, in
// turn in one run, and writes down what it took: time, processor time, memory
// and requests. The server is MinIO, or a null server of its own that answers
// at once, keeps no content and counts requests.
//
//	bench -work a,e,f -results results.jsonl
//	bench -report docs/BENCHMARKS.md -plot docs/benchmarks.svg -results results.jsonl
//
// Results of several runs gather in one file, which the report reads. Nothing
// here decides whether a test passes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// record is one measurement, a line of the results.
type record struct {
	Work    string    `json:"work"`
	Server  string    `json:"server"`
	Program string    `json:"program"`
	Version string    `json:"version"`
	When    time.Time `json:"when"`
	Scale   float64   `json:"scale"`
	Load    float64   `json:"load"` // the machine's load average of the last minute, when the run had ended
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes"`
	usage
	Requests map[string]int64   `json:"requests,omitempty"`
	Values   map[string]float64 `json:"values,omitempty"` // what only this work has
	Failed   string             `json:"failed,omitempty"` // the run did not end well; nothing else counts
}

// options are the command line.
type options struct {
	works, programs, servers []string
	rounds                   int
	scale                    float64
	latency                  time.Duration
	limit                    time.Duration
	idle                     time.Duration
	settle                   time.Duration
	scratch                  string
	results                  string
	report, plot             string
	paths                    map[string]string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err) // Nowhere left to say so.
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.report != "" {
		return report(o)
	}
	return measure(ctx, o, out)
}

func parse(args []string) (options, error) {
	o := options{paths: map[string]string{}}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	list := func(p *[]string) func(string) error {
		return func(s string) error { *p = strings.Split(s, ","); return nil }
	}
	o.works, o.servers = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}, []string{"null", "minio"}
	fs.Func("work", "`letters` of what to do, with commas: a to i (default all)", list(&o.works))
	fs.Func("programs", "`names` of the programs that take part, with commas (default all that are found)", list(&o.programs))
	fs.Func("servers", "`names` of the servers that a, c and d run on: null,minio (default both)", list(&o.servers))
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is done, all programs in turn")
	fs.Float64Var(&o.scale, "scale", 1, "a `factor` for numbers of files, and for bytes in c and d")
	fs.DurationVar(&o.latency, "latency", 20*time.Millisecond, "of each request in b")
	fs.DurationVar(&o.limit, "limit", 15*time.Minute, "after this one program's run is ended and noted as failed")
	fs.DurationVar(&o.idle, "idle", time.Minute, "how long h looks on")
	fs.DurationVar(&o.settle, "settle", 500*time.Millisecond, "s3syncd's settle in g")
	fs.StringVar(&o.scratch, "scratch", "", "an existing `directory` for trees and data (default: the system's)")
	fs.StringVar(&o.results, "results", "bench-results.jsonl", "the `file` that results are appended to")
	fs.StringVar(&o.report, "report", "", "measure nothing; write the results into this Markdown `file`, between its marks")
	fs.StringVar(&o.plot, "plot", "", "with -report: the SVG `file` to write")
	fs.Func("path", "NAME=PATH of a program: s3syncd, minio, rclone, mc, aws, s3cmd, script (a python3 with boto3), lsyncd", func(s string) error {
		name, path, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("NAME=PATH is needed")
		}
		o.paths[name] = path
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return o, fmt.Errorf("command line: %w", err)
	}
	return o, o.check(fs.Args())
}

// check fails for what cannot be done, before hours are spent.
func (o options) check(rest []string) error {
	for _, w := range o.works {
		if len(w) != 1 || w < "a" || w > "i" {
			return fmt.Errorf("-work %q: letters from a to i with commas are needed", w)
		}
	}
	for _, s := range o.servers {
		if s != "null" && s != "minio" {
			return fmt.Errorf("-servers %q: null and minio are known", s)
		}
	}
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case o.rounds < 1:
		return fmt.Errorf("-rounds %d: at least 1 is needed", o.rounds)
	case !(o.scale > 0):
		return fmt.Errorf("-scale %v: a number above 0 is needed", o.scale)
	}
	return nil
}

// bench is one run.
type bench struct {
	o        options
	out      io.Writer
	dir      string
	programs []*contestant
}

// measure does the works and appends their results.
func measure(ctx context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp(o.scratch, "s3b-") // Short: a socket is made below it.
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{o: o, out: out, dir: dir}
	for _, c := range contestants(ctx, o.paths) {
		switch {
		case o.programs != nil && !slices.Contains(o.programs, c.name):
		case c.path == "":
			b.say("%s: missing, left out", c.name)
		default:
			b.say("%s: %s, %s", c.name, c.version, c.path)
			b.programs = append(b.programs, c)
		}
	}
	for _, w := range b.works() {
		if !slices.Contains(o.works, w.letter) {
			continue
		}
		b.say("%s: %s", w.letter, w.title)
		if err := w.run(ctx, w); err != nil {
			return fmt.Errorf("%s: %w", w.letter, err)
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, format+"\n", args...) // Progress only.
}

// save appends a result.
func (b *bench) save(r record) error {
	r.When, r.Scale, r.Load = time.Now().UTC().Truncate(time.Second), b.o.scale, loadAverage()
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("result: %w", err)
	}
	f, err := os.OpenFile(b.o.results, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	b.say("  %-8s %-6s wall %8.3f s  cpu %8.3f s  rss %6.0f MiB  anon %6.0f MiB  %v %v %s",
		r.Program, r.Server, r.Wall, r.CPU, r.RSS, r.Anon, r.Requests, r.Values, r.Failed)
	return nil
}

// loadAverage is that of the last minute, 0 where the system does not tell.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}

// scaled is n by the factor of the command line, at least 1.
func (b *bench) scaled(n int64) int64 { return max(1, int64(float64(n)*b.o.scale)) }

// fresh is a new directory.
func (b *bench) fresh(name string) (string, error) {
	d := filepath.Join(b.dir, name)
	if err := errors.Join(os.RemoveAll(d), os.MkdirAll(d, 0o700)); err != nil {
		return "", fmt.Errorf("scratch directory: %w", err)
	}
	return d, nil
}
