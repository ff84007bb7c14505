package manifest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/signer"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func newKey(t *testing.T) Signer {
	t.Helper()
	path, _ := writeKey(t, 0o600)
	key, err := signer.LoadEd25519(path)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// forgeDigest puts a digest in the bucket that the host did not write, and
// returns its SHA-256.
func (r *rig) forgeDigest(at time.Time, change func(*trail.Digest)) string {
	r.Helper()
	digests := slices.DeleteFunc(r.bucket.created(), func(key string) bool { n, ok := trail.ParseName(key); return !ok || !n.Digest })
	last := digests[len(digests)-1]
	d := mustDigest(r.T, r.bucket.objects[last])
	sha := hexSHA(r.bucket.objects[last])
	d.Sequence, d.PreviousDigestS3Key, d.PreviousDigestSHA256 = d.Sequence+1, &last, &sha
	d.StartTime, d.EndTime = d.EndTime, archive.FormatTime(at)
	d.Manifests, d.Counts, d.Events, d.Scans = nil, trail.Counts{}, nil, nil
	change(&d)
	data, err := d.Encode()
	r.must(err)
	name := trail.Name{Digest: true, Time: at, Instance: d.Instance, Chain: d.Chain, Sequence: d.Sequence}
	r.bucket.objects["p/_manifests/"+name.Path()] = data
	return hexSHA(data)
}

// Whoever can write the bucket puts a digest where the next start of the host looks
// for one. No chain of the host may lead to it: its signatures would vouch for it.
func TestAForgedDigestIsNotFollowed(t *testing.T) {
	behind := func(*trail.Digest) {}
	other := func(d *trail.Digest) {
		d.AbandonsChain, d.AbandonsDigestSHA256 = d.Chain, *d.PreviousDigestSHA256
		d.Chain, d.Sequence, d.PreviousDigestS3Key, d.PreviousDigestSHA256 = "deadbeef", 1, nil, nil
		d.Begins = archive.BeginsStateLost
	}
	key := newKey(t)
	for name, c := range map[string]struct {
		sign   Signer
		forge  func(*trail.Digest)
		next   bool     // it has the name of the run's first digest
		noList bool     // nobody may list
		lost   []string // what the host has lost
	}{
		"behind the newest":                  {sign: key, forge: behind},
		"behind the newest, copies lost":     {sign: key, forge: behind, lost: []string{"manifests"}},
		"behind the newest, state lost":      {sign: key, forge: behind, lost: []string{"state", "manifests"}},
		"under the next name":                {sign: key, forge: behind, next: true},
		"under the next name, no list":       {sign: key, forge: behind, next: true, noList: true},
		"behind the newest, copies there":    {forge: behind, lost: []string{"state"}},
		"a chain that follows":               {sign: key, forge: other},
		"a chain that follows, unsigned":     {forge: other},
		"a chain that follows, state lost":   {sign: key, forge: other, lost: []string{"state", "manifests"}},
		"a chain that follows, copies there": {forge: other, lost: []string{"state"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Sign = c.sign })
			r.begin(state.Report{New: true})
			r.must(r.f.Claim(t.Context()))
			r.commit("a", 1)
			r.advance(time.Minute)
			r.flush(trail.ReasonStop)
			old := r.chain()
			r.advance(time.Minute)
			at := r.clock()
			if c.next {
				at = old.LastNamed
			}
			forged := r.forgeDigest(at, c.forge)
			r.advance(time.Minute)
			r.close()
			for _, dir := range c.lost {
				r.must(os.RemoveAll(r.dir + "/" + dir))
			}
			if c.noList {
				r.bucket.set(noList, nil)
			}
			r.open()
			r.begin(state.Report{New: slices.Contains(c.lost, "state")})
			r.must(r.f.Claim(t.Context()))
			r.commit("b", 1)
			r.flush(trail.ReasonFlush)
			for _, key := range r.bucket.created() {
				if n, ok := trail.ParseName(key); !ok || !n.Digest {
					continue
				}
				d := mustDigest(t, r.bucket.objects[key])
				if d.AbandonsDigestSHA256 == forged || deref(d.PreviousDigestSHA256) == forged {
					t.Errorf("%s follows the forged digest %s", key, forged)
				}
			}
			if ch := r.chain(); ch.AbandonsChain == "deadbeef" {
				t.Errorf("the host follows the forged chain: %+v", ch)
			}
		})
	}
}

// A host that has lost its state, and neither signs nor has copies, can only take
// the bucket's word.
func TestALostStateFollowsTheNewestChain(t *testing.T) {
	for name, sign := range map[string]Signer{"unsigned": nil, "signed": newKey(t)} {
		r := newRig(t, func(o *Options) { o.Sign = sign })
		r.begin(state.Report{New: true})
		r.must(r.f.Claim(t.Context()))
		r.commit("a", 1)
		r.flush(trail.ReasonFlush)
		old := r.chain()
		r.close()
		r.must(os.RemoveAll(r.dir + "/state"))
		r.must(os.RemoveAll(r.local()))
		r.open()
		r.begin(state.Report{New: true})
		if ch := r.chain(); ch.AbandonsChain != old.ID || ch.AbandonsSHA256 != old.PrevSHA256 {
			t.Errorf("%s: chain = %+v, want one that follows %s at %s", name, ch, old.ID, old.PrevSHA256)
		}
	}
}

// The newest digest of a run that was killed has no signature: the chain is
// followed, and vouched for by the signatures that it has.
func TestALostStateFollowsAChainWithoutItsLastSignature(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Sign = newKey(t) })
	r.begin(state.Report{New: true})
	r.must(r.f.Claim(t.Context()))
	r.flush(trail.ReasonFlush)
	r.advance(time.Minute)
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	old := r.chain()
	delete(r.bucket.objects, strings.TrimSuffix(old.PrevKey, ".json")+trail.SignatureSuffix)
	r.close()
	r.must(os.RemoveAll(r.dir + "/state"))
	r.must(os.RemoveAll(r.local()))
	r.open()
	r.begin(state.Report{New: true})
	if ch := r.chain(); ch.AbandonsChain != old.ID || ch.AbandonsSHA256 != "" {
		t.Errorf("chain = %+v, want one that follows %s at no digest", ch, old.ID)
	}
}

// Chains of one second are told apart by when they ended.
func TestALostStateFollowsTheLastChainOfOneSecond(t *testing.T) {
	for name, sign := range map[string]Signer{"unsigned": nil, "signed": newKey(t)} {
		for range 8 { // Their ids are random.
			r := newRig(t, func(o *Options) { o.Sign = sign })
			for i := range 4 {
				r.begin(state.Report{New: true})
				if ch := r.chain(); i > 0 && ch.AbandonsSHA256 == "" {
					t.Errorf("%s: chain = %+v names no digest", name, ch)
				}
				r.advance(time.Millisecond)
				r.flush(trail.ReasonFlush)
				old := r.chain()
				r.close()
				r.must(os.RemoveAll(r.dir + "/state"))
				r.must(os.RemoveAll(r.local()))
				r.open()
				r.begin(state.Report{New: true})
				if ch := r.chain(); ch.AbandonsChain != old.ID {
					t.Errorf("%s: chain = %+v, want one that follows %s", name, ch, old.ID)
				}
				r.close()
				r.must(os.RemoveAll(r.dir + "/state"))
				r.must(os.RemoveAll(r.local()))
				r.open()
			}
		}
	}
}

// A chain under another prefix is signed by a key that stands there too, with its
// announcement.
func TestTheKeyIsPublishedInEachTrail(t *testing.T) {
	before, key := newKey(t), newKey(t)
	prefix := "p"
	r := newRig(t, func(o *Options) {
		o.Sign, o.SignBefore, o.Mapper = key, before, archive.NewMapper(prefix)
	})
	keys := func(prefix string) (names []string) {
		for _, k := range r.bucket.created() {
			if rest, ok := strings.CutPrefix(k, prefix+"/_manifests/keys/"); ok {
				names = append(names, rest)
			}
		}
		slices.Sort(names)
		return names
	}
	r.begin(state.Report{New: true})
	r.flush(trail.ReasonStop)
	first := keys("p")
	if len(first) != 3 {
		t.Fatalf("keys = %v, want two and an announcement", first)
	}
	r.close()
	r.must(os.RemoveAll(r.dir + "/state"))
	prefix = "q"
	r.open()
	r.begin(state.Report{New: true})
	r.flush(trail.ReasonStop)
	if got := keys("q"); !slices.Equal(got, first) {
		t.Errorf("keys below the other prefix = %v, want %v", got, first)
	}
}

// Chains that are made up by the thousand, or digests that are large, cost a start
// little.
func TestForgedChainsCostAStartLittle(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.must(r.f.Claim(t.Context()))
	r.flush(trail.ReasonStop)
	old := r.chain()
	r.advance(time.Minute)
	for i := range 3 * surveypkg.FirstsRead {
		r.forgeDigest(r.clock(), func(d *trail.Digest) {
			d.AbandonsChain, d.AbandonsDigestSHA256 = old.ID, *d.PreviousDigestSHA256
			d.Chain, d.Sequence, d.PreviousDigestS3Key, d.PreviousDigestSHA256 = fmt.Sprintf("%08x", 0xf0000000+i), 1, nil, nil
			d.Begins = archive.BeginsStateLost
		})
	}
	r.close()
	r.open()
	before := len(r.bucket.asked())
	r.begin(state.Report{})
	r.must(r.f.Claim(t.Context()))
	if got := len(r.bucket.asked()) - before; got > 2*surveypkg.FirstsRead {
		t.Errorf("a start makes %d requests beside %d forged chains", got, 3*surveypkg.FirstsRead)
	}
	if ch := r.chain(); ch.ID != old.ID || r.glance(t).Twin == "" {
		t.Errorf("the chain is %+v, want %s, and a twin in the status", ch, old.ID)
	}
}

// deaf is a signer that does not answer.
type deaf struct{}

func (deaf) Sign(context.Context, []byte) (algorithm, fingerprint string, sig []byte, err error) {
	return "", "", nil, errors.New("no answer")
}

func (deaf) PublicKey(context.Context) ([]byte, error) { return nil, errors.New("no answer") }

// A signer that gives no answer holds up nothing, and makes no digest somebody
// else's: the chain of an old state is left at no digest.
func TestAnOldStateWithoutItsSigner(t *testing.T) {
	for _, list := range []bool{true, false} {
		sign := newKey(t)
		r := newRig(t, func(o *Options) { o.Sign = sign })
		r.run("a", 1, false)
		r.copyTo("backup")
		r.open()
		r.run("b", 1, false)
		r.restore("backup", "state", "manifests")
		sign = deaf{}
		if !list {
			r.bucket.set(noList, nil)
		}
		r.open()
		old := r.chain()
		r.begin(state.Report{})
		r.must(r.f.Claim(t.Context()))
		if ch := r.chain(); ch.Begins != archive.BeginsForked || ch.AbandonsChain != old.ID || ch.AbandonsSHA256 != "" {
			t.Errorf("list %v: chain = %+v, want one that leaves %s at no digest", list, ch, old.ID)
		}
	}
}
