package e2e_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// pair is one daemon with two sources in one versioned bucket: one keeps what
// is removed, one is a mirror.
type pair struct {
	keep, mirror *site
}

// newPair makes a pair. Files above 5 MiB are multipart uploads.
func newPair(t *testing.T) pair {
	t.Helper()
	s := newSite(t, "", "")
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true})
	m := *s
	m.dir, m.bucket.prefix = filepath.Join(filepath.Dir(s.dir), "mirror"), "backups/mirror"
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, src := range []struct {
		name string
		*site
		deletes string
	}{{"app", s, "keep"}, {"mirror", &m, "mirror\n  max_deletes: 100000"}} {
		sources = append(sources, fmt.Sprintf("- name: %s\n  path: %s\n  bucket: %s\n  prefix: %s\n  kms_key_id: %s\n  settle: 20ms\n  deletes: %s",
			src.name, src.dir, src.bucket.bucket, src.bucket.prefix, src.key, src.deletes))
	}
	write(t, s.file, yaml(s.proxy.URL, s.state, strings.Join(sources, "\n"),
		"upload: {part_size: 5MiB, single_put_max: 5MiB}\nmanifest: {flush_interval: 1s, digest_interval: 1s}"))
	return pair{keep: s, mirror: &m}
}

// writer changes both trees until it is stopped: small files, multipart ones,
// renames and removals.
func (p pair) writer(t *testing.T, seed uint64) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	done := make(chan struct{})
	for n, s := range []*site{p.keep, p.mirror} {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		large := bytes.Repeat([]byte("0123456789abcde\n"), (6<<20)/16)
		small := func() string { return s.path(fmt.Sprintf("d%d/f%d", rng.IntN(5), rng.IntN(40))) }
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				switch k := rng.IntN(40); {
				case i == 0 || k == 0:
					copy(large, fmt.Sprintf("%8d %d", i, n))
					write(t, s.path(fmt.Sprintf("large%d", rng.IntN(3))), string(large[:5<<20+1+rng.IntN(1<<20)]))
				case k < 4:
					_ = os.Rename(small(), small()) // Often there is nothing at that name.
				case k < 8:
					_ = os.Remove(small())
				default:
					write(t, small(), fmt.Sprintf("content %d of %d", i, n))
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

// lifeTime draws how long the daemon lives in this round: often it is killed
// while it recovers.
func lifeTime(rng *rand.Rand, round int) time.Duration {
	longest := [...]int{50, 200, 400, 900}[round%4]
	return time.Duration(rng.IntN(longest)) * time.Millisecond
}

func TestKillsAtAnyTimeLoseNothing(t *testing.T) {
	rounds := 20
	if thorough {
		rounds = 500
	}
	p := newPair(t)
	s := p.keep
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 99))
	stop := p.writer(t, seed)
	defer stop()
	for round := range rounds {
		d := newProcess(t, binary, s.env, "run", "-c", s.file)
		var hold *s3test.Fault
		if round%5 == 4 { // The server takes a write, and the kill comes before its answer.
			hold = s.proxy.Hold(s3test.Match{Op: []string{"PutObject", "CompleteMultipartUpload"}[round/5%2]})
		}
		if !d.start(t) {
			t.Fatal(d.err)
		}
		life := lifeTime(rng, round)
		if hold != nil {
			select {
			case <-hold.Arrived():
			case <-time.After(wait):
				t.Fatalf("no write in round %d", round)
			case <-d.done:
			}
			life = 0
		}
		select {
		case <-time.After(life):
		case <-d.done:
			t.Fatalf("seed %d, round %d: the daemon ended by itself:\n%s", seed, round, tail(d.stderr.String(), 3000))
		}
		d.kill(t)
		if hold != nil {
			hold.Release()
		}
	}
	stop()
	d := s.daemon(t)
	s.mustFlush(t)
	d.hangup(t) // What is gone from a mirror is for a scan to confirm.
	s.mustFlush(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.mustBeInSync(t) // It settles what the server took after it was asked, too.
	if log := d.stderr.String(); strings.Contains(log, "forked") || strings.Contains(log, "damaged") {
		t.Errorf("kills look like a damaged or copied state:\n%s", tail(log, 3000))
	}
	t.Logf("%s; %s", s.wantNothingLost(t), p.mirror.wantNothingLost(t))
	p.mirror.wantNoMore(t)
}
