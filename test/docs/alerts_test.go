package docs

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// rule is one alert of the rules file.
type rule struct {
	name, text string // text: the whole of it
}

// alertRules returns the alerts in the order of the file.
func alertRules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "prometheus", "s3syncd.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, part := range strings.Split(string(text), "      - alert: ")[1:] {
		name, _, _ := strings.Cut(part, "\n")
		rules = append(rules, rule{name, part})
	}
	if len(rules) < 30 {
		t.Fatalf("%d alerts found, want at least 30", len(rules))
	}
	return rules
}

func TestEveryAlertHasAnEntryInTheRunbookAndTheOtherWayRound(t *testing.T) {
	text := documents(t)["docs/OPERATIONS.md"]
	var headings []string
	for _, part := range strings.Split(text, "\n### S3syncd")[1:] {
		name, entry, _ := strings.Cut("S3syncd"+part, "\n")
		headings = append(headings, name)
		entry, _, _ = strings.Cut(entry, "\n## ")
		for _, want := range []string{"**Means**", "**See**", "**Do**"} {
			if !strings.Contains(entry, "\n- "+want+" ") {
				t.Errorf("docs/OPERATIONS.md, %s, has no %s", name, want)
			}
		}
	}
	var alerts []string
	for _, r := range alertRules(t) {
		alerts = append(alerts, r.name)
		if !slices.Contains(headings, r.name) {
			t.Errorf("docs/OPERATIONS.md has no entry for %s", r.name)
		}
	}
	for _, h := range headings {
		if !slices.Contains(alerts, h) {
			t.Errorf("docs/OPERATIONS.md has an entry for %s, which is no alert", h)
		}
	}
}

func TestEveryAlertSaysWhatAPersonNeeds(t *testing.T) {
	for _, r := range alertRules(t) {
		for _, want := range []string{
			"severity: ", "          summary: ", "          description: ",
			"runbook_url: https://github.com/s3syncd/s3syncd/blob/main/docs/OPERATIONS.md#" + strings.ToLower(r.name) + "\n",
		} {
			if !strings.Contains(r.text, want) {
				t.Errorf("%s lacks %q", r.name, want)
			}
		}
		if !regexp.MustCompile(`\{severity: (critical|warning|info)\}`).MatchString(r.text) {
			t.Errorf("%s is neither critical nor warning nor info", r.name)
		}
	}
}

func TestEveryAlertIsSeenToFireAndToClear(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy", "prometheus", "s3syncd.rules_test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	cases := strings.Split(string(text), "\n  - interval: ")
	for _, r := range alertRules(t) {
		fires := slices.ContainsFunc(cases, func(c string) bool {
			_, after, ok := strings.Cut(c, "alertname: "+r.name+"\n        exp_alerts:\n")
			return ok && strings.Contains(after, "alertname: "+r.name+"}")
		})
		if !fires {
			t.Errorf("no test has %s fire and clear", r.name)
		}
		if n := strings.Count(string(text), "alertname: "+r.name+"}"); n < 8 {
			t.Errorf("%s is looked at %d times when nothing is wrong, want at least 8", r.name, n)
		}
	}
}

func TestPromtoolAcceptsTheRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool here (Debian: apt-get install prometheus)")
	}
	dir := filepath.Join(root, "deploy", "prometheus")
	for _, args := range [][]string{{"check", "rules", "s3syncd.rules.yml"}, {"test", "rules", "s3syncd.rules_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// dashboard is what of a Grafana dashboard is checked.
type dashboard struct {
	UID           string `json:"uid"`
	SchemaVersion int    `json:"schemaVersion"` //nolint:tagliatelle // Grafana's name.
	Templating    struct {
		List []struct {
			Name string `json:"name"`
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID         int    `json:"id"`
	Type       string `json:"type"`
	Title      string `json:"title"`
	Datasource uid    `json:"datasource"`
	GridPos    struct {
		X int `json:"x"`
		Y int `json:"y"`
		W int `json:"w"`
		H int `json:"h"`
	} `json:"gridPos"` //nolint:tagliatelle // Grafana's name.
	Targets []struct {
		RefID      string `json:"refId"` //nolint:tagliatelle // Grafana's name.
		Expr       string `json:"expr"`
		Datasource uid    `json:"datasource"`
	} `json:"targets"`
}

type uid struct {
	UID string `json:"uid"`
}

func TestTheDashboardIsOneThatGrafanaLoads(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy", "grafana", "s3syncd.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID != "s3syncd" || d.SchemaVersion < 39 {
		t.Errorf("uid %q, schema %d, want s3syncd and at least 39", d.UID, d.SchemaVersion)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if want := []string{"datasource", "instance", "source"}; !slices.Equal(variables, want) {
		t.Errorf("variables %q, want %q", variables, want)
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	queries := 0
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id %d of another", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q, or beyond the right edge", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q has no title, no query, or another data source than the variable", p.ID, p.Title)
		}
		for _, q := range p.Targets {
			queries++
			if q.Datasource.UID != "${datasource}" || q.RefID == "" {
				t.Errorf("query %q of %q has another data source than the variable, or no id", q.Expr, p.Title)
			}
		}
	}
	if queries < 40 {
		t.Errorf("%d queries, want at least 40", queries)
	}
}
