package pipeline

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// No document of the trail is sent before the destination has proven that it
// encrypts: not before its canary, not after an answer
// without the key.
func TestNoDocumentIsSentBeforeTheCanaryHasPassed(t *testing.T) {
	fake := s3test.NewFake(t, "bucket")
	fake.Setenv(t)
	store, err := s3store.Open(t.Context(), s3store.Options{
		Region: "us-east-1", EndpointURL: fake.URL, PathStyle: true, Bucket: "bucket", Prefix: "p", Instance: "i", KMSKeyID: s3test.FakeKeyARN, SSE: "aws:kms",
		Log: zap.NewNop(), Metrics: s3conn.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	db, err := state.Open(t.TempDir(), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	st, err := db.Source(t.Context(), state.SourceKey{Bucket: "bucket", Prefix: "p", RealPath: dir})
	if err != nil {
		t.Fatal(err)
	}
	s := &Source{Store: store, Session: &Session{}}
	s.Config.Name = "s"
	send := func() error {
		body := []byte("{}")
		_, err := publisher{s}.CreateDoc(t.Context(), "p/_manifests/x.json", bytes.NewReader(body), 2, md5.Sum(body), sha256.Sum256(body), "application/json")
		return err
	}
	pool := func(proven bool) {
		p, err := uploader.New(queue.New(1), []uploader.Source{{
			Name: "s", Instance: "i", Bucket: "bucket", RealPath: dir, Mapper: archive.NewMapper("p"), Root: safefs.NewRoot(dir, safefs.RootOptions{}),
			Objects: store, Multipart: store, State: st, Proven: proven, ProvenAt: time.Now(), Hardlinks: safefs.LinksAllow, Deletes: archive.DeletesKeep,
			Accept: func(archive.Object) archive.KeyVerdict { return archive.KeyOK },
		}}, uploader.Options{Workers: 1, PartSize: 5 << 20, SinglePutMax: 5 << 20, MemoryLimit: 32 << 20, Log: zap.NewNop(), Metrics: uploader.NewMetrics(prometheus.NewRegistry())})
		if err != nil {
			t.Fatal(err)
		}
		s.Pool = p
	}
	wantNone := func(when string) {
		t.Helper()
		if err := send(); err == nil {
			t.Errorf("%s a document was sent", when)
		}
		if _, ok := fake.Object("bucket", "p/_manifests/x.json"); ok {
			t.Errorf("%s a document is in the bucket", when)
		}
	}
	pool(false)
	wantNone("before the canary")
	pool(true)
	s.Pool.Distrust("s", archive.Classified(archive.ClassEncryption, "PutObject", errUnproven))
	wantNone("after an answer without the key")
	pool(true)
	if err := send(); err != nil {
		t.Errorf("after the canary: %v", err)
	}
	if _, ok := fake.Object("bucket", "p/_manifests/x.json"); !ok {
		t.Error("the document is not in the bucket")
	}
}
