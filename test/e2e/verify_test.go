package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
	trailpkg "github.com/s3syncd/s3syncd/pkg/trail"
)

// verification is the part of verify --json that the tests look at.
type verification struct {
	Clean  bool `json:"clean"`
	Trails []struct {
		Unchecked int64     `json:"unchecked"`
		First     *finding  `json:"first"`
		Findings  []finding `json:"findings"`
		Notes     []finding `json:"notes"`
		Chains    []struct {
			HeadSHA256   string   `json:"head_sha256"`
			Signed       int64    `json:"signed"`
			AnchoredTo   uint64   `json:"anchored_to"`
			LastSequence uint64   `json:"last_sequence"`
			SignedBy     []string `json:"signed_by"`
		} `json:"chains"`
		Objects *struct {
			Compared   int64 `json:"compared"`
			Downloaded int64 `json:"downloaded"`
		} `json:"objects"`
		Directory *struct {
			Files int64 `json:"files"`
		} `json:"directory"`
	} `json:"trails"`
}

type finding struct {
	Kind   string `json:"kind"`
	Key    string `json:"key"`
	Detail string `json:"detail"`
}

func kinds(list []finding) []string {
	var k []string
	for _, f := range list {
		k = append(k, f.Kind)
	}
	slices.Sort(k)
	return slices.Compact(k)
}

// verify runs one verification and returns what --json says.
func (s *site) verify(t *testing.T, want int, args ...string) (v verification) {
	t.Helper()
	code, out, errs := command(t, s.env, append([]string{"verify", "--json"}, args...)...)
	if code != want {
		t.Fatalf("verify %v = %d, want %d:\n%s%s", args, code, want, tail(out, 4000), tail(errs, 4000))
	}
	if code == 1 || code == 2 {
		return v
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v.Trails) == 0 {
		t.Fatalf("verify --json: %v\n%s", err, out)
	}
	return v
}

// fromBucket are the flags of a verification that knows the bucket alone.
func (s *site) fromBucket(args ...string) []string {
	return append([]string{"--bucket", s.bucket.bucket, "--prefix", s.bucket.prefix, "--endpoint-url", s.proxy.URL, "--region", s3test.Region}, args...)
}

func (s *site) wantFindings(t *testing.T, v verification, found ...string) {
	t.Helper()
	if got := kinds(v.Trails[0].Findings); !slices.Equal(got, found) || v.Clean != (len(found) == 0) {
		t.Errorf("found %+v, want %v; notes %+v", v.Trails[0].Findings, found, v.Trails[0].Notes)
	}
}

func (s *site) put(t *testing.T, key string, body []byte, meta map[string]string) {
	t.Helper()
	if _, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: &key, Body: bytes.NewReader(body), Metadata: meta,
		ServerSideEncryption: types.ServerSideEncryptionAwsKms, SSEKMSKeyId: &s.key,
	}); err != nil {
		t.Fatal(err)
	}
}

func (s *site) remove(t *testing.T, key string) {
	t.Helper()
	if _, err := s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}
}

// trailKey returns the first key under the trail that contains part.
func (s *site) trailKey(t *testing.T, part string) string {
	t.Helper()
	for _, k := range s.bucket.keys(t, true) {
		if strings.Contains(k, "/_manifests/") && strings.Contains(k, part) {
			return k
		}
	}
	t.Fatalf("no document %s", part)
	return ""
}

func TestVerifyChecksTrailObjectsAndTree(t *testing.T) {
	s := newSite(t, "", "").versioned(t)
	for i := range 12 {
		write(t, s.path(fmt.Sprintf("dir/%02d \u2713", i)), strings.Repeat("x", i))
	}
	s.mustSync(t, 12, 0, 0)
	write(t, s.path("dir/more"), "more")
	s.mustSync(t, 1, 12, 0)

	v := s.verify(t, 0, "-c", s.file, "--remote", "--deep", "all", "--source")
	s.wantFindings(t, v)
	tr := v.Trails[0]
	if !slices.Equal(kinds(tr.Notes), []string{"stopped", "unsigned"}) || tr.Objects.Compared != 13 || tr.Objects.Downloaded != 13 || tr.Directory.Files != 13 || tr.Chains[0].AnchoredTo != tr.Chains[0].LastSequence {
		t.Errorf("with everything: %+v", tr)
	}
	// From the bucket alone nothing knows the newest digest, until it is named.
	v = s.verify(t, 0, s.fromBucket()...)
	if got := kinds(v.Trails[0].Notes); !slices.Equal(got, []string{"stopped", "tail-unanchored", "unsigned"}) {
		t.Errorf("from the bucket alone: notes %+v", v.Trails[0].Notes)
	}
	head := v.Trails[0].Chains[0].HeadSHA256
	if v = s.verify(t, 0, s.fromBucket("--expect-head", head)...); slices.Contains(kinds(v.Trails[0].Notes), "tail-unanchored") {
		t.Errorf("with its head: %+v", v.Trails[0].Notes)
	}
	s.wantFindings(t, s.verify(t, 3, s.fromBucket("--expect-head", strings.Repeat("0", 64))...), "anchor")
	s.verify(t, 2, s.fromBucket("--expect-head", "0")...)
	s.verify(t, 1, "--bucket", s.bucket.bucket, "--prefix", "none", "--endpoint-url", s.proxy.URL, "--region", s3test.Region)

	// The local copies alone, wherever they are.
	v = s.verify(t, 0, "--offline", filepath.Join(s.state, "manifests"))
	if v.Trails[0].Chains[0].HeadSHA256 != head {
		t.Errorf("offline: %+v", v.Trails[0])
	}

	code, out, errs := command(t, s.env, "verify", "-c", s.file, "--remote")
	if code != 0 || !strings.Contains(out, "Findings: 0\n") || !strings.Contains(out, "head "+head) {
		t.Errorf("as text: %d\n%s%s", code, out, errs)
	}
	s.breakThings(t)
}

// breakThings changes trail, objects and tree behind the back of s3syncd, one by
// one, and expects each to be named.
func (s *site) breakThings(t *testing.T) {
	t.Helper()
	write(t, s.path("dir/more"), "less")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.path("dir/more"), old, old); err != nil {
		t.Fatal(err)
	}
	if v := s.verify(t, 0, "-c", s.file, "--source"); !slices.Equal(kinds(v.Trails[0].Notes), []string{"changed-since", "stopped", "unsigned"}) {
		t.Errorf("a changed file: %+v", v.Trails[0].Notes)
	}
	if err := os.Remove(s.path("dir/more")); err != nil {
		t.Fatal(err)
	}
	s.wantFindings(t, s.verify(t, 3, "-c", s.file, "--source"), "source")

	key := func(i int) string { return s.bucket.prefix + fmt.Sprintf("/dir/%02d \u2713", i) }
	s.remove(t, key(1))
	body, got := s.bucket.get(t, key(2))
	meta := got.Metadata
	s.put(t, key(2), body, meta) // The same content and metadata under another version.
	meta["s3syncd-id"] = "ghost/ffffffff/1"
	s.put(t, key(3), []byte("xxx"), meta)
	s.put(t, s.bucket.prefix+"/foreign", []byte("x"), nil)
	v := s.verify(t, 3, "-c", s.file, "--remote")
	s.wantFindings(t, v, "object-chain", "object-missing", "object-version")
	if !slices.Contains(kinds(v.Trails[0].Notes), "foreign-object") {
		t.Errorf("a foreign object: %+v", v.Trails[0].Notes)
	}
	manifest := s.trailKey(t, "/manifest_")
	data, _ := s.bucket.get(t, manifest)
	s.put(t, manifest, bytes.Replace(data, []byte("more"), []byte("m0re"), 1), nil)
	data[len(data)/2] ^= 1
	s.put(t, manifest, data, nil)
	v = s.verify(t, 3, "-c", s.file)
	s.wantFindings(t, v, "manifest-hash")
	if v.Trails[0].First == nil || v.Trails[0].First.Key != manifest {
		t.Errorf("first: %+v", v.Trails[0].First)
	}
	v = s.verify(t, 3, s.fromBucket("--remote")...)
	if got := kinds(v.Trails[0].Findings); !slices.Contains(got, "noncurrent-version") || !slices.Contains(got, "manifest-hash") {
		t.Errorf("versions: %+v", v.Trails[0].Findings)
	}
	s.remove(t, manifest)
	v = s.verify(t, 3, s.fromBucket("--remote")...)
	if got := kinds(v.Trails[0].Findings); !slices.Contains(got, "delete-marker") || !slices.Contains(got, "manifest-missing") {
		t.Errorf("a deleted manifest: %+v", v.Trails[0].Findings)
	}
}

func TestAnAnchorNoticesThatTheEndIsGone(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	s.mustSync(t, 1, 0, 0)
	anchor := filepath.Join(filepath.Dir(s.file), "anchor.json")
	s.verify(t, 0, s.fromBucket("--anchor", anchor)...)
	s.wantFindings(t, s.verify(t, 3, s.fromBucket("--max-age", "1ns")...), "stopped")
	before, err := os.ReadFile(anchor)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.path("b"), "b")
	s.mustSync(t, 1, 1, 0)
	s.verify(t, 0, s.fromBucket("--anchor", anchor)...)
	after, err := os.ReadFile(anchor)
	if err != nil || bytes.Equal(before, after) {
		t.Errorf("the anchor was not brought up to date: %v", err)
	}
	var last string
	for _, k := range s.bucket.keys(t, true) {
		if strings.Contains(k, "/digest_") {
			last = max(last, k)
		}
	}
	s.remove(t, last)
	s.wantFindings(t, s.verify(t, 3, s.fromBucket("--anchor", anchor)...), "anchor")
	if again, err := os.ReadFile(anchor); err != nil || !bytes.Equal(again, after) {
		t.Errorf("a verification with findings changed the anchor: %v", err)
	}
	// The host itself knows, too: its state says that nothing waits.
	s.wantFindings(t, s.verify(t, 3, "-c", s.file), "anchor")
}

// Whoever can write the bucket takes the newest digest away and adds a chain
// that says it follows what is left, or digests from the future.
func TestAForgedChainExcusesNothing(t *testing.T) {
	s := newSite(t, "", "")
	anchor := filepath.Join(filepath.Dir(s.file), "anchor.json")
	var digests []string
	for i := range 3 {
		write(t, s.path(strconv.Itoa(i)), "x")
		s.mustSync(t, 1, i, 0)
	}
	s.verify(t, 0, s.fromBucket("--anchor", anchor)...)
	for _, k := range s.bucket.keys(t, true) {
		if strings.Contains(k, "/digest_") {
			digests = append(digests, k)
		}
	}
	slices.Sort(digests)
	last := digests[len(digests)-1]
	newest, _ := s.bucket.get(t, last)
	left, _ := s.bucket.get(t, digests[len(digests)-2])
	s.remove(t, last)

	var d trailpkg.Digest
	if err := json.Unmarshal(left, &d); err != nil {
		t.Fatal(err)
	}
	forge := func(chain string, change func(*trailpkg.Digest)) string {
		f := d
		f.Chain, f.Sequence, f.PreviousDigestS3Key, f.PreviousDigestSHA256 = chain, 1, nil, nil
		f.Manifests, f.Counts, f.Begins, f.AbandonsChain = nil, trailpkg.Counts{}, archive.BeginsStateLost, d.Chain
		f.AbandonsDigestSHA256 = fmt.Sprintf("%x", sha256.Sum256(left))
		if change != nil {
			change(&f)
		}
		data, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := trailpkg.ParseName(last)
		n.Chain, n.Sequence = chain, 1
		key := last[:strings.LastIndexByte(last, '/')+1] + n.String()
		s.put(t, key, data, nil)
		return key
	}
	forged := forge("0badc0de", nil)
	for _, args := range [][]string{{"-c", s.file}, s.fromBucket("--anchor", anchor)} {
		if v := s.verify(t, 3, args...); !slices.Contains(kinds(v.Trails[0].Findings), "anchor") {
			t.Errorf("%v: %+v", args, v.Trails[0].Findings)
		}
	}
	// The state alone knows it as well.
	copies := filepath.Join(s.state, "manifests")
	if err := os.Rename(copies, copies+".away"); err != nil {
		t.Fatal(err)
	}
	if v := s.verify(t, 3, "-c", s.file); !slices.Contains(kinds(v.Trails[0].Findings), "anchor") {
		t.Errorf("without copies: %+v", v.Trails[0].Findings)
	}
	if err := os.Rename(copies+".away", copies); err != nil {
		t.Fatal(err)
	}
	if v := s.verify(t, 0, s.fromBucket()...); !slices.Contains(kinds(v.Trails[0].Notes), "abandoned-chain") {
		t.Errorf("without anything that knows better: %+v", v.Trails[0].Notes)
	}
	// The end is back: the chain that says it follows it is found by the host.
	s.put(t, last, newest, nil)
	if v := s.verify(t, 3, "-c", s.file); !slices.Contains(kinds(v.Trails[0].Findings), "abandoned-chain") {
		t.Errorf("a made-up chain: %+v", v.Trails[0].Findings)
	}
	s.remove(t, forged)
	s.wantFindings(t, s.verify(t, 0, "-c", s.file))
	forge("0badc0de", func(f *trailpkg.Digest) {
		due := "2099-01-01T01:00:00Z"
		f.AbandonsChain, f.AbandonsDigestSHA256, f.Begins = "", "", archive.BeginsNew
		f.EndTime, f.NextDigestDue, f.Reason = "2099-01-01T00:00:00Z", &due, trailpkg.ReasonInterval
	})
	s.wantFindings(t, s.verify(t, 3, s.fromBucket()...), "time")
}

// Two hosts that archive as one show on each of them, and to whoever reads the
// bucket alone, for as long as both go on.
func TestVerifyFindsTwoHostsByOneName(t *testing.T) {
	a := newSite(t, "", "")
	write(t, a.path("a"), "a")
	a.mustSync(t, 1, 0, 0)
	b := a.second(t, "test-01", t.TempDir())
	write(t, b.path("b"), "b")
	b.mustSync(t, 1, 0, 0)
	// The second took over, and the first has not gone on.
	a.wantFindings(t, b.verify(t, 0, "-c", b.file))
	a.wantFindings(t, a.verify(t, 3, "-c", a.file), "abandoned-chain")
	write(t, a.path("a"), "changed")
	a.mustSync(t, 1, 0, 0)
	for _, args := range [][]string{{"-c", a.file}, {"-c", b.file}, a.fromBucket()} {
		a.wantFindings(t, a.verify(t, 3, args...), "abandoned-chain")
	}
}

// What changed a moment ago is no finding, though the daemon publishes once an
// hour: it is asked to do it before anything is compared.
func TestVerifyBesideADaemonFindsNothingInWhatJustChanged(t *testing.T) {
	s := newSite(t, "", "manifest: {flush_interval: 1h, digest_interval: 1h}")
	for i := range 5 {
		write(t, s.path(fmt.Sprintf("dir/%d", i)), "old")
	}
	d := s.daemon(t)
	s.mustFlush(t)
	for round := range 3 {
		write(t, s.path("dir/0"), fmt.Sprint("changed ", round))
		write(t, s.path(fmt.Sprint("new/", round)), "new")
		if err := os.Remove(s.path(fmt.Sprint("dir/", round+1))); err != nil {
			t.Fatal(err)
		}
		v := s.verify(t, 0, "-c", s.file, "--remote", "--deep", "all", "--source")
		s.wantFindings(t, v)
		if got := kinds(v.Trails[0].Notes); !slices.Equal(got, []string{"unsigned"}) {
			t.Errorf("round %d: noted %+v", round, v.Trails[0].Notes)
		}
	}
	d.stop(t)
}

func TestKMSSignsAndAnnouncesANewKey(t *testing.T) {
	s := newSite(t, "", "manifest: {sign: 'kms:alias/trail'}")
	f := s3test.NewFakeKMS(t)
	f.Key(t, "first", "alias/trail")
	second := f.Key(t, "second", "")
	s.env = append(slices.Clone(s.env), "AWS_ENDPOINT_URL_KMS="+f.URL)

	// A key service that is down holds up nothing.
	f.Fail(func(string) (int, string) { return 500, "KMSInternalException" })
	write(t, s.path("a"), "a")
	s.mustSync(t, 1, 0, 0)
	v := s.verify(t, 0, "-c", s.file)
	if !slices.Equal(kinds(v.Trails[0].Notes), []string{"stopped", "unsigned"}) {
		t.Errorf("without signatures: %+v", v.Trails[0].Notes)
	}
	f.Fail(nil)
	write(t, s.path("b"), "b")
	s.mustSync(t, 1, 1, 0)
	v = s.verify(t, 0, "-c", s.file)
	c := v.Trails[0].Chains[0]
	if c.Signed != int64(c.LastSequence) || len(c.SignedBy) != 1 {
		t.Errorf("signatures did not follow: %+v", c)
	}
	public := filepath.Join(filepath.Dir(s.file), "public.pem")
	data, _ := s.bucket.get(t, s.trailKey(t, "keys/"+c.SignedBy[0]+".pem"))
	write(t, public, string(data))
	s.wantFindings(t, s.verify(t, 0, s.fromBucket("--public-key", public)...))

	// The next key is announced by the one before, so that the first stays enough.
	s.configure(t, "", "manifest: {sign: 'kms:"+second+"'}")
	write(t, s.path("c"), "c")
	s.mustSync(t, 1, 2, 0)
	v = s.verify(t, 0, s.fromBucket("--public-key", public)...)
	s.wantFindings(t, v)
	if c := v.Trails[0].Chains[0]; len(c.SignedBy) != 2 || c.Signed != int64(c.LastSequence) {
		t.Errorf("after the change: %+v", c)
	}
	s.remove(t, s.trailKey(t, ".announced-by-"))
	s.wantFindings(t, s.verify(t, 3, s.fromBucket("--public-key", public)...), "foreign-key")
}

// lockedSite is a site whose bucket has Object Lock.
func lockedSite(t *testing.T, extra string, retention *types.DefaultRetention) *site {
	t.Helper()
	s := newSite(t, "", extra)
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true, ObjectLock: true})
	if retention != nil {
		if _, err := s.bucket.client.PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{
			Bucket: &s.bucket.bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{
				ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: &types.ObjectLockRule{DefaultRetention: retention},
			},
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.configure(t, "", extra)
	return s
}

func TestTheTrailIsLockedAndTheCanaryIsNot(t *testing.T) {
	for _, c := range []struct {
		name, extra string
		retention   *types.DefaultRetention
		mode        types.ObjectLockRetentionMode
		days        int
	}{
		{"governance", "manifest: {object_lock: {mode: GOVERNANCE, days: 3}}", nil, types.ObjectLockRetentionModeGovernance, 3},
		{"compliance for ten years", "manifest: {object_lock: {mode: COMPLIANCE, days: 3650}}", nil, types.ObjectLockRetentionModeCompliance, 3650},
		{"the bucket's default", "", &types.DefaultRetention{Mode: types.ObjectLockRetentionModeGovernance, Days: aws.Int32(2)}, types.ObjectLockRetentionModeGovernance, 2},
		{
			"ours before the bucket's default", "manifest: {object_lock: {mode: COMPLIANCE, days: 5}}",
			&types.DefaultRetention{Mode: types.ObjectLockRetentionModeGovernance, Days: aws.Int32(2)}, types.ObjectLockRetentionModeCompliance, 5,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := lockedSite(t, c.extra, c.retention)
			write(t, s.path("a"), "a")
			s.mustSync(t, 1, 0, 0)
			checked := 0
			for _, key := range s.bucket.keys(t, true) {
				if !strings.Contains(key, "/_manifests/") || strings.Contains(key, "/.canary/") {
					continue
				}
				s.wantLocked(t, key, c.mode, c.days)
				checked++
			}
			if checked < 3 {
				t.Errorf("only %d documents", checked)
			}
			if c.retention == nil {
				_, err := s.bucket.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/a")})
				if err == nil {
					t.Error("data is locked, too")
				}
			}
			// Delete markers hide documents; verify names them, and the locked versions stay.
			s.wantFindings(t, s.verify(t, 0, "-c", s.file, "--remote"))
			manifest := s.trailKey(t, "/manifest_")
			s.remove(t, manifest)
			v := s.verify(t, 3, "-c", s.file, "--remote")
			if got := kinds(v.Trails[0].Findings); !slices.Contains(got, "delete-marker") || !slices.Contains(got, "manifest-missing") {
				t.Errorf("found %+v", v.Trails[0].Findings)
			}
		})
	}
}

// wantLocked checks a document's retention, and that its version cannot be
// deleted.
func (s *site) wantLocked(t *testing.T, key string, mode types.ObjectLockRetentionMode, days int) {
	t.Helper()
	head, err := s.bucket.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.bucket.bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.bucket.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{Bucket: &s.bucket.bucket, Key: &key, VersionId: head.VersionId})
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	until := aws.ToTime(r.Retention.RetainUntilDate)
	wanted := head.LastModified.AddDate(0, 0, days)
	if r.Retention.Mode != mode || until.Before(wanted.Add(-25*time.Hour)) || until.After(wanted.Add(25*time.Hour)) || string(head.ObjectLockMode) != string(mode) {
		t.Errorf("%s is kept as %s until %s, want %s until about %s", key, r.Retention.Mode, until, mode, wanted)
	}
	_, err = s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: &key, VersionId: head.VersionId})
	if err == nil {
		t.Errorf("a locked version of %s was deleted", key)
	}
}
