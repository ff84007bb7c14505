package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// ErrWrongUse is a command line that does not say what the command needs to
// know.
var ErrWrongUse = errors.New("usage")

// ErrRefused is what a configuration says, or the AWS environment, and no store
// can be opened with. Another try would not help.
var ErrRefused = s3conn.ErrOptions

// Origin is where an archived source stands, for a command that reads it.
type Origin struct {
	Bucket              string
	Prefix              string // without slashes around it
	Region              string // "": as the AWS environment says
	EndpointURL         string // "": AWS, or as the AWS environment says
	PathStyle           bool
	AllowInsecure       bool // http:// to another host
	ExpectedBucketOwner string
	Profile             string

	Path     string // the source's directory, "": not known
	Instance string // of the configuration, "": not known

	host *hostTrail // what this host may know of the trail, nil: nothing
}

// OfAnother returns o for what another host archived: this one knows nothing of
// its trail.
func (o Origin) OfAnother() Origin {
	o.host = nil
	return o
}

// OriginOf returns where the source of this name is archived. With an empty
// name the configuration must have one source alone.
func OriginOf(cfg *config.Config, name string) (Origin, error) {
	i := slices.IndexFunc(cfg.Sources, func(s config.Source) bool { return s.Name == name })
	if name == "" && len(cfg.Sources) == 1 {
		i = 0
	}
	if i < 0 {
		names := make([]string, len(cfg.Sources))
		for i, s := range cfg.Sources {
			names[i] = s.Name
		}
		if name == "" {
			return Origin{}, fmt.Errorf("%w: --source is needed; the sources are %s", ErrWrongUse, strings.Join(names, ", "))
		}
		return Origin{}, fmt.Errorf("%w: there is no source %q; the sources are %s", ErrWrongUse, name, strings.Join(names, ", "))
	}
	s := cfg.Sources[i]
	return Origin{
		Bucket: s.Bucket, Prefix: s.Prefix, Region: s.Region, EndpointURL: cfg.S3.EndpointURL, PathStyle: cfg.S3.PathStyle,
		AllowInsecure: cfg.S3.AllowInsecureEndpoint, ExpectedBucketOwner: s.ExpectedBucketOwner, Profile: s.Profile,
		Path: s.Path, Instance: cfg.Instance, host: &hostTrail{cfg: cfg, source: &cfg.Sources[i]},
	}, nil
}

// open connects to the bucket, for reading. It makes no request.
func (o Origin) open(ctx context.Context, workers int, log *zap.Logger) (*s3store.Reader, error) {
	return s3store.OpenReader(ctx, s3store.Options{
		Region: o.Region, EndpointURL: o.EndpointURL, PathStyle: o.PathStyle, AllowInsecure: o.AllowInsecure,
		ExpectedBucketOwner: o.ExpectedBucketOwner, Profile: o.Profile, Bucket: o.Bucket, Prefix: o.Prefix,
		Workers: workers, Log: log.Named("s3"), Metrics: s3conn.NewMetrics(prometheus.NewRegistry()),
	})
}

func (o Origin) mapper() archive.Mapper { return archive.NewMapper(o.Prefix) }

// trail returns where the audit trail stands, for an operator.
func (o Origin) trail() string { return "s3://" + o.Bucket + "/" + o.mapper().TrailPrefix() }

// below returns what path names below the source: a path below it, or an
// absolute one where the directory of the source is known.
func (o Origin) below(path string) (string, error) {
	rel := path
	if strings.HasPrefix(path, "/") {
		var ok bool
		if rel, ok = strings.CutPrefix(path, strings.TrimSuffix(o.Path, "/")+"/"); !ok || o.Path == "" {
			if o.Path != "" && strings.TrimSuffix(path, "/") == o.Path {
				return "", nil
			}
			return "", fmt.Errorf("%w: %q is not below the source: name a path relative to it", ErrWrongUse, path)
		}
	}
	rel = strings.TrimSuffix(strings.TrimPrefix(rel, "./"), "/")
	if rel == "" || rel == "." {
		return "", nil
	}
	if _, err := o.mapper().Key(rel); err != nil && !errors.Is(err, archive.ErrKeyTooLong) {
		return "", fmt.Errorf("%w: %w", ErrWrongUse, err)
	}
	return rel, nil
}

// pickInstance returns whose chains are meant: the one that was asked for, the
// only one, or the configuration's own.
func (o Origin) pickInstance(ctx context.Context, trail *trail.Trail, asked string) (string, error) {
	chains, err := trail.Chains(ctx)
	if err != nil {
		return "", fmt.Errorf("read the trail under %s: %w", o.trail(), err)
	}
	var names []string
	for i := range chains {
		if n := chains[i].Instance; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	switch {
	case len(names) == 0:
		return "", fmt.Errorf("no audit trail stands under %s: is it the right prefix?", o.trail())
	case asked != "" && !slices.Contains(names, asked):
		return "", fmt.Errorf("%w: instance %q has no trail under %s; there are: %s", ErrWrongUse, asked, o.trail(), strings.Join(names, ", "))
	case asked != "":
		return asked, nil
	case len(names) == 1:
		return names[0], nil
	case slices.Contains(names, o.Instance):
		return o.Instance, nil
	}
	return "", fmt.Errorf("%w: --instance is needed: several have trails under %s: %s", ErrWrongUse, o.trail(), strings.Join(names, ", "))
}

// plainLogger writes warnings for an operator.
func plainLogger(w io.Writer) (*zap.Logger, error) {
	log, _, err := logsink.NewLogger(config.Log{Level: "warn", Format: "console"}, w)
	return log, err
}
