package main

import (
	"fmt"
	"strings"
)

// goal is one line of the table of goals.
type goal struct {
	work, goal, measured string
	reached              bool
}

// goalTable compares what was measured with the goals. What was not measured is
// not in it.
func goalTable(groups []*group) string {
	var b strings.Builder
	b.WriteString("| work | goal | measured | reached |\n|---|---|---|---|\n")
	for _, g := range groups {
		for _, name := range []string{ours, oursCounting} {
			p := g.program(name)
			if p == nil || len(p.runs) == 0 {
				continue
			}
			g.goalLines(&b, p)
		}
	}
	return b.String()
}

func (g *group) goalLines(b *strings.Builder, p *program) {
	how := ""
	if p.name == oursCounting {
		how = ", counting"
	}
	for _, l := range g.goals(p) {
		yes := "**no**"
		if l.reached {
			yes = "yes"
		}
		fmt.Fprintf(b, "| %s, %s files, %s%s | %s | %s | %s |\n", l.work, thousands(int64(g.files)), g.server, how, l.goal, l.measured, yes)
	}
}

func (g *group) goals(p *program) []goal {
	switch g.work {
	case "a":
		return append(g.atMost(p, "wall time", wall, 0.8), g.atMost(p, "processor time", cpu, 0.5)...)
	case "b":
		return g.latencyGoal(p)
	case "c":
		return g.largeGoals(p)
	case "e", "i":
		return g.unchangedGoals(p)
	case "f":
		want := int64(g.files+99) / 100
		other := others(p.last(), "PUT")
		return []goal{{
			"(f)", "requests: one a changed file, and the trail's", requests(p.last()), other == 0 && p.last().Requests["PUT"] <= want,
		}}
	case "g-1", "g-500":
		return eventGoals(g, p)
	case "h":
		return []goal{
			{"(h)", "below 0.1% of a core", fmt.Sprintf("%.3f%%", p.median(value("cpu_percent"))), p.median(value("cpu_percent")) < 0.1},
			{"(h)", "no requests but the trail's", requests(p.last()), others(p.last(), "") == 0},
		}
	case daemonWork:
		return []goal{{"(i)", "anonymous memory at most 200 MiB", fmt.Sprintf("%.0f MiB", p.median(anon)), p.median(anon) <= 200}}
	default:
		return nil
	}
}

// others counts the requests that are neither of this kind nor the trail's.
func others(r record, kind string) (n int64) {
	for k, v := range r.Requests {
		if k != "trail" && k != kind {
			n += v
		}
	}
	return n
}

// atMost is the goal to take at most limit of what the best peer takes.
func (g *group) atMost(p *program, what string, of func(record) float64, limit float64) []goal {
	name, least, ok := g.best(of)
	if !ok || least == 0 {
		return nil
	}
	ratio := p.median(of) / least
	return []goal{{
		"(" + g.work + ")", fmt.Sprintf("%s ≤ %.1f× the best peer's", what, limit),
		fmt.Sprintf("%.2f× (%s, %s %s)", ratio, seconds(p.median(of)), name, seconds(least)), ratio <= limit,
	}}
}

// latencyGoal compares with what the workers could do if a request took its
// latency and nothing else took time.
func (g *group) latencyGoal(p *program) []goal {
	ideal := float64(g.files) / workers * p.median(value("latency_ms")) / 1e3
	share := ideal / p.median(wall)
	return []goal{{
		"(b)", fmt.Sprintf("≥ 0.9 of %d workers/latency", workers),
		fmt.Sprintf("%.2f (%.0f of %.0f files a second)", share, float64(g.files)/p.median(wall), float64(g.files)/ideal), share >= 0.9,
	}}
}

func (g *group) largeGoals(p *program) []goal {
	r := g.program("rclone")
	if r == nil || len(r.runs) == 0 {
		return nil
	}
	speed, memory := r.median(wall)/p.median(wall), p.median(rss)/r.median(rss)
	rate := func(p *program) float64 { return float64(g.bytes) / (1 << 20) / p.median(wall) }
	return []goal{
		{"(c)", "≥ 1.6× rclone's throughput", fmt.Sprintf("%.2f× (%.0f and %.0f MiB/s)", speed, rate(p), rate(r)), speed >= 1.6},
		{"(c)", "peak RSS ≤ 0.5× rclone's", fmt.Sprintf("%.2f× (%.0f and %.0f MiB)", memory, p.median(rss), r.median(rss)), memory <= 0.5},
	}
}

func (g *group) unchangedGoals(p *program) []goal {
	l := append(g.atMost(p, "wall time", wall, 0.1), goal{
		"(" + g.work + ")", "no requests but the trail's", requests(p.last()), others(p.last(), "") == 0,
	})
	if f := g.program("find"); f != nil && len(f.runs) > 0 {
		ratio := p.median(wall) / f.median(wall)
		l = append(l, goal{
			"(" + g.work + ")", "within 2× of `find -printf`", fmt.Sprintf("%.2f× (%s and %s)", ratio, seconds(p.median(wall)), seconds(f.median(wall))), ratio <= 2,
		})
	}
	return l
}

func eventGoals(g *group, p *program) []goal {
	settle := p.median(value("settle_ms"))
	beyond := func(name string) float64 { return p.median(value(name)) - settle }
	l := []goal{{"(g)", "median ≤ settle + 10 ms", fmt.Sprintf("settle + %.1f ms", beyond("median_ms")), beyond("median_ms") <= 10}}
	if g.work != "g-1" {
		l = append(l, goal{"(g)", "99th percentile ≤ settle + 100 ms", fmt.Sprintf("settle + %.1f ms", beyond("p99_ms")), beyond("p99_ms") <= 100})
	}
	return l
}
