package manifest

import (
	"testing"
	"time"

	anchorpkg "github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// A digest is believed where a head or a signed digest leads to it, in its
// place, and what is copied under other names changes nothing.
func TestWhatIsVouchedForIsBelieved(t *testing.T) {
	s := publishTrail(t, 5, nil)
	digests := s.documents("digest_")
	sha := func(i int) string { return hexSHA(s.objects[digests[i]]) }
	at := func(v *verify.Result, i int) bool { return v.Vouched.Believe("app-01", s.chain, uint64(i+1), sha(i)) }
	believed := func(v *verify.Result) (n int) {
		for i := range digests {
			if at(v, i) {
				n++
			}
		}
		return n
	}
	anchor := func(i int) []anchorpkg.Anchor {
		return []anchorpkg.Anchor{{Instance: "app-01", Chain: s.chain, Sequence: uint64(i + 1), SHA256: sha(i)}}
	}
	from := func(last int) trail.Library { // Signed up to the digest last.
		return s.library(func(o map[string][]byte) {
			for i := range digests {
				if i != last {
					delete(o, sigOf(digests[i]))
				}
			}
		})
	}
	for _, row := range []struct {
		name string
		l    trail.Library
		o    func(*verify.Options)
		want int
		any  bool
	}{
		{"nothing given", s.library(nil), func(o *verify.Options) { o.Keys, o.Anchors = nil, nil }, 0, false},
		{"a key", s.library(nil), func(o *verify.Options) { o.Anchors = nil }, 6, true},
		{"a key, one signature", from(2), func(o *verify.Options) { o.Anchors = nil }, 3, true},
		{"a key and a later head", from(2), func(o *verify.Options) { o.Anchors = anchor(5) }, 3, true},
		{"a head", s.library(nil), func(o *verify.Options) { o.Keys, o.Anchors = nil, anchor(3) }, 4, true},
		{"a head that is not there", s.library(nil), func(o *verify.Options) { o.Keys, o.Anchors = nil, []anchorpkg.Anchor{{SHA256: sha(0)[:62] + "00"}} }, 0, true},
		{"a signed digest under the names of others", s.library(func(o map[string][]byte) {
			n, _ := trail.ParseName(digests[1])
			n.Time = n.Time.Add(-time.Second)
			fork := "p/_manifests/" + n.Path()
			o[fork], o[sigOf(fork)] = o[digests[4]], o[sigOf(digests[4])]
			delete(o, sigOf(digests[5]))
		}), func(o *verify.Options) { o.Anchors = nil }, 5, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := s.verify(t, row.l, row.o)
			if got := believed(v); got != row.want || v.Vouched.Anchored() != row.any {
				t.Errorf("%d digests are believed, want %d; anchored %v", got, row.want, v.Vouched.Anchored())
			}
			if v.Vouched.Believe("app-01", s.chain, 9, sha(0)) || v.Vouched.Believe("app-02", s.chain, 1, sha(0)) || v.Vouched.Believe("app-01", s.chain, 1, "") {
				t.Error("a digest is believed in a place that is not its own")
			}
		})
	}
}
