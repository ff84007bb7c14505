// Package preflight proves against the real bucket and key that a run can work.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/iam"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/oneshot"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Options are what a preflight needs from outside.
type Options struct {
	Config *config.Config
	Stderr io.Writer
}

// Verdict says how one check of a preflight ended.
type Verdict string

// The verdicts.
const (
	VerdictOK       Verdict = "ok"
	VerdictMissing  Verdict = "missing"  // a permission that this configuration needs
	VerdictFault    Verdict = "fault"    // something else that keeps a run from working
	VerdictOptional Verdict = "optional" // not granted, and not needed by run and sync
	VerdictNote     Verdict = "note"     // worked around
	VerdictSkipped  Verdict = "skipped"  // not tried
)

// Check is one thing that was tried.
type Check struct {
	Check    string   `json:"check"`
	Verdict  Verdict  `json:"verdict"`
	Actions  []string `json:"actions,omitempty"`  // of IAM: missing or optional only
	Resource string   `json:"resource,omitempty"` // of the actions
	Feature  string   `json:"feature,omitempty"`  // what suffers
	Detail   string   `json:"detail,omitempty"`
}

// Source is what was found about one source.
type Source struct {
	Source   string   `json:"source"`
	Bucket   string   `json:"bucket"`
	Prefix   string   `json:"prefix"`
	Region   string   `json:"region"`
	KMSKeyID string   `json:"kms_key_id"`             // as configured
	Resolved string   `json:"resolved_key,omitempty"` // as the server names it
	Checks   []Check  `json:"checks"`
	Left     []string `json:"left_objects"`   // that could not be removed
	Answered bool     `json:"answered"`       // at least once
	Plan     *Plan    `json:"plan,omitempty"` // what a first run and a day cost; absent where the directory cannot be read
}

// Plan is what the next run would do, and what a day costs.
type Plan struct {
	Files      int64                `json:"files"` // to upload
	Bytes      int64                `json:"bytes"`
	Unchanged  int64                `json:"unchanged"`
	Run        oneshot.RequestCount `json:"run"`
	Day        oneshot.RequestCount `json:"idle_day"`
	FlushesDay int64                `json:"manifests_of_a_busy_day"`
	Indexed    bool                 `json:"indexed"` // the index was compared; else every file counts
}

// Report is what a preflight found.
type Report struct {
	Format  int      `json:"format"` // of this report: 1
	OK      bool     `json:"ok"`
	Sources []Source `json:"sources"`
}

// Run proves against bucket and key of every source that a run can work,
// with small objects that it removes again where it may. It needs no state and
// may run beside a daemon. The report is valid also with an error:
// ErrSomeFailed when something is missing, another one when no source got an
// answer.
func Run(ctx context.Context, o Options) (Report, error) {
	report := Report{Format: 1, OK: true, Sources: []Source{}}
	if err := host.Supported(o.Config); err != nil {
		return report, err
	}
	if _, err := new(fscheck.Checker).Placed(o.Config); err != nil {
		return report, err
	}
	log, err := logsink.NewConsole(o.Config.Log, o.Stderr)
	if err != nil {
		return report, err
	}
	p := &preflight{opts: o, log: log}
	if err := p.openIndex(); err != nil {
		return report, err
	}
	report, err = p.run(ctx, report)
	if p.db != nil {
		err = errors.Join(err, p.db.Close())
	}
	return report, err
}

// openIndex opens the state if there is one and no other process holds it.
func (p *preflight) openIndex() error {
	there, err := state.Exists(p.opts.Config.StateDir)
	if err != nil || !there {
		return err
	}
	p.db, err = pipeline.OpenState(p.opts.Config, &pipeline.Clock{}, p.log)
	if _, busy := errors.AsType[*pipeline.BusyError](err); busy {
		return nil
	}
	return err
}

// run examines one source after the other.
func (p *preflight) run(ctx context.Context, report Report) (Report, error) {
	o := p.opts
	p.metrics = &pipeline.Metrics{Store: s3conn.NewMetrics(prometheus.NewPedanticRegistry())}
	answered := false
	for i := range o.Config.Sources {
		s, err := p.source(ctx, i)
		if err != nil {
			return report, fmt.Errorf("source %s: %w", o.Config.Sources[i].Name, err)
		}
		if ctx.Err() != nil {
			return report, pipeline.ErrInterrupted
		}
		report.Sources = append(report.Sources, s)
		answered = answered || s.Answered
		report.OK = report.OK && s.ok()
	}
	switch {
	case !answered:
		return report, errors.New("no destination answered")
	case !report.OK:
		return report, pipeline.ErrSomeFailed
	}
	return report, nil
}

// ok reports whether a run can work as it is configured.
func (s *Source) ok() bool {
	return s.Answered && !slices.ContainsFunc(s.Checks, func(c Check) bool {
		return c.Verdict == VerdictMissing || c.Verdict == VerdictFault
	})
}

// preflight is one run of the command.
type preflight struct {
	opts    Options
	log     *zap.Logger
	metrics *pipeline.Metrics
	db      *state.DB // nil: there is no index, or a daemon holds it
}

func (p *preflight) source(ctx context.Context, i int) (Source, error) {
	c := p.opts.Config.Sources[i]
	env := pipeline.Session{Config: p.opts.Config, Log: p.log, Metrics: p.metrics}
	out := Source{
		Source: c.Name, Bucket: c.Bucket, Prefix: c.Prefix, KMSKeyID: c.KMSKeyID, Checks: []Check{}, Left: []string{},
	}
	store, err := s3store.Open(ctx, env.StoreOptions(c, zap.NewNop()))
	if err != nil {
		return out, err
	}
	defer store.CloseIdle()
	out.Region = store.Region()
	directory := directoryCheck(ctx, &c)
	out.Checks = append(out.Checks, directory)
	body, unused := p.opts.Config.Upload.PartSize, []string(nil)
	if directory.Verdict == VerdictOK { // One that hangs would hold up the rest.
		out.Plan, body, unused = p.plan(ctx, i)
	}
	e := store.Examine(ctx, c.Deletes == archive.DeletesMirror, body)
	t := &translator{source: &c, arns: iam.ARNsOf(&c, out.Region), lockMode: p.opts.Config.Manifest.ObjectLock.Mode}
	for _, trial := range e.Trials {
		tried := trial.Skip == ""
		out.Answered = out.Answered || tried && (trial.Err == nil || !s3store.NoAnswer(trial.Err))
		out.Checks = append(out.Checks, t.translate(trial))
	}
	out.Left, out.Resolved = append(out.Left, e.Left...), e.Key
	out.Checks = append(out.Checks, clockCheck(e.Offset))
	if sign := signCheck(ctx, &env, c); sign != nil {
		out.Checks = append(out.Checks, *sign)
	}
	if len(unused) > 0 {
		out.Checks = append(out.Checks, Check{Check: "include", Verdict: VerdictNote, Detail: unusedText(unused)})
	}
	return out, nil
}

// directoryCheck looks whether the directory is there.
func directoryCheck(ctx context.Context, c *config.Source) Check {
	root := pipeline.RootOf(c)
	if err := fscheck.Within(ctx, fscheck.HungAfter, func() error { _, err := root.Identify(); return err }); err != nil {
		return Check{Check: "directory", Verdict: VerdictFault, Feature: "everything: the source pauses until it is there", Detail: err.Error()}
	}
	return Check{Check: "directory", Verdict: VerdictOK}
}

// clockLimit is how far S3 lets a clock be off.
const clockLimit = 15 * time.Minute

func clockCheck(offset time.Duration) Check {
	c := Check{Check: "clock", Verdict: VerdictOK}
	switch off := offset.Round(time.Second); {
	case offset.Abs() >= clockLimit:
		c.Verdict, c.Detail = VerdictFault, fmt.Sprintf("this host's clock is %v off the server's; at 15m0s S3 refuses requests", off)
	case offset.Abs() >= time.Minute:
		c.Verdict, c.Detail = VerdictNote, fmt.Sprintf("this host's clock is %v off the server's; the trail's times are corrected", off)
	}
	return c
}

// signCheck signs something with the configured key.
func signCheck(ctx context.Context, env *pipeline.Session, c config.Source) *Check {
	signer, err := env.OpenSigner(ctx, env.Config.Manifest.Sign, c)
	if err == nil && signer == nil {
		return nil
	}
	if err == nil {
		_, _, _, err = signer.Sign(ctx, []byte("s3syncd preflight\n"))
	}
	if err == nil {
		_, err = signer.PublicKey(ctx)
	}
	check := &Check{Check: "sign", Verdict: VerdictOK}
	if err == nil {
		return check
	}
	check.Verdict, check.Feature, check.Detail = VerdictFault, "signatures of the digests", err.Error()
	if strings.HasPrefix(env.Config.Manifest.Sign, "kms:") {
		check.Feature += "; a key in KMS wants kms:Sign and kms:GetPublicKey"
	}
	return check
}

// plan counts what the next run of one source would do, nil where its directory
// cannot be read, and returns the size of the largest body that it would send
// and the patterns of its include that match no file.
func (p *preflight) plan(ctx context.Context, i int) (plan *Plan, body int64, unused []string) {
	s, err := oneshot.Foresee(ctx, p.opts.Config, i, p.db, p.log)
	if err != nil {
		return nil, p.opts.Config.Upload.PartSize, nil
	}
	plan = &Plan{
		Files: s.Uploaded, Bytes: s.Bytes, Unchanged: s.Skipped, Run: s.Plan.Run, Day: s.Plan.Day, FlushesDay: s.Plan.FlushesDay, Indexed: p.db != nil,
	}
	return plan, s.Largest, s.UnusedIncludes
}

// translator words the trials of one source for an operator.
type translator struct {
	source   *config.Source
	arns     iam.ARNs
	lockMode string
}

// need is what a check proves.
type need struct {
	action   string // of S3
	kms      string // of KMS, "" for none
	bucket   bool   // the action is on the bucket, else on the objects
	feature  string
	optional bool // run and sync do without it
}

// needOf returns what a check proves.
func (t *translator) needOf(c s3store.Check) need {
	return map[s3store.Check]need{
		s3store.CheckList:        {action: "s3:ListBucket", bucket: true, feature: "the daily comparison with the bucket, a lost state, verify, restore, rekey"},
		s3store.CheckPut:         {action: "s3:PutObject", kms: "kms:GenerateDataKey", feature: "every upload and the trail"},
		s3store.CheckHead:        {action: "s3:GetObject", feature: "recognizing what is there already, settling interrupted writes"},
		s3store.CheckGet:         {action: "s3:GetObject", kms: "kms:Decrypt", feature: "reading the trail back: verify, restore, a manifest whose answer was lost"},
		s3store.CheckCreate:      {action: "s3:PutObject", kms: "kms:GenerateDataKey", feature: "files above upload.single_put_max"},
		s3store.CheckPart:        {action: "s3:PutObject", kms: "kms:Decrypt", feature: "files above upload.single_put_max"},
		s3store.CheckComplete:    {action: "s3:PutObject", kms: "kms:Decrypt", feature: "files above upload.single_put_max"},
		s3store.CheckListParts:   {action: "s3:ListMultipartUploadParts", feature: "taking up an interrupted multipart upload: it is sent again from its start"},
		s3store.CheckAbort:       {action: "s3:AbortMultipartUpload", feature: "removing interrupted multipart uploads: their parts cost until a lifecycle rule removes them"},
		s3store.CheckListUploads: {action: "s3:ListBucketMultipartUploads", bucket: true, feature: "looking for abandoned uploads by hand", optional: true},
		s3store.CheckVersions:    {action: "s3:ListBucketVersions", bucket: true, feature: "verify's look at deletions, restore at a time", optional: true},
		s3store.CheckLock:        {action: "s3:PutObjectRetention", feature: "manifest.object_lock: no manifest can be published"},
		s3store.CheckDelete:      {action: "s3:DeleteObject", feature: t.deleteFeature(), optional: t.source.Deletes != archive.DeletesMirror},
	}[c]
}

func (t *translator) deleteFeature() string {
	if t.source.Deletes == archive.DeletesMirror {
		return "deletes: mirror"
	}
	return "removing what this preflight wrote"
}

func (t *translator) translate(trial s3store.Trial) Check {
	n := t.needOf(trial.Check)
	if e, ok := errors.AsType[*archive.Error](trial.Err); ok && e.Op == "HeadObject" {
		head := t.needOf(s3store.CheckHead) // A check may need to ask for what it did.
		n.action, n.kms = head.action, ""
	}
	c := Check{Check: string(trial.Check), Verdict: VerdictOK, Detail: trial.Detail}
	switch err := trial.Err; {
	case trial.Skip != "":
		c.Verdict, c.Detail = VerdictSkipped, trial.Skip
		return c
	case err == nil && trial.Lack != "":
		c.Verdict, c.Detail = VerdictNote, trial.Lack
		return c
	case err == nil:
		return c
	case t.denied(err) && n.action != "":
		c.Verdict, c.Actions, c.Resource = VerdictMissing, []string{n.action}, t.resource(n)
		t.refine(&c, n, err)
		if n.optional {
			c.Verdict = VerdictOptional
		}
	case n.optional:
		c.Verdict = VerdictOptional
	default:
		c.Verdict = VerdictFault
	}
	c.Feature, c.Detail = n.feature, trial.Err.Error()
	return c
}

// denied reports whether err is about a permission.
func (t *translator) denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) && archive.ClassOf(err).Parks() && !archive.ClassOf(err).Meaning().EveryRequest
}

// refine names the action that the server named, or both that it may have been.
func (t *translator) refine(c *Check, n need, err error) {
	if action, resource, ok := admin.DeniedAction(err.Error()); ok {
		c.Actions = []string{action}
		switch {
		case resource != "":
			c.Resource = resource
		case strings.HasPrefix(action, "kms:"):
			c.Resource = t.arns.Key
		}
		return
	}
	if n.kms != "" {
		c.Actions = append(c.Actions, n.kms)
		c.Resource += " and " + t.arns.Key
	}
}

func (t *translator) resource(n need) string {
	switch {
	case n.bucket:
		return t.arns.BucketARN
	case n.action == "s3:PutObjectRetention":
		return t.arns.Trail
	}
	return t.arns.Objects
}
