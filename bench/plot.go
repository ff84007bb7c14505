package main

import (
	"fmt"
	"strings"
)

// The plot's measures, in SVG units.
const (
	plotWidth  = 860
	plotLeft   = 90
	plotRight  = 110
	barHeight  = 16
	groupSpace = 34
)

// plot draws the wall times as bars, each group to its own scale.
func plot(groups []*group) string {
	var b strings.Builder
	y := 10
	for _, g := range groups {
		most, bars := 0.0, 0
		for _, p := range g.programs {
			if len(p.runs) > 0 {
				most, bars = max(most, p.median(wall)), bars+1
			}
		}
		if bars < 2 || most == 0 || len(g.work) > 1 || g.work == "0" || g.work == "h" {
			continue
		}
		fmt.Fprintf(&b, `<text x="4" y="%d" class="t">%s</text>`+"\n", y+14, escaped(strings.Trim(title(g), "#\n ")))
		y += 22
		for _, p := range g.programs {
			if len(p.runs) == 0 {
				continue
			}
			y += p.bar(&b, y, most)
		}
		y += groupSpace - 22
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" role="img" aria-label="Wall times beside other programs; shorter is better">
<style>text{fill:#222}.t{font-weight:bold}.o{fill:#2a6fb0}.p{fill:#b9bfc6}.w{stroke:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}.w{stroke:#ddd}.p{fill:#6b737c}}</style>
%s</svg>
`, plotWidth, y, b.String())
}

// bar draws one program's median, with a line from its least to its most. It
// returns the height that it took.
func (p *program) bar(b *strings.Builder, y int, most float64) int {
	full := float64(plotWidth - plotLeft - plotRight)
	class := "p"
	if p.name == ours {
		class = "o"
	}
	at := func(v float64) float64 { return plotLeft + full*min(1, v/most) }
	w, m := p.sorted(wall), p.median(wall)
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, plotLeft-6, y+12, escaped(p.name))
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" class="%s"/>`, plotLeft, y+1, max(1, at(m)-plotLeft), barHeight-3, class)
	fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" class="w"/>`, at(w[0]), y+barHeight/2, at(w[len(w)-1]), y+barHeight/2)
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", at(max(m, w[len(w)-1]))+6, y+12, seconds(m))
	return barHeight + 2
}
