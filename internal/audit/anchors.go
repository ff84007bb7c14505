package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// statusWait is how long a daemon is waited for that might tell what it has not
// published yet.
const statusWait = 5 * time.Second

// Vouchers are what an operator knows of a trail from elsewhere.
type Vouchers struct {
	ExpectHead string   // the SHA-256 of a digest
	AnchorFile string   // heads of earlier clean runs
	PublicKeys []string // files

	keys []*trail.PublicKey
	file *anchor.File
}

// load reads the files.
func (v *Vouchers) load() error {
	for _, file := range v.PublicKeys {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--public-key: %w", err)
		}
		k, err := trail.ParsePublicKey(data)
		if err != nil {
			return fmt.Errorf("%w: --public-key %s: %w", ErrWrongUse, file, err)
		}
		v.keys = append(v.keys, k)
	}
	if v.AnchorFile == "" {
		return nil
	}
	var err error
	if v.file, err = anchor.Read(v.AnchorFile); err != nil {
		return fmt.Errorf("--anchor: %w", err)
	}
	return nil
}

// heads returns what is known of one trail.
func (v *Vouchers) heads(bucket, prefix string) (list []anchor.Anchor) {
	if v.ExpectHead != "" {
		list = append(list, anchor.Anchor{SHA256: strings.ToLower(v.ExpectHead), From: "--expect-head"})
	}
	if v.file != nil {
		list = append(list, v.file.Of(bucket, prefix)...)
	}
	return list
}

// note keeps the heads of a trail that was found clean.
func (v *Vouchers) note(bucket, prefix string, heads []anchor.Anchor, now time.Time) {
	if v.file != nil {
		v.file.Note(bucket, prefix, heads, now)
	}
}

// save writes the file of heads, where there is one.
func (v *Vouchers) save() error {
	if v.file == nil {
		return nil
	}
	if err := v.file.Write(v.AnchorFile); err != nil {
		return fmt.Errorf("--anchor: %w", err)
	}
	return nil
}

// hostTrail is what the host that archives a source knows of its trail: its
// state, or the daemon that has it open, and its copies. On another machine it
// is nothing.
type hostTrail struct {
	cfg    *config.Config
	source *config.Source
}

// unknownWait is how long a document may wait to be published where neither the
// state nor its daemon can be asked.
const unknownWait = 24 * time.Hour

// flushWait is how long a daemon may take to publish what has changed.
const flushWait = time.Minute

// flush has a running daemon publish what has changed, so that what it has not
// told yet is no finding. It returns why that was not done; "" where it was, or
// where no daemon runs.
func (h *hostTrail) flush(ctx context.Context) string {
	client := admin.NewClient(h.cfg.Admin.Socket)
	ask, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if _, err := client.Status(ask); err != nil {
		return ""
	}
	ask, cancel = context.WithTimeout(ctx, flushWait+statusWait)
	defer cancel()
	a, err := client.Flush(ask, []string{h.source.Name}, flushWait)
	if err != nil {
		return err.Error()
	}
	for _, s := range a.Sources {
		if !s.Done {
			return strings.Join(s.Reasons, "; ")
		}
	}
	return ""
}

// hostState is what the state says of a source's chain.
type hostState struct {
	known    bool // it could be asked
	chain    string
	sequence uint64 // of the newest digest, 0: none
	sha      string
	outbox   map[string]bool // keys of documents that wait, nil: only their number is known
	waiting  int
	pending  bool // the newest digest may wait
}

// state asks the state, or the daemon that has it open.
func (h *hostTrail) state(ctx context.Context) hostState {
	p, err := state.Peek(h.cfg.StateDir, state.SourceKey{Bucket: h.source.Bucket, Prefix: h.source.Prefix, RealPath: fscheck.RealPath(h.source.Path)})
	if err == nil {
		s := hostState{known: true, chain: p.Chain.ID, sha: p.Chain.PrevSHA256, outbox: map[string]bool{}}
		if p.Chain.PrevKey != "" {
			s.sequence = p.Chain.Sequence - 1
		}
		for _, d := range p.Outbox {
			s.outbox[d.Key] = true
		}
		s.pending = s.outbox[p.Chain.PrevKey]
		return s
	}
	ask, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	st, _, err := admin.NewClient(h.cfg.Admin.Socket).StatusJSON(ask)
	if err != nil {
		return hostState{}
	}
	for i := range st.Sources {
		if s := &st.Sources[i]; s.Name == h.source.Name {
			return hostState{
				known: true, chain: s.Trail.Chain, sequence: s.Trail.Sequence, sha: s.Trail.LastDigestSHA256,
				waiting: s.Trail.WaitingDocuments, pending: s.Trail.WaitingDocuments > 0,
			}
		}
	}
	return hostState{}
}

// anchors returns the digests that the host knows.
func (h *hostTrail) anchors(ctx context.Context) ([]anchor.Anchor, error) {
	prefix := archive.NewMapper(h.source.Prefix).Prefix()
	st := h.state(ctx) // Before the copies: what it knows has one.
	var list []anchor.Anchor
	dir := filepath.Join(h.cfg.Manifest.LocalDir, h.source.Name)
	lib, err := trail.DirLibrary(dir, prefix+archive.ReservedDir+"/")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if list, err = anchor.Local(ctx, trail.NewTrail(lib, prefix), h.source.Bucket, st.waits); err != nil {
			return nil, fmt.Errorf("local copies in %s: %w", dir, err)
		}
	}
	return st.add(list, h.cfg.Instance), nil
}

// waits returns which of the documents that the host has copies of, in the order
// in which they were written, may not be published yet: those in the outbox, or
// as many of the newest as wait, or those of a day where nothing is known.
func (s *hostState) waits(keys []string) map[string]bool {
	if s.known && s.outbox != nil {
		return s.outbox
	}
	if s.known {
		keys = keys[len(keys)-min(len(keys), s.waiting):]
	}
	waiting := make(map[string]bool, len(keys))
	for _, k := range keys {
		n, _ := trail.ParseName(k)
		waiting[k] = s.known || time.Since(n.Time) < unknownWait
	}
	return waiting
}

// add adds the head that the state knows, and marks the chain that the host goes
// on with.
func (s *hostState) add(list []anchor.Anchor, instance string) []anchor.Anchor {
	own := func(a anchor.Anchor) bool {
		return a.Instance == instance && a.Chain == s.chain && a.Sequence == s.sequence
	}
	if s.known && s.sequence > 0 && s.sha != "" && !slices.ContainsFunc(list, own) {
		list = append(list, anchor.Anchor{
			Instance: instance, Chain: s.chain, Sequence: s.sequence, SHA256: s.sha, Local: true, From: "the host's state",
			Waiting: s.pending,
		})
	}
	current := s.current(list)
	for i := range list {
		a := &list[i]
		a.Current = a.Instance == instance && a.Chain == current
		// What was sealed since the state was asked may wait as well.
		a.Waiting = a.Waiting || s.known && a.Current && a.Sequence > s.sequence
	}
	return list
}

// current returns the chain that the host continues: the state's, or without
// one the chain that was written last.
func (s *hostState) current(list []anchor.Anchor) string {
	if s.known || len(list) == 0 {
		return s.chain
	}
	return slices.MaxFunc(list, func(a, b anchor.Anchor) int { return cmp.Compare(a.Written.Unix(), b.Written.Unix()) }).Chain
}

// again returns what asks the host once more, nil where it gave no answer.
func (h *hostTrail) again(err error) func(context.Context) ([]anchor.Anchor, error) {
	if err != nil {
		return nil
	}
	return h.anchors
}

// keys returns the public half of the key in a file that the host signs with,
// none where it signs with none, or with one that cannot be read.
func (h *hostTrail) keys(ctx context.Context) []*trail.PublicKey {
	file, ok := strings.CutPrefix(h.cfg.Manifest.Sign, "ed25519:")
	if !ok {
		return nil
	}
	signer, err := host.LoadKey(file, h.cfg)
	if err != nil {
		return nil
	}
	data, err := signer.PublicKey(ctx)
	if err != nil {
		return nil
	}
	key, err := trail.ParsePublicKey(data)
	if err != nil {
		return nil
	}
	return []*trail.PublicKey{key}
}
