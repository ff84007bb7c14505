package manifest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// dies leaves the rig's process dead after it has sealed: nothing of the outbox
// was sent, or the manifests and not their digest.
func (r *rig) dies(how string) {
	r.Helper()
	switch how {
	case "records sealed":
		r.must(r.f.sealer.seal(r.Context()))
	case "digest sealed":
		_, err := r.f.sealAll(r.Context(), trail.ReasonFlush)
		r.must(err)
	case "manifest published":
		r.must(r.f.sealer.seal(r.Context()))
		r.must(r.f.publisher.publish(r.Context()))
	}
}

// A killed run leaves sealed documents. The next one may have another name for the
// source, or another local_dir, and the operator may have moved the files along.
func TestSealedDocumentsAreFoundAfterAPlannedChange(t *testing.T) {
	changes := map[string]func(r *rig, from, to string){
		"the source has another name": func(*rig, string, string) {},
		"the directory moved along":   func(r *rig, from, to string) { r.must(os.Rename(from, to)) },
		"another source has been there": func(r *rig, _, to string) {
			r.must(os.MkdirAll(to, 0o700))
			r.must(os.WriteFile(filepath.Join(to, trail.Name{Time: r.clock(), Instance: "app-01", Chain: "deadbeef", Sequence: 1, N: 1}.String()), []byte("[\n]\n"), 0o600))
		},
		"the copies are lost": func(r *rig, from, _ string) { r.must(os.RemoveAll(from)) },
	}
	for name, change := range changes {
		for _, how := range []string{"records sealed", "digest sealed", "manifest published"} {
			for _, layout := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
				if name == "the copies are lost" && how == "digest sealed" {
					continue // TestALostDigestBeginsAnotherChain
				}
				t.Run(name+", "+how+", "+string(layout), func(t *testing.T) {
					r := newRig(t, func(o *Options) { o.Layout, o.MaxRecords = layout, 4 })
					r.begin(state.Report{New: true})
					r.commit("a", 3)
					r.flush(trail.ReasonFlush)
					r.advance(time.Minute)
					r.commit("b", 6)
					r.dies(how)
					from, to := r.local(), filepath.Join(r.dir, "elsewhere", "renamed")
					r.close()
					r.must(os.MkdirAll(filepath.Dir(to), 0o700))
					change(r, from, to)
					opt := r.opt
					r.opt = func(o *Options) { opt(o); o.LocalDir = to }
					r.open()
					r.begin(state.Report{Unclean: true})
					r.commit("c", 2)
					r.flush(trail.ReasonStop)
					digests, paths := r.trail()
					r.wantOnce(paths, map[string]int{"a": 3, "b": 6, "c": 2}, "a", "b", "c")
					for _, d := range digests {
						if d.Chain != digests[0].Chain {
							t.Errorf("chain %s begins %s, want one chain", d.Chain, d.Begins)
						}
					}
					if r.st.Home() != to {
						t.Errorf("Home = %s, want %s", r.st.Home(), to)
					}
				})
			}
		}
	}
}

// Two sources that exchange their names keep what is their own, also where only one
// of them has moved when the other is swept.
func TestCopiesOfAnotherTrailStay(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	other := trail.Name{Digest: true, Time: r.clock(), Instance: "app-01", Chain: "deadbeef", Sequence: 1}
	d := trail.Digest{Version: 1, Instance: "app-01", Source: "x", Bucket: "b", Prefix: "q/", Chain: "deadbeef", Sequence: 1, Begins: archive.BeginsNew}
	data, err := d.Encode()
	r.must(err)
	manifest := trail.Name{Time: r.clock(), Instance: "app-01", Chain: "deadbeef", Sequence: 1, N: 1}
	r.must(os.WriteFile(filepath.Join(r.local(), other.Path()), data, 0o600))
	r.must(os.WriteFile(filepath.Join(r.local(), manifest.Path()), []byte("[\n]\n"), 0o600))
	ours := slices.DeleteFunc(r.files(), func(n string) bool { return strings.Contains(n, "deadbeef") })

	from, to := r.local(), filepath.Join(r.dir, "renamed")
	r.close()
	r.opt = func(o *Options) { o.LocalDir = to }
	r.open()
	r.begin(state.Report{})
	if left := r.files(); len(left) != 2 || !strings.Contains(left[0], "deadbeef") || !strings.Contains(left[1], "deadbeef") {
		t.Errorf("in %s are %v, want the two documents of the other trail", from, left)
	}
	for _, name := range ours {
		if _, err := os.Stat(filepath.Join(to, name)); err != nil {
			t.Errorf("%s did not move: %v", name, err)
		}
	}
}
