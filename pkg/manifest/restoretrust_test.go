package manifest

import (
	"context"
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/restore"
	"github.com/s3syncd/s3syncd/internal/signer"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// vouchedArchive is an archive of two digests whose second one somebody knows, or has
// signed, and that somebody else can write.
type vouchedArchive struct {
	*fakeArchive

	t       *testing.T
	first   [2]string // keys of manifest and digest
	head    string    // key
	signer  *signer.Ed25519
	options verify.Options
}

const vouchedChain0 = "0a0a0a0a"

func newVouchedArchive(t *testing.T) *vouchedArchive {
	t.Helper()
	a := &vouchedArchive{fakeArchive: newArchive(), t: t}
	m, d := a.add(t, "h", vouchedChain0, 1, true, nil, a.upload("one", "first", atTen))
	a.first = [2]string{m, d}
	_, a.head = a.add(t, "h", vouchedChain0, 2, true, nil, a.upload("two", "second", atEleven))
	a.options = verify.Options{Bucket: "b", Instance: "h", Now: trailStart.Add(3 * time.Hour)}
	return a
}

// anchor lets the second digest be known from elsewhere.
func (a *vouchedArchive) anchor() {
	a.options.Anchors = []anchor.Anchor{{Instance: "h", Chain: vouchedChain0, Sequence: 2, SHA256: hexSHA(a.objects[a.head]), From: "--anchor"}}
}

// key signs the second digest, and lets the key be known.
func (a *vouchedArchive) key() {
	a.sign(a.head)
	a.options.Keys = []*trail.PublicKey{publicKeyOf(a.t, a.signer)}
}

// sign puts a signature beside the digest under key.
func (a *vouchedArchive) sign(key string) {
	a.t.Helper()
	if a.signer == nil {
		path, _ := writeKey(a.t, 0o600)
		signer, err := signer.LoadEd25519(path)
		if err != nil {
			a.t.Fatal(err)
		}
		a.signer = signer
		a.set("p/_manifests/keys/"+fingerprintOf(a.signer)+".pem", publicPEM(a.signer))
	}
	algorithm, fingerprint, sig, err := a.signer.Sign(context.Background(), a.objects[key])
	if err != nil {
		a.t.Fatal(err)
	}
	data, err := (&trail.Signature{Algorithm: algorithm, PublicKeyFingerprint: fingerprint, Signature: base64.StdEncoding.EncodeToString(sig)}).Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	a.set(sigOf(key), data)
}

// run restores, and returns the names of the files that are there.
func (a *vouchedArchive) run() (files []string, sum restore.Summary) {
	a.t.Helper()
	dir := a.t.TempDir()
	_, sum, err := a.restore(a.t, dir, func(o *restore.Options) { o.Verify = &a.options })
	if err != nil {
		a.t.Fatalf("Restore = %+v, %v", sum, err)
	}
	return names(a.t, dir), sum
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// evil is the record of a file that nobody has archived.
func (a *vouchedArchive) evil(rel string) archive.Record {
	return a.upload(rel, "evil", atEleven, owned("4755", 0, 0))
}

// claim is a record of other content than the object has.
func (a *vouchedArchive) claim(rel string) archive.Record {
	good := a.objects["p/"+rel+"?"]
	r := a.evil(rel)
	a.set("p/"+rel+"?", good)
	return r
}

// forgeries are what somebody who can write the bucket adds to the trail.
func forgeries() map[string]func(a *vouchedArchive) {
	return map[string]func(a *vouchedArchive){
		"a chain that says it leaves the real one": func(a *vouchedArchive) {
			head := hexSHA(a.objects[a.head])
			a.add(a.t, "h", "ffffffff", 1, true, func(d *trail.Digest) {
				d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsStateLost, vouchedChain0, head
			}, a.evil("evil"), a.claim("two"))
		},
		"a chain of its own": func(a *vouchedArchive) { a.add(a.t, "h", "00000001", 1, true, nil, a.evil("evil")) },
		"a digest behind the head": func(a *vouchedArchive) {
			a.add(a.t, "h", vouchedChain0, 3, true, nil, a.evil("evil"), a.claim("two"))
		},
		"a digest of the future behind the head": func(a *vouchedArchive) {
			a.add(a.t, "h", vouchedChain0, 3, true, func(d *trail.Digest) { d.EndTime = "2099-01-01T00:00:00Z" }, a.evil("evil"))
		},
		"a manifest behind the head": func(a *vouchedArchive) { a.add(a.t, "h", vouchedChain0, 3, false, nil, a.evil("evil")) },
		"a digest in the place of the head": func(a *vouchedArchive) {
			a.heads[vouchedChain0] = hexSHA(a.objects[a.first[1]]) + " " + a.first[1]
			a.add(a.t, "h", vouchedChain0, 2, true, func(d *trail.Digest) { d.Reason = trail.ReasonFlush }, a.evil("evil"))
		},
		"a second first digest": func(a *vouchedArchive) {
			before := maps.Clone(a.objects)
			delete(a.heads, vouchedChain0)
			_, key := a.add(a.t, "h", vouchedChain0, 1, true, func(d *trail.Digest) { d.AbandonsChain = "00000000" }, a.evil("evil"))
			forged := a.objects[key]
			maps.Copy(a.objects, before)
			a.set(strings.Replace(key, "_1", "_0", 1), forged) // Dated earlier, so that it is listed first.
		},
	}
}

func TestRestoreWritesNothingThatNothingVouchesFor(t *testing.T) {
	for _, voucher := range []string{"anchor", "key"} {
		for name, forge := range forgeries() {
			t.Run(voucher+"/"+name, func(t *testing.T) {
				a := newVouchedArchive(t)
				if voucher == "key" {
					a.key()
				} else {
					a.anchor()
				}
				forge(a)
				files, sum := a.run()
				if slices.Contains(files, "evil") {
					t.Errorf("there is %q: forged bytes were restored", files)
				}
				if sum.FaultCount == 0 {
					t.Error("nothing is said of the forgery")
				}
			})
		}
	}
}

// What is vouched for is restored whole beside a forgery.
func TestRestoreOfWhatIsVouchedFor(t *testing.T) {
	for _, name := range []string{"", "a chain that says it leaves the real one", "a digest behind the head", "a digest of the future behind the head", "a manifest behind the head"} {
		a := newVouchedArchive(t)
		a.key()
		if name != "" {
			forgeries()[name](a)
		}
		files, sum := a.run()
		if !slices.Equal(files, []string{"one", "two"}) || (sum.FaultCount == 0) != (name == "") {
			t.Errorf("%q: there is %q, with %d faults %q", name, files, sum.FaultCount, sum.Faults)
		}
	}
}

// Documents that are missing make a shorter tree, and that is said.
func TestRestoreOfATrailWithGapsSaysSo(t *testing.T) {
	for _, anchored := range []bool{false, true} {
		for name, remove := range map[string]func(a *vouchedArchive){
			"a manifest":                func(a *vouchedArchive) { delete(a.objects, a.first[0]) },
			"a digest":                  func(a *vouchedArchive) { delete(a.objects, a.first[1]) },
			"a digest and its manifest": func(a *vouchedArchive) { delete(a.objects, a.first[0]); delete(a.objects, a.first[1]) },
			"another manifest's bytes":  func(a *vouchedArchive) { a.set(a.first[0], []byte("[]\n")) },
		} {
			a := newVouchedArchive(t)
			if anchored {
				a.anchor()
			}
			remove(a)
			files, sum := a.run()
			if !slices.Equal(files, []string{"two"}) || sum.FaultCount == 0 || len(sum.Faults) == 0 {
				t.Errorf("%s, anchored %v: there is %q, with the faults %q; want the other file and a fault", name, anchored, files, sum.Faults)
			}
		}
	}
	a := newVouchedArchive(t)
	a.anchor()
	delete(a.objects, a.head)
	if files, sum := a.run(); len(files) > 0 || sum.FaultCount == 0 {
		t.Errorf("without the head that is known: there is %q, with the faults %q", files, sum.Faults)
	}
}

// Without anything that vouches for the trail its own signatures are checked,
// and nothing from the future is believed.
func TestRestoreChecksSignaturesWithoutAKey(t *testing.T) {
	a := newVouchedArchive(t)
	a.sign(a.first[1])
	a.sign(a.head)
	_, key := a.add(t, "h", vouchedChain0, 3, true, nil, a.evil("evil"))
	a.sign(key)
	sig := a.objects[sigOf(key)]
	a.objects[sigOf(key)] = []byte(strings.Replace(string(sig), `"signature":"`, `"signature":"AAAA`, 1))
	if files, sum := a.run(); slices.Contains(files, "evil") || sum.FaultCount == 0 {
		t.Errorf("there is %q, with the faults %q; want nothing of the digest whose signature does not hold", files, sum.Faults)
	}
	a = newVouchedArchive(t)
	a.add(t, "h", vouchedChain0, 3, true, func(d *trail.Digest) { d.EndTime = "2099-01-01T00:00:00Z" }, a.evil("evil"))
	if files, sum := a.run(); slices.Contains(files, "evil") || sum.FaultCount == 0 {
		t.Errorf("there is %q, with the faults %q; want nothing of the future", files, sum.Faults)
	}
}

// A lost host is silent, and its last manifests have no digest: both are no
// fault where nothing vouches for the trail.
func TestRestoreOfALostHostIsNoFault(t *testing.T) {
	a := newVouchedArchive(t)
	a.add(t, "h", vouchedChain0, 3, false, nil, a.upload("three", "third", atEleven))
	a.options.Now = trailStart.Add(4 * time.Hour)
	if files, sum := a.run(); !slices.Equal(files, []string{"one", "three", "two"}) || sum.FaultCount > 0 || sum.Unproven != 1 {
		t.Errorf("there is %q, with %+v", files, sum)
	}
}

// A forged first digest of an older chain says that this chain follows the newer
// one, so that its records would be the newest.
func TestRestoreOrdersChainsByDigestsThatAreVouchedFor(t *testing.T) {
	a := &vouchedArchive{fakeArchive: newArchive(), t: t}
	version := func(v, text string) func(*archive.Record) {
		a.set("p/f?"+v, []byte(text))
		return func(r *archive.Record) { r.VersionID = v }
	}
	_, old := a.add(t, "h", vouchedChain0, 1, true, nil, a.upload("f", "old", atTen, version("v1", "old")))
	leave := func(chain, sha string) func(d *trail.Digest) {
		return func(d *trail.Digest) {
			d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsStateLost, chain, sha
		}
	}
	_, head := a.add(t, "h", "0b0b0b0b", 1, true, leave(vouchedChain0, hexSHA(a.objects[old])), a.upload("f", "new", atEleven, version("v2", "new")))
	forged := mustDigest(t, a.objects[old])
	leave("0b0b0b0b", hexSHA(a.objects[head]))(&forged)
	data, err := forged.Encode()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := trail.ParseName(old)
	n.Time = n.Time.Add(-time.Hour) // It is listed first.
	a.set("p/_manifests/"+n.Path(), data)
	dir := t.TempDir()
	_, sum, err := a.restore(t, dir, func(o *restore.Options) {
		o.Verify = &verify.Options{
			Bucket: "b", Instance: "h", Now: trailStart.Add(3 * time.Hour),
			Anchors: []anchor.Anchor{{Instance: "h", Chain: "0b0b0b0b", Sequence: 1, SHA256: hexSHA(a.objects[head]), From: "--anchor"}},
		}
	})
	if got, rerr := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "new" || sum.FaultCount == 0 {
		t.Errorf("the file holds %q (%v), Restore = %+v, %v; want the newer content, and a fault", got, rerr, sum, err)
	}
}

// Where a chain was left, what it had not named yet is in the chain that follows
// it: that is no fault.
func TestRestoreOfAChainThatWasLeftIsNoFault(t *testing.T) {
	a := &vouchedArchive{fakeArchive: newArchive(), t: t}
	_, old := a.add(t, "h", vouchedChain0, 1, true, nil, a.upload("one", "first", atTen))
	a.add(t, "h", vouchedChain0, 2, false, nil, a.upload("two", "second", atTen))
	_, head := a.add(t, "h", "0b0b0b0b", 1, true, func(d *trail.Digest) {
		d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsStateLost, vouchedChain0, hexSHA(a.objects[old])
	}, a.upload("two", "second", atEleven))
	a.options = verify.Options{
		Bucket: "b", Instance: "h", Now: trailStart.Add(3 * time.Hour),
		Anchors: []anchor.Anchor{{Instance: "h", Chain: "0b0b0b0b", Sequence: 1, SHA256: hexSHA(a.objects[head]), From: "--anchor"}},
	}
	if files, sum := a.run(); !slices.Equal(files, []string{"one", "two"}) || sum.FaultCount > 0 {
		t.Errorf("there is %q, with the faults %q", files, sum.Faults)
	}
}
