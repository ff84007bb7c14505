package s3store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// front stands before a fake and answers in its place where answer says so.
func front(t *testing.T, f *s3test.Fake, answer func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answer(w, r) {
			f.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL
}

func refuse(w http.ResponseWriter, r *http.Request, status int, code string) bool {
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(`<?xml version="1.0"?><Error><Code>` + code + `</Code><Message>no</Message></Error>`))
	}
	return true
}

// A host whose clock is hours off works, whichever request comes first: S3 says
// what time it is.
func TestAWrongClockIsPutRight(t *testing.T) {
	const ahead = 3 * time.Hour
	for _, first := range []string{s3conn.OpHead, s3conn.OpPut} {
		t.Run(first, func(t *testing.T) {
			f := s3test.NewFake(t, "bucket")
			f.Setenv(t)
			f.Behave(func(b *s3test.Behavior) { b.Clock = ahead })
			var skewed atomic.Int64
			address := front(t, f, func(w http.ResponseWriter, r *http.Request) bool {
				sent, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
				now := time.Now().Add(ahead)
				if err == nil && now.Sub(sent).Abs() < 15*time.Minute {
					return false
				}
				skewed.Add(1)
				w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
				return refuse(w, r, http.StatusForbidden, "RequestTimeTooSkewed")
			})
			s := openStore(t, options(address, "bucket", s3test.FakeKeyARN))
			for _, op := range []string{first, s3conn.OpPut, s3conn.OpHead} {
				var err error
				if op == s3conn.OpPut {
					_, err = s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{}))
				} else if _, err = s.Head(t.Context(), "data/missing"); errors.Is(err, fs.ErrNotExist) {
					err = nil
				}
				if err != nil {
					t.Errorf("%s: %v", op, err)
				}
			}
			if n := skewed.Load(); n < 1 || n > 4 {
				t.Errorf("%d requests were refused for their time, want the first ones only", n)
			}
		})
	}
}

// Credentials that the server takes for expired while the chain has newer ones
// cost an attempt, in whatever request they meet it.
func TestExpiredCredentialsAreRenewedWithinTheRequest(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	s3test.Credentials{}.Setenv(t)
	var serial, refused atomic.Int64
	serial.Store(1)
	id := func() string { return "KEY" + string(rune('A'+serial.Load())) }
	ecs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": id(), "SecretAccessKey": "s", "Token": "t", "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		})
	}))
	t.Cleanup(ecs.Close)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", ecs.URL)
	address := front(t, f, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.Header.Get("Authorization"), "Credential="+id()+"/") {
			return false
		}
		refused.Add(1)
		return refuse(w, r, http.StatusBadRequest, "ExpiredToken")
	})
	s := openStore(t, options(address, "bucket", s3test.FakeKeyARN))
	expire := func() {
		serial.Add(1)
		s.conn.Expire()
	}
	key, body := "data/m", bytes.Repeat([]byte("x"), 1<<10)
	expire()
	if _, err := s.Head(t.Context(), "data/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Head: %v, want absence", err)
	}
	expire()
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
		t.Errorf("Put: %v", err)
	}
	expire()
	upload := upload(t, s, key, body) // Create and one part.
	expire()
	if _, err := s.Complete(t.Context(), upload); err != nil {
		t.Errorf("Complete: %v", err)
	}
	expire()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Head(t.Context(), key); err != nil {
				t.Errorf("one of many: %v", err)
			}
		})
	}
	wg.Wait()
	if refused.Load() < 5 {
		t.Errorf("%d requests met expired credentials, want each kind to", refused.Load())
	}
}

// resolver is a DNS server on this host whose one name can be moved.
type resolver struct {
	conn net.PacketConn
	ip   atomic.Pointer[[4]byte]
	asks atomic.Int64
}

// fakeDNS makes every lookup of the test's process ask a resolver, which knows
// no name until it is told an address.
func fakeDNS(t *testing.T) *resolver {
	t.Helper()
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{conn: conn}
	done := make(chan struct{})
	go func() { defer close(done); r.serve() }()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		_ = conn.Close()
		<-done
	})
	return r
}

func (r *resolver) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		r.asks.Add(1)
		_, _ = r.conn.WriteTo(dnsAnswer(buf[:n], r.ip.Load()), from)
	}
}

// dnsAnswer answers the one question of a query: with an address of type A, with
// nothing for another type, and with NXDOMAIN where ip is nil.
func dnsAnswer(query []byte, ip *[4]byte) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // The root label, type and class.
	out := bytes.Clone(query[:end])
	const noError, noName, typeA = 0, 3, 1
	out[2], out[3] = 0x81, 0x80|noError // An answer, recursion desired and available.
	copy(out[6:12], make([]byte, 6))
	switch {
	case ip == nil:
		out[3] |= noName
	case query[end-3] == typeA:
		out[7] = 1
		out = append(out, 0xc0, 12, 0, typeA, 0, 1, 0, 0, 0, 1, 0, 4)
		out = append(out, ip[:]...)
	}
	return out
}

// listenOn starts a server for h at ip:port; port 0 is any.
func listenOn(t *testing.T, address string, h http.Handler) *httptest.Server {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Skipf("this host has no second loopback address with this port: %v", err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	srv.Start()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv
}

// A name that does not resolve is an outage, and one that moves is followed:
// when its old address refuses, and when it swallows everything.
func TestANameThatMovesIsFollowed(t *testing.T) {
	dns := fakeDNS(t)
	f, g := s3test.NewFake(t, "bucket"), s3test.NewFake(t, "bucket")
	f.Setenv(t)
	one := listenOn(t, "127.0.0.1:0", f)
	u, err := url.Parse(one.URL)
	if err != nil {
		t.Fatal(err)
	}
	listenOn(t, "127.0.0.2:"+u.Port(), g)
	o := options("http://s3.moving.test:"+u.Port(), "bucket", s3test.FakeKeyARN)
	o.AllowInsecure, o.Workers = true, 16
	s := openStore(t, o)
	if err := s.Ping(t.Context()); err == nil || archive.ClassOf(err) != archive.ClassTransient {
		t.Errorf("Ping without an address: %v (class %s), want transient", err, archive.ClassOf(err))
	}
	dns.ip.Store(&[4]byte{127, 0, 0, 1})
	if err := s.Ping(t.Context()); err != nil {
		t.Fatalf("Ping: %v", err)
	}
	const many = 12 // Connections that stay open.
	together := f.Hold(s3test.Match{Op: s3conn.OpHead, Times: many})
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() { _, _ = s.Head(t.Context(), "data/a") })
	}
	for range many {
		together.Wait(t)
	}
	together.Release()
	wg.Wait()
	hold := f.Stall(s3test.Match{Times: -1}) // The old address swallows what comes.
	dns.ip.Store(&[4]byte{127, 0, 0, 2})
	ping := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return s.Ping(ctx)
	}
	for i := 0; ping() != nil; i++ {
		if i > many/2 {
			t.Fatal("the old address is asked again and again")
		}
	}
	if n := len(g.Ledger()); n == 0 {
		t.Error("the new address got no request")
	}
	hold.Wait(t)
	hold.Release()
	if dns.asks.Load() < 3 {
		t.Errorf("the resolver was asked %d times", dns.asks.Load())
	}
}

// A bucket in another region is said to be there, and nothing goes there.
func TestAnotherRegionIsNamedAndNotFollowed(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
	}{{301, "PermanentRedirect"}, {400, "AuthorizationHeaderMalformed"}, {307, "TemporaryRedirect"}} {
		f, s := fakeStore(t, nil)
		other := s3test.NewFake(t, "bucket")
		for _, op := range []string{s3conn.OpHead, s3conn.OpPut, s3conn.OpGet} {
			f.Answer(s3test.Match{Op: op, Times: -1}, c.status, c.code, "X-Amz-Bucket-Region", "eu-central-1", "Location", other.URL+"/bucket/x")
		}
		_, perr := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{}))
		_, herr := s.Head(t.Context(), "data/a")
		rc, _, gerr := s.Get(t.Context(), "data/a")
		if gerr == nil {
			_ = rc.Close()
		}
		for op, err := range map[string]error{s3conn.OpPut: perr, s3conn.OpHead: herr, s3conn.OpGet: gerr} {
			if archive.ClassOf(err) != archive.ClassConfiguration || !strings.Contains(err.Error(), "eu-central-1") {
				t.Errorf("%s with %d: %v, want configuration and the region", op, c.status, err)
			}
		}
		if n := len(other.Ledger()); n != 0 {
			t.Errorf("the other host got %d requests", n)
		}
	}
}

func TestEveryThrottledAttemptIsTold(t *testing.T) {
	var told atomic.Int64
	f, s := fakeStore(t, func(o *Options) { o.OnThrottled = func() { told.Add(1) } })
	f.Answer(s3test.Match{Op: s3conn.OpPut}, 503, "SlowDown")
	f.Answer(s3test.Match{Op: s3conn.OpPut}, 429, "TooManyRequests")
	f.Answer(s3test.Match{Op: s3conn.OpHead}, 500, "InternalError")
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
		t.Errorf("Put at the third attempt: %v", err)
	}
	if _, err := s.Head(t.Context(), "data/a"); err != nil {
		t.Errorf("Head at the second attempt: %v", err)
	}
	if n := told.Load(); n != 2 {
		t.Errorf("told of %d throttled attempts, want 2", n)
	}
}
