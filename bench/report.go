package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// The report stands between these lines of the document.
const (
	beginMark = "<!-- bench: begin -->"
	endMark   = "<!-- bench: end -->"
)

// group is all measurements of one work on one server at one size.
type group struct {
	work, server string
	files        int
	bytes        int64
	programs     []*program // as the results name them first
}

// program is what one program took in one group.
type program struct {
	name, version string
	runs          []record // that ended well
	failed        string   // of the last run that did not
}

// report writes the results into the document, and the plot.
func report(o options) error {
	f, err := os.ReadFile(o.results)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	groups, err := gather(f)
	if err != nil {
		return fmt.Errorf("results %s: %w", o.results, err)
	}
	doc, err := os.ReadFile(o.report)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if doc, err = between(doc, []byte(render(groups))); err != nil {
		return fmt.Errorf("report %s: %w", o.report, err)
	}
	err = replace(o.report, doc)
	if err == nil && o.plot != "" {
		err = replace(o.plot, []byte(plot(groups)))
	}
	return err
}

// replace writes a file whole or not at all.
func replace(path string, data []byte) error {
	p, err := safefs.CreatePending(path, 0o644)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer p.Close()
	if _, err := p.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return p.Commit()
}

// between puts text between the marks of doc.
func between(doc, text []byte) ([]byte, error) {
	head, rest, ok := bytes.Cut(doc, []byte(beginMark))
	_, tail, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return nil, fmt.Errorf("the lines %s and %s are needed", beginMark, endMark)
	}
	return slices.Concat(head, []byte(beginMark+"\n\n"), text, []byte("\n"+endMark), tail), nil
}

// gather reads results, and orders them by work.
func gather(results []byte) ([]*group, error) {
	var groups []*group
	for line := range bytes.Lines(results) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("read %q: %w", line, err)
		}
		i := slices.IndexFunc(groups, func(g *group) bool {
			return g.work == r.Work && (g.server == r.Server || r.Server == "none") && g.files == r.Files && g.bytes/kib == r.Bytes/kib
		})
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{work: r.Work, server: strings.Replace(r.Server, "none", "null", 1), files: r.Files, bytes: r.Bytes})
		}
		groups[i].add(r)
	}
	if len(groups) == 0 {
		return nil, errors.New("there are none")
	}
	slices.SortStableFunc(groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.work, b.work), -cmp.Compare(a.server, b.server), -cmp.Compare(a.files, b.files))
	})
	for _, g := range groups {
		slices.SortStableFunc(g.programs, func(a, b *program) int { return cmp.Compare(b.rank(), a.rank()) })
	}
	return groups, nil
}

// rank puts this project's program first and find last.
func (p *program) rank() int {
	switch p.name {
	case ours:
		return 3
	case oursCounting:
		return 2
	case "find":
		return 0
	default:
		return 1
	}
}

func (g *group) add(r record) {
	p := g.program(r.Program)
	if p == nil {
		p = &program{name: r.Program, version: r.Version}
		g.programs = append(g.programs, p)
	}
	if r.Failed != "" {
		p.failed = r.Failed
		return
	}
	p.runs = append(p.runs, r)
}

func (g *group) program(name string) *program {
	for _, p := range g.programs {
		if p.name == name {
			return p
		}
	}
	return nil
}

// best is the smallest median of the peers that do this work; ok is false when
// there are none.
func (g *group) best(of func(record) float64) (name string, value float64, ok bool) {
	for _, p := range g.programs {
		if p.name == ours || p.name == oursCounting || p.name == "find" || len(p.runs) == 0 {
			continue
		}
		if m := p.median(of); !ok || m < value {
			name, value, ok = p.name, m, true
		}
	}
	return name, value, ok
}

// median of what of says of each run.
func (p *program) median(of func(record) float64) float64 {
	v := p.sorted(of)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (p *program) sorted(of func(record) float64) []float64 {
	var v []float64
	for _, r := range p.runs {
		v = append(v, of(r))
	}
	slices.Sort(v)
	return v
}

func wall(r record) float64 { return r.Wall }
func cpu(r record) float64  { return r.CPU }
func rss(r record) float64  { return r.RSS }
func anon(r record) float64 { return r.Anon }

func value(name string) func(record) float64 {
	return func(r record) float64 { return r.Values[name] }
}

// render is the report.
func render(groups []*group) string {
	var b strings.Builder
	b.WriteString(versions(groups))
	b.WriteString("\n" + goalTable(groups))
	for _, g := range groups {
		switch {
		case g.work == "0":
		case strings.HasPrefix(g.work, "g-"):
			g.eventTable(&b)
		case g.work == "h":
			g.idleTable(&b)
		case g.work == daemonWork:
			g.daemonTable(&b)
		default:
			g.table(&b)
		}
	}
	return b.String()
}

// versions names all programs, and those that did not take part.
func versions(groups []*group) string {
	seen := map[string]string{}
	for _, g := range groups {
		for _, p := range g.programs {
			if p.version != "" {
				seen[p.name] = p.version
			}
		}
	}
	var with, without []string
	for _, n := range []string{"rclone", "mc", "aws", "s3cmd", "script", "lsyncd"} {
		switch v, ok := seen[n]; {
		case !ok:
			without = append(without, n)
		case n == "script":
			with = append(with, "script (boto3 "+v+")")
		default:
			with = append(with, n+" "+v)
		}
	}
	s := "Beside s3syncd: " + strings.Join(with, ", ") + ".\n"
	if len(without) > 0 {
		s += "Missing: " + strings.Join(without, ", ") + ".\n"
	}
	return s + loads(groups)
}

// loads says how busy the machine was, without which times say nothing.
func loads(groups []*group) string {
	var all []float64
	for _, g := range groups {
		for _, p := range g.programs {
			all = append(all, p.sorted(func(r record) float64 { return r.Load })...)
		}
	}
	slices.Sort(all)
	all = slices.DeleteFunc(all, func(l float64) bool { return l == 0 })
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf("Load average of the machine at the end of each run, least, median and most: %.1f, %.1f, %.1f.\n", all[0], all[len(all)/2], all[len(all)-1])
}

func title(g *group) string {
	server := map[string]string{"null": "null server", "minio": "MinIO"}[g.server]
	what := map[string]string{
		"a": "first upload of small files", "b": "the same, each request takes longer", "c": "first upload of large files",
		"d": "first upload of mixed data", "e": "nothing has changed", "f": "1% of the files have changed",
		"g-1": "event to object, one file after another", "g-500": "event to object, 500 files a second",
		"h": "idle", "i": "nothing has changed", daemonWork: "the daemon's start",
	}[g.work]
	return fmt.Sprintf("\n### (%s) %s: %s files, %s, %s\n\n", g.work[:1], what, thousands(int64(g.files)), size(g.bytes), server)
}

// table is that of a work that ends.
func (g *group) table(b *strings.Builder) {
	b.WriteString(title(g))
	b.WriteString("| program | wall time: median (least to most) | beside s3syncd | processor time | peak RSS | of it anonymous | requests |\n|---|---|---|---|---|---|---|\n")
	base := 0.0
	if p := g.program(ours); p != nil && len(p.runs) > 0 {
		base = p.median(wall)
	}
	for _, p := range g.programs {
		if len(p.runs) == 0 {
			fmt.Fprintf(b, "| %s | failed: %s | | | | | |\n", p.name, p.failed)
			continue
		}
		w := p.sorted(wall)
		beside := "-"
		if base > 0 {
			beside = fmt.Sprintf("%.2f×", p.median(wall)/base)
		}
		memory := fmt.Sprintf("%.0f MiB | %.0f MiB", p.median(rss), p.median(anon))
		if p.name == "find" {
			memory = "- | -"
		}
		fmt.Fprintf(b, "| %s | %s (%s to %s, n=%d) | %s | %s | %s | %s |\n",
			p.name, seconds(p.median(wall)), seconds(w[0]), seconds(w[len(w)-1]), len(w), beside, seconds(p.median(cpu)), memory, requests(p.last()))
	}
}

func (p *program) last() record { return p.runs[len(p.runs)-1] }

func (g *group) eventTable(b *strings.Builder) {
	b.WriteString(title(g))
	b.WriteString("| program | waits for | median | 99th percentile | most | never arrived | processor time |\n|---|---|---|---|---|---|---|\n")
	for _, p := range g.programs {
		if len(p.runs) == 0 {
			continue
		}
		m := func(name string) float64 { return p.median(value(name)) }
		fmt.Fprintf(b, "| %s | %.0f ms | %.1f ms | %.1f ms | %.1f ms | %.0f | %s |\n",
			p.name, m("settle_ms"), m("median_ms"), m("p99_ms"), m("max_ms"), m("missing"), seconds(p.median(cpu)))
	}
}

func (g *group) idleTable(b *strings.Builder) {
	b.WriteString(title(g))
	b.WriteString("| program | looked at for | processor time, of one core | anonymous memory | requests |\n|---|---|---|---|---|\n")
	for _, p := range g.programs {
		if len(p.runs) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %.0f s | %.3f%% | %.0f MiB | %s |\n", p.name, p.median(wall), p.median(value("cpu_percent")), p.median(anon), requests(p.last()))
	}
}

func (g *group) daemonTable(b *strings.Builder) {
	b.WriteString(title(g))
	b.WriteString("| program | until an event is an object | highest anonymous memory | peak RSS | requests |\n|---|---|---|---|---|\n")
	for _, p := range g.programs {
		if len(p.runs) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %.0f MiB | %.0f MiB | %s |\n", p.name, seconds(p.median(value("until_watching_s"))), p.median(anon), p.median(rss), requests(p.last()))
	}
}

// requests lists a run's requests by kind.
func requests(r record) string {
	if r.Requests == nil {
		if r.Server == "null" {
			return "none"
		}
		return "-"
	}
	var s []string
	for _, kind := range []string{"HEAD", "PUT", "multipart", "part", "GET", "DELETE", "LIST", "bucket", "trail"} {
		if n := r.Requests[kind]; n > 0 {
			s = append(s, thousands(n)+" "+kind)
		}
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

func seconds(s float64) string {
	switch {
	case s < 0.9995:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s < 99.95:
		return fmt.Sprintf("%.2f s", s)
	default:
		return fmt.Sprintf("%.0f s", s)
	}
}

func size(n int64) string {
	switch {
	case n < 10*kib:
		return fmt.Sprintf("%d bytes", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n/kib)
	case n < 10*gib:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d GiB", n/gib)
	}
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
