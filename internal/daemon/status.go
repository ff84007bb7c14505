package daemon

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/admin/page"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

const (
	// lateAfter beyond max_delay makes what is on its way count as behind.
	lateAfter = time.Minute
	busyShown = 5
	// silentAfter is how long a request for the trail may take before the trail
	// counts as behind.
	silentAfter = 30 * time.Second
	// reasonText is the longest reason in a sentence, in runes.
	reasonText = 160
)

// Status implements admin.Daemon. It reads memory only.
func (d *daemon) Status() admin.Status {
	now := time.Now()
	st := admin.Status{
		Format: admin.StatusFormat, Time: now.UTC(), Instance: d.cfg.Instance, Version: d.build.Version, Revision: d.build.Revision,
		PID: os.Getpid(), StartedAt: d.started.UTC(), State: "starting", Sources: []admin.SourceStatus{},
	}
	st.LastReload = d.lastReload.Load()
	switch {
	case d.stopping.Load():
		st.State = "stopping"
	case d.ready.Load():
		st.State = "ready"
	}
	l := d.current.Load()
	if l == nil {
		return st
	}
	flights := l.Pool.InFlight()
	st.Current = true
	for _, s := range l.sources {
		ss := s.status(flights, now)
		st.Current = st.Current && (ss.State == admin.StateCurrent || ss.State == admin.StateWorking)
		st.Sources = append(st.Sources, ss)
	}
	return st
}

// status is what is known of s.
func (s *liveSource) status(flights []uploader.InFlight, now time.Time) admin.SourceStatus {
	name := s.Config.Name
	work, dest := s.Pending(), s.Pool.Destination(name)
	watched, polled := s.Watch.Directories()
	files, bytes := s.State.Totals()
	outcomes, failures, last := s.ledger.list()
	ss := admin.SourceStatus{
		Name: name, Path: s.Config.Path, Bucket: s.Config.Bucket, Prefix: s.Config.Prefix,
		Available: s.Watch.Available(), UnavailableReason: admin.Plain(s.Watch.Away(), errorText), DeletesWithheld: s.withholds(),
		HungSince:   instant(s.hungSince()),
		Destination: destinationStatus(dest),
		Queue: admin.Queue{
			Settling: work.Settling, Queued: work.Queued, InFlight: work.InFlight, Delayed: work.Delayed,
			Total: work.Total(), Oldest: instant(work.Oldest),
		},
		Indexed: admin.Indexed{Files: files, Bytes: bytes}, Outcomes: outcomes, Parked: map[string]int64{},
		InFlight: inFlightOf(name, flights), Failures: failures, LastOutcomes: last, Trail: s.trailStatus(), LastScan: s.scanStatus(),
		Watched: watched, Polled: polled, Busy: busyStatus(s.Watch.Busiest(busyShown)),
	}
	for c, n := range s.Pool.Parked(name) {
		ss.Parked[string(c)] = n
	}
	failing := s.Pool.Failing(name)
	ss.Failing, ss.FailingSince, ss.FailingClass = failing.Files, instant(failing.Since), string(failing.Class)
	s.judge(&ss, dest, work, now)
	return ss
}

// judge sets state, reason, since and the sentence.
func (s *liveSource) judge(ss *admin.SourceStatus, dest breaker.Status, work pipeline.Pending, now time.Time) {
	o := s.obstacle(ss, dest, now)
	if t := s.Disk.Trouble(); t != nil && o.state != admin.StateUnavailable {
		o = obstacle{admin.StateBehind, "state_dir cannot be written: " + admin.Plain(t.Err.Error(), reasonText), instant(t.Since)}
	}
	if o.state == "" {
		o.state = admin.StateCurrent
		switch {
		case work.Total() > 0 && now.Sub(work.Oldest) > s.Config.MaxDelay+lateAfter && !work.Oldest.IsZero():
			o = obstacle{admin.StateBehind, "more changes than are uploaded", instant(work.Oldest)}
		case work.Total() > 0:
			o.state = admin.StateWorking
		}
	}
	ss.State, ss.Reason, ss.Since = o.state, o.reason, o.since
	ss.Sentence = ss.Name + ": " + sentence(ss, dest, now)
}

// obstacle is what is in the way of a source; its state is "" where nothing is.
type obstacle struct {
	state, reason string
	since         *time.Time // nil: not known
}

// withholds reports whether missing files do not count as deleted.
func (s *liveSource) withholds() bool {
	last := s.Counters.LastScan.Load()
	return s.Watch.Replaced() || last != nil && last.Withheld > 0
}

// obstacle returns what is in the way of s.
func (s *liveSource) obstacle(ss *admin.SourceStatus, dest breaker.Status, now time.Time) obstacle {
	switch {
	case ss.HungSince != nil:
		return obstacle{admin.StateUnavailable, fscheck.SilentReason, ss.HungSince}
	case s.Watch.Away() != "":
		return obstacle{admin.StateUnavailable, "directory not available: " + ss.UnavailableReason, instant(s.Counters.GoneSince())}
	}
	if o := destinationObstacle(dest); o.state != "" {
		return o
	}
	switch {
	case !isClosed(s.Watch.Watching()):
		return obstacle{admin.StateStarting, "the directories are not all watched yet, " + admin.Count(ss.Watched) + " so far", nil}
	case dest.Stalled > 0:
		return obstacle{admin.StateBehind, admin.Count(dest.Stalled) + " requests to the server make no progress", instant(dest.StalledSince)}
	}
	if o := trailObstacle(&ss.Trail, now); o.state != "" {
		return o
	}
	switch {
	case len(ss.Parked) > 0:
		return obstacle{admin.StateParked, parkedReason(ss.Parked), nil}
	case ss.Failing > 0:
		return obstacle{admin.StateBehind, "files that fail again and again: " + admin.Count(ss.Failing) + " (" + ss.FailingClass + ")", ss.FailingSince}
	case s.Watch.HeldDeletes() > 0:
		return obstacle{admin.StateParked, admin.Count(s.Watch.HeldDeletes()) + " deletions are held back until 'rescan --confirm-deletes'", nil}
	case ss.DeletesWithheld:
		return obstacle{admin.StateParked, "another directory, or a mount less, is in its place: nothing counts as deleted until 'rescan --confirm-deletes'", nil}
	}
	return obstacle{}
}

// destinationObstacle returns what is in the way at a destination.
func destinationObstacle(dest breaker.Status) obstacle {
	switch {
	case dest.State == breaker.HealthStopped:
		return obstacle{admin.StateStopped, reasonOf(dest.Err), instant(dest.Since)}
	case dest.State == breaker.HealthParked:
		return obstacle{admin.StateParked, reasonOf(dest.Err), instant(dest.Since)}
	case dest.State == breaker.HealthWaiting && dest.Err != nil:
		return obstacle{admin.StateBehind, "no answer: " + reasonOf(dest.Err), instant(dest.Since)}
	case dest.State == breaker.HealthWaiting:
		return obstacle{admin.StateStarting, "the first canary has no answer yet", nil}
	}
	return obstacle{}
}

// trailObstacle returns what is wrong with the trail.
func trailObstacle(t *admin.Trail, now time.Time) obstacle {
	switch {
	case t.Error != "":
		return obstacle{admin.StateBehind, "manifest not published: " + admin.Plain(t.Error, reasonText), t.ErrorSince}
	case t.RequestSince != nil && now.Sub(*t.RequestSince) >= silentAfter:
		return obstacle{admin.StateBehind, "a request for the trail has no answer, " + admin.Count(t.WaitingDocuments) + " documents wait", t.RequestSince}
	case t.LeftBy != "":
		return obstacle{admin.StateParked, "chain " + t.LeftBy + " of this instance has left the chain of this host: two hosts, or two states, write as one", t.LeftAt}
	case t.SigningError != "":
		return obstacle{admin.StateBehind, unsignedReason(t, now), t.UnsignedSince}
	}
	return obstacle{}
}

// unsignedReason says since when how many digests are not signed.
func unsignedReason(t *admin.Trail, now time.Time) string {
	text := "trail unsigned"
	if t.UnsignedSince != nil {
		text += " since " + clockTime(*t.UnsignedSince, now)
	}
	return text + ", " + admin.Count(t.UnsignedDigests) + " digests: " + admin.Plain(t.SigningError, reasonText)
}

func parkedReason(parked map[string]int64) string {
	var classes []string
	total := int64(0)
	for c, n := range parked {
		classes = append(classes, c)
		total += n
	}
	slices.Sort(classes)
	return "failed files that wait for a person: " + admin.Count(total) + " (" + strings.Join(classes, ", ") + ")"
}

// sentence says all of it in one line.
func sentence(ss *admin.SourceStatus, dest breaker.Status, now time.Time) string {
	var b strings.Builder
	switch {
	case ss.State == admin.StateCurrent:
		return ss.State
	case ss.HungSince != nil:
		b.WriteString("hung since " + clockTime(*ss.HungSince, now))
	case ss.State == admin.StateWorking, ss.State == admin.StateStarting, ss.Since == nil:
		b.WriteString(ss.State)
	default:
		b.WriteString("behind since " + clockTime(*ss.Since, now))
	}
	if ss.Reason != "" {
		b.WriteString(": " + ss.Reason)
	}
	if n := ss.Queue.Total; n > 0 {
		sep := "; "
		if ss.Reason == "" {
			sep = ": "
		}
		b.WriteString(sep + admin.Count(n) + " waiting")
		if ss.State == admin.StateWorking && ss.Queue.Oldest != nil {
			b.WriteString(", the oldest since " + clockTime(*ss.Queue.Oldest, now))
		}
	}
	if dest.State != breaker.HealthOK && dest.Err != nil {
		b.WriteString("; next probe in " + admin.Duration(dest.NextProbe.Sub(now)))
	}
	return b.String()
}

// clockTime is a time of the last day without its date.
func clockTime(t, now time.Time) string {
	if now.Sub(t) < 24*time.Hour {
		return t.UTC().Format("15:04:05Z")
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}

// reasonOf says in a few words what err is.
func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	if action, _, ok := admin.DeniedAction(err.Error()); ok {
		return action + " denied"
	}
	if e, ok := errors.AsType[*archive.Error](err); ok && e.Code != "" {
		return admin.Plain(e.Op+": "+e.Code, reasonText)
	}
	return admin.Plain(err.Error(), reasonText)
}

// instant is t in UTC, nil for the zero time.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func destinationStatus(d breaker.Status) admin.Destination {
	out := admin.Destination{State: string(d.State), Since: instant(d.Since), Stalled: d.Stalled, StalledSince: instant(d.StalledSince)}
	if d.Err != nil {
		out.Class, out.Error, out.NextProbe = string(d.Class), admin.Plain(d.Err.Error(), errorText), instant(d.NextProbe)
	}
	return out
}

func inFlightOf(source string, flights []uploader.InFlight) []admin.InFlight {
	list := []admin.InFlight{}
	for _, f := range flights {
		if f.Source == source {
			list = append(list, admin.InFlight{
				Name: admin.NewName(f.Path), Size: f.Bytes, Sent: f.Sent, Hashed: f.Hashed, Phase: string(f.Phase), StartedAt: f.Started.UTC(),
			})
		}
	}
	return list
}

func (s *liveSource) trailStatus() admin.Trail {
	st, err := s.Flusher.Glance()
	if err != nil {
		st = manifest.Status{Err: err, Since: time.Now()}
	}
	t := admin.Trail{
		Chain: st.Chain, Sequence: st.Sequence, LastManifest: st.Manifest, LastManifestAt: instant(st.ManifestAt),
		LastDigest: st.Digest, LastDigestAt: instant(st.DigestAt), LastDigestSHA256: st.DigestHash,
		Signing: st.Signing, UnsignedDigests: st.Unsigned, UnpublishedRecords: st.Unpublished, WaitingDocuments: st.Outbox,
	}
	t.RequestSince = instant(st.RequestSince)
	t.UnsignedSince, t.LeftBy, t.LeftAt = instant(st.UnsignedSince), st.Twin, instant(st.TwinSince)
	if st.SignErr != nil {
		t.SigningError = admin.Plain(st.SignErr.Error(), errorText)
	}
	if st.Err != nil {
		t.Error, t.ErrorSince = admin.Plain(st.Err.Error(), errorText), instant(st.Since)
	}
	return t
}

func (s *liveSource) scanStatus() *admin.Scan {
	r := s.Counters.LastScan.Load()
	if r == nil {
		return nil
	}
	out := &admin.Scan{
		Trigger: string(r.Trigger), StartedAt: r.Start.UTC(), EndedAt: r.End.UTC(), Complete: r.Complete, Files: r.Files,
		New: r.New, Changed: r.Changed, Gone: r.Gone, Unreadable: r.Unreadable,
	}
	if r.Err != nil {
		out.Error = admin.Plain(r.Err.Error(), errorText)
	}
	return out
}

func busyStatus(busy []watcher.Busy) []admin.BusyDirectory {
	list := []admin.BusyDirectory{}
	for _, b := range busy {
		list = append(list, admin.BusyDirectory{Name: admin.NewName(b.Path), Events: b.Events, Window: int64(b.Window / time.Second)})
	}
	return list
}

// Meters implements page.Daemon.
func (d *daemon) Meters() []page.Meter {
	l := d.current.Load()
	if l == nil {
		return nil
	}
	underWay := map[string]int64{}
	for _, f := range l.Pool.InFlight() {
		underWay[f.Source] += f.Sent
	}
	list := make([]page.Meter, len(l.sources))
	for i, s := range l.sources {
		m := s.ledger.takeMeter()
		list[i] = page.Meter{
			Source: s.Config.Name, Acknowledged: m.bytes, UnderWay: underWay[s.Config.Name], Uploads: m.uploads, Slowest: m.slowest,
		}
	}
	return list
}
