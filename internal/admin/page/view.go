package page

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
)

// listed bounds the rows of each list of a source.
const listed = 10

// The tones of a state: how it is colored, beside the word that names it.
const (
	toneGood = "good" // nothing to do
	toneBusy = "busy" // at work
	toneWarn = "warn" // behind
	toneBad  = "bad"  // an operator is needed
)

// head is what the page shows of the daemon. All texts of a view are final: the
// script puts them, as text, where the page has the keys of their JSON.
type head struct {
	Instance string     `json:"instance"`
	Verdict  string     `json:"verdict"`
	Tone     string     `json:"tone"`
	Process  string     `json:"process"`
	Now      string     `json:"now"`
	Overview []overview `json:"overview"`
}

// overview is the line of one source on the first screen.
type overview struct {
	ID       string `json:"id"`
	Anchor   string `json:"anchor"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Tone     string `json:"tone"`
	Sentence string `json:"sentence"`
}

// sourceView is what the page shows of one source.
type sourceView struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Tone     string `json:"tone"`
	Sentence string `json:"sentence"`
	Todo     string `json:"todo"`
	From     string `json:"from"`
	To       string `json:"to"`

	Waiting   string `json:"waiting"`
	QueueLine string `json:"queue_line"`
	Oldest    string `json:"oldest"`
	OldestAgo string `json:"oldest_ago"`
	Stored    string `json:"stored"`
	StoredAs  string `json:"stored_as"`
	Outcomes  string `json:"outcomes"`

	Server      string `json:"server"`
	ServerTone  string `json:"server_tone"`
	ServerError string `json:"server_error"`
	Probe       string `json:"probe"`
	Scan        string `json:"scan"`
	ScanError   string `json:"scan_error"`
	Watched     string `json:"watched"`
	Parked      string `json:"parked"`

	Chain        string `json:"chain"`
	Head         string `json:"head"`
	Digest       string `json:"digest"`
	Manifest     string `json:"manifest"`
	Unpublished  string `json:"unpublished"`
	Signed       string `json:"signed"`
	TrailError   string `json:"trail_error"`
	FlightsNone  string `json:"flights_none"`
	FailuresNone string `json:"failures_none"`
	LastNone     string `json:"last_none"`

	Flights     []flight  `json:"flights"`
	MoreFlights string    `json:"more_flights"`
	Failures    []failure `json:"failures"`
	MoreFails   string    `json:"more_failures"`
	Last        []outcome `json:"last"`

	Rate    chart `json:"rate"`
	Latency chart `json:"latency"`
}

type flight struct {
	Name    string `json:"name"`
	Percent int64  `json:"percent"`
	Sent    string `json:"sent"`
	Phase   string `json:"phase"`
}

type failure struct {
	Name   string `json:"name"`
	Class  string `json:"class"`
	Error  string `json:"error"`
	When   string `json:"when"`
	Fate   string `json:"fate"`
	Tone   string `json:"tone"`
	Advice string `json:"advice"`
}

type outcome struct {
	When   string `json:"when"`
	Status string `json:"status"`
	Tone   string `json:"tone"`
	Name   string `json:"name"`
	Size   string `json:"size"`
}

type chart struct {
	Path    string `json:"path"`
	Now     string `json:"now"`
	Highest string `json:"highest"`
	Summary string `json:"summary"`
}

func toneOf(state string) string {
	switch state {
	case admin.StateCurrent:
		return toneGood
	case admin.StateWorking, admin.StateStarting:
		return toneBusy
	case admin.StateBehind:
		return toneWarn
	default:
		return toneBad
	}
}

// weight orders tones, the worst first.
func weight(tone string) int {
	return slices.Index([]string{toneBad, toneWarn, toneBusy, toneGood}, tone)
}

func newHead(st *admin.Status) head {
	h := head{
		Instance: visible(st.Instance), Now: st.Time.Format("15:04:05Z"), Tone: toneGood,
		Process: "s3syncd " + visible(st.Version) + ", process " + strconv.Itoa(st.PID) + ", " + st.State + ", started " +
			clock(st.StartedAt, st.Time),
		Overview: []overview{},
	}
	ill := 0
	for i := range st.Sources {
		s := &st.Sources[i]
		tone := toneOf(s.State)
		if weight(tone) < weight(toneBusy) {
			ill++
		}
		if weight(tone) < weight(h.Tone) {
			h.Tone = tone
		}
		id := sourceID(i)
		h.Overview = append(h.Overview, overview{
			ID: id, Anchor: "#" + id, Name: visible(s.Name), State: s.State, Tone: tone, Sentence: sentence(s),
		})
	}
	slices.SortStableFunc(h.Overview, func(a, b overview) int { return cmp.Compare(weight(a.Tone), weight(b.Tone)) })
	h.Verdict = verdict(st, ill, h.Tone)
	return h
}

func verdict(st *admin.Status, ill int, tone string) string {
	n := len(st.Sources)
	switch {
	case st.State == "stopping":
		return "Stopping"
	case n == 0:
		return "Starting"
	case ill == 1 && n == 1:
		return "The source needs attention"
	case ill > 0:
		return strconv.Itoa(ill) + " of " + plural(n, "source", "sources") + " " + map[bool]string{true: "needs", false: "need"}[ill == 1] + " attention"
	case tone == toneGood && n == 1:
		return "The source is current"
	case tone == toneGood:
		return "All " + strconv.Itoa(n) + " sources are current"
	case st.State == "starting":
		return "Starting"
	}
	return "At work, nothing is in the way"
}

func sourceID(i int) string { return "source-" + strconv.Itoa(i+1) }

// sentence is the sentence of a source without its name and state, which stand
// beside it.
func sentence(s *admin.SourceStatus) string {
	text := strings.TrimPrefix(s.Sentence, s.Name+": ")
	if text == admin.StateCurrent {
		return "nothing waits, nothing is in the way"
	}
	return visible(strings.TrimPrefix(text, s.State+": "))
}

func newSource(i int, s *admin.SourceStatus, h *history, now time.Time) sourceView {
	v := sourceView{
		ID: sourceID(i), Name: visible(s.Name), State: s.State, Tone: toneOf(s.State), Sentence: sentence(s), Todo: visible(s.Todo()),
		From: shown(admin.NewName(s.Path)), To: visible("s3://" + strings.TrimSuffix(s.Bucket+"/"+s.Prefix, "/")),
		Waiting: admin.Count(s.Queue.Total), Oldest: "–",
		QueueLine: admin.Count(s.Queue.Settling) + " settling, " + admin.Count(s.Queue.Queued) + " queued, " +
			admin.Count(s.Queue.InFlight) + " in flight, " + admin.Count(s.Queue.Delayed) + " delayed",
		Stored: admin.Count(s.Indexed.Files), StoredAs: admin.Bytes(s.Indexed.Bytes), Outcomes: counts(s.Outcomes),
		Watched: plural(s.Watched, "directory", "directories") + " watched, " + admin.Count(s.Polled) + " polled",
		Parked:  "none", Rate: rateChart(h), Latency: latencyChart(h),
	}
	if s.Queue.Oldest != nil {
		v.Oldest, v.OldestAgo = admin.Duration(now.Sub(*s.Queue.Oldest)), "since "+clock(*s.Queue.Oldest, now)
	}
	if len(s.Parked) > 0 {
		v.Parked = counts(s.Parked) + "; they wait for a person"
	}
	v.server(s, now)
	v.scan(s, now)
	v.trail(&s.Trail, now)
	v.lists(s, now)
	return v
}

func (v *sourceView) server(s *admin.SourceStatus, now time.Time) {
	d := &s.Destination
	v.Server, v.ServerTone = d.State, toneGood
	if d.State == "ok" && d.Error == "" {
		v.Server = "works"
		return
	}
	v.ServerTone = map[string]string{"waiting": toneWarn}[d.State]
	if v.ServerTone == "" {
		v.ServerTone = toneBad
	}
	if d.Since != nil {
		v.Server += " since " + clock(*d.Since, now)
	}
	if d.Class != "" {
		v.Server += " (" + d.Class + ")"
	}
	v.ServerError = visible(d.Error)
	if d.NextProbe != nil {
		v.Probe = "asked again in " + admin.Duration(d.NextProbe.Sub(now))
	}
}

func (v *sourceView) scan(s *admin.SourceStatus, now time.Time) {
	sc := s.LastScan
	if sc == nil {
		v.Scan = "none has ended yet"
		return
	}
	how := "ended"
	if !sc.Complete {
		how = "ended early"
	}
	v.Scan = how + " " + clock(sc.EndedAt, now) + " (" + sc.Trigger + "): " + plural(sc.Files, "file", "files") + ", " +
		admin.Count(sc.New) + " new, " + admin.Count(sc.Changed) + " changed, " + admin.Count(sc.Gone) + " gone, " +
		admin.Count(sc.Unreadable) + " unreadable"
	v.ScanError = visible(sc.Error)
}

func (v *sourceView) trail(t *admin.Trail, now time.Time) {
	v.Chain, v.Head, v.Manifest, v.Digest = "none yet", "–", "none by this process", "none yet"
	if t.Chain != "" {
		v.Chain = t.Chain + ", sequence " + strconv.FormatUint(t.Sequence, 10)
	}
	if t.LastDigestSHA256 != "" {
		v.Head = t.LastDigestSHA256
	}
	if t.LastDigest != "" {
		v.Digest = base(t.LastDigest)
		if t.LastDigestAt != nil {
			v.Digest += ", up to " + since(t.LastDigestAt, now)
		}
	}
	if t.LastManifest != "" && t.LastManifestAt != nil {
		v.Manifest = base(t.LastManifest) + ", published " + since(t.LastManifestAt, now)
	}
	v.Unpublished = plural(t.UnpublishedRecords, "record", "records") + ", " + plural(t.WaitingDocuments, "document", "documents")
	v.signature(t, now)
	v.trailFault(t, now)
}

// signature says whether digests are signed.
func (v *sourceView) signature(t *admin.Trail, now time.Time) {
	switch {
	case !t.Signing:
		v.Signed = "no (manifest.sign is none)"
	case t.UnsignedDigests > 0:
		v.Signed = "yes, but " + plural(t.UnsignedDigests, "digest waits", "digests wait") + " for the signature"
		if t.UnsignedSince != nil {
			v.Signed += ", since " + clock(*t.UnsignedSince, now)
		}
	default:
		v.Signed = "yes"
	}
}

// trailFault says what is wrong with the trail.
func (v *sourceView) trailFault(t *admin.Trail, now time.Time) {
	switch {
	case t.LeftBy != "":
		v.TrailError = "left by chain " + t.LeftBy + " of this instance"
	case t.SigningError != "":
		v.TrailError = "not signed: " + visible(t.SigningError)
	}
	if t.Error != "" {
		v.TrailError = "not published"
		if t.ErrorSince != nil {
			v.TrailError += " since " + clock(*t.ErrorSince, now)
		}
		v.TrailError += ": " + visible(t.Error)
	}
}

// base is the last component of a key of this program's own making.
func base(key string) string { return visible(key[strings.LastIndexByte(key, '/')+1:]) }

func (v *sourceView) lists(s *admin.SourceStatus, now time.Time) {
	v.Flights, v.Failures, v.Last = []flight{}, []failure{}, []outcome{}
	for _, f := range s.InFlight[:min(listed, len(s.InFlight))] {
		v.Flights = append(v.Flights, flight{
			Name: shown(f.Name), Percent: percent(f.Progress(), f.Size), Sent: admin.Bytes(f.Progress()) + " of " + admin.Bytes(f.Size),
			Phase: visible(f.Phase) + ", for " + admin.Duration(now.Sub(f.StartedAt)),
		})
	}
	for _, f := range s.Failures[:min(listed, len(s.Failures))] {
		v.Failures = append(v.Failures, newFailure(&f, now))
	}
	for _, o := range s.LastOutcomes[:min(listed, len(s.LastOutcomes))] {
		tone := map[string]string{"uploaded": toneGood, "rekeyed": toneGood, "failed": toneBad}[o.Status]
		v.Last = append(v.Last, outcome{When: clock(o.At, now), Status: visible(o.Status), Tone: tone, Name: shown(o.Name), Size: admin.Bytes(o.Size)})
	}
	v.MoreFlights, v.MoreFails = more(len(s.InFlight)), more(len(s.Failures))
	v.FlightsNone = none(len(v.Flights), "No file is in hand.")
	v.FailuresNone = none(len(v.Failures), "None since the daemon started.")
	v.LastNone = none(len(v.Last), "None since the daemon started.")
}

func newFailure(f *admin.Failure, now time.Time) failure {
	v := failure{
		Name: shown(f.Name), Class: visible(f.Class), Error: visible(f.Error), When: clock(f.LastAt, now), Advice: visible(f.Advice),
		Fate: "waits for a person", Tone: toneBad,
	}
	switch {
	case f.ResolvedAt != nil:
		v.Fate, v.Tone, v.Advice = "done since "+clock(*f.ResolvedAt, now), toneGood, ""
	case f.Retried:
		v.Fate, v.Tone = "tried again by itself", toneWarn
	}
	if f.Count > 1 {
		v.Fate = admin.Count(f.Count) + " times, " + v.Fate
	}
	return v
}

func more(n int) string {
	if n <= listed {
		return ""
	}
	return "and " + strconv.Itoa(n-listed) + " more: s3syncd status --json lists them"
}

func none(n int, text string) string {
	if n > 0 {
		return ""
	}
	return text
}

func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 0
	}
	return min(100, 100*part/whole)
}

func rateChart(h *history) chart {
	vs, newest, highest := h.values(rate)
	return chart{
		Path: draw(vs, highest), Now: speed(newest), Highest: speed(highest),
		Summary: "Throughput of the last hour: now " + speed(newest) + ", highest " + speed(highest),
	}
}

func latencyChart(h *history) chart {
	vs, newest, highest := h.values(latency)
	return chart{
		Path: draw(vs, highest), Now: seconds(newest), Highest: seconds(highest),
		Summary: "Latency of the last hour, from a change to its record: now " + seconds(newest) + ", highest " + seconds(highest),
	}
}

// counts renders numbers by name: the largest first.
func counts(m map[string]int64) string {
	var names []string
	for name, n := range m {
		if n > 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "nothing yet"
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b)) })
	for i, name := range names {
		names[i] = admin.Count(m[name]) + " " + name
	}
	return strings.Join(names, ", ")
}
