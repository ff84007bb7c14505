package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/bcrypt"
)

// selfSigned writes a new certificate for loopback addresses, and its key, into
// dir, and returns it.
func selfSigned(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	put(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// put replaces a file at once, as tools that renew certificates do.
func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

const password = "correct horse battery staple"

func hashed(t *testing.T, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// protected runs a Server with a web configuration and a page, and returns its
// address.
func protected(t *testing.T, file string, log *zap.Logger) string {
	t.Helper()
	ok := func() error { return nil }
	s, err := Listen(t.Context(), Options{
		Listen: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Healthy: ok, WebConfig: file, Log: log,
		Page: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "names of files") }),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return s.Addr().String()
}

// tried sends one request over a new connection that trusts cert, nil for none.
func tried(t *testing.T, url string, cert *x509.Certificate, change func(*http.Request)) (int, string, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	if cert != nil {
		pool := x509.NewCertPool()
		pool.AddCert(cert)
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	change(req)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestWebConfigAsksForTLSAndAPassword(t *testing.T) {
	dir := t.TempDir()
	cert := selfSigned(t, dir)
	file := filepath.Join(dir, "web.yml")
	put(t, file, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nbasic_auth_users: {oncall: '"+hashed(t, password)+"'}\n")
	core, logs := observer.New(zap.DebugLevel)
	addr := protected(t, file, zap.New(core))
	as := func(user, pass string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, pass) }
	}
	nobody := func(*http.Request) {}
	for _, path := range []string{"/", "/metrics", "/-/healthy", "/-/ready"} {
		if code, body, err := tried(t, "https://"+addr+path, cert, as("oncall", password)); code != 200 || err != nil {
			t.Errorf("%s with the password = %d %q %v, want 200", path, code, body, err)
		}
		refused := map[string]func(*http.Request){"nobody": nobody, "a wrong password": as("oncall", "wrong")}
		if path == "/" { // It costs as much time as a real password.
			refused["an unknown user"] = as("root", password)
		}
		for name, change := range refused {
			code, body, err := tried(t, "https://"+addr+path, cert, change)
			if code != 401 || err != nil || strings.Contains(body, "names of files") {
				t.Errorf("%s as %s = %d %q %v, want 401", path, name, code, body, err)
			}
		}
	}
	if code, body, err := tried(t, "http://"+addr+"/", nil, as("oncall", password)); err == nil && (code == 200 || strings.Contains(body, "names of files")) {
		t.Errorf("in clear text = %d %q, want no answer", code, body)
	}
	if _, _, err := tried(t, "https://"+addr+"/", selfSigned(t, t.TempDir()), as("oncall", password)); err == nil {
		t.Error("the server has a certificate that it was not given")
	}
	for _, e := range logs.All() {
		if strings.Contains(e.Message, password) || strings.Contains(e.Message, "$2a$") {
			t.Errorf("the log has a secret: %s", e.Message)
		}
	}
	if logs.FilterMessageSnippet("TLS is enabled").Len() != 1 {
		t.Errorf("the log does not say that TLS is on: %v", logs.All())
	}
}

func TestRenewedCertificatesAndPasswordsNeedNoRestart(t *testing.T) {
	dir := t.TempDir()
	old := selfSigned(t, dir)
	file := filepath.Join(dir, "web.yml")
	const tlsPart = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
	put(t, file, tlsPart+"basic_auth_users: {oncall: '"+hashed(t, "first")+"'}\n")
	addr := protected(t, file, zap.NewNop())
	as := func(pass string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth("oncall", pass) }
	}
	if code, _, err := tried(t, "https://"+addr+"/", old, as("first")); code != 200 || err != nil {
		t.Fatalf("before = %d %v, want 200", code, err)
	}
	renewed := selfSigned(t, dir)
	put(t, file, tlsPart+"basic_auth_users: {oncall: '"+hashed(t, "second")+"'}\n")
	if code, _, err := tried(t, "https://"+addr+"/", renewed, as("second")); code != 200 || err != nil {
		t.Errorf("with what is new = %d %v, want 200", code, err)
	}
	if code, _, _ := tried(t, "https://"+addr+"/", renewed, as("first")); code != 401 {
		t.Errorf("with the old password = %d, want 401", code)
	}
	if _, _, err := tried(t, "https://"+addr+"/", old, as("second")); err == nil {
		t.Error("the old certificate is still served")
	}
}

func TestFaultsOfTheWebConfigAreNamed(t *testing.T) {
	dir := t.TempDir()
	selfSigned(t, dir)
	cases := []struct{ name, content, want string }{
		{"an unknown key", "tls_server: {}", "tls_server"},
		{"no key", "tls_server_config: {cert_file: cert.pem}", "key_file"},
		{"a certificate that is not there", "tls_server_config: {cert_file: none.pem, key_file: key.pem}", "none.pem"},
		{"a password in the clear", "basic_auth_users: {oncall: secret-in-the-clear}", "hash"},
		{"not YAML", "{", "yaml"},
		{"an authority that is not there", "tls_server_config: {cert_file: cert.pem, key_file: key.pem, client_auth_type: RequireAndVerifyClientCert}", "client_ca_file"},
	}
	for _, c := range cases {
		file := filepath.Join(dir, "web.yml")
		put(t, file, c.content)
		_, err := CheckWebConfig(file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: CheckWebConfig() = %v, want an error that names %s", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret-in-the-clear") {
			t.Errorf("%s: the error shows the password: %v", c.name, err)
		}
		ok := func() error { return nil }
		_, err = Listen(t.Context(), Options{Listen: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Healthy: ok, WebConfig: file, Log: zap.NewNop()})
		if err == nil || !strings.Contains(err.Error(), "admin.web_config") {
			t.Errorf("%s: Listen() = %v, want an error that names the key", c.name, err)
		}
	}
}

func TestWhatAWebConfigProtectsIsKnown(t *testing.T) {
	dir := t.TempDir()
	selfSigned(t, dir)
	const certs = "cert_file: cert.pem, key_file: key.pem"
	cases := []struct {
		content string
		want    WebConfig
	}{
		{"", WebConfig{}},
		{"basic_auth_users: {}", WebConfig{}},
		{"tls_server_config: {" + certs + "}", WebConfig{TLS: true}},
		{"basic_auth_users: {a: '" + hashed(t, "x") + "'}", WebConfig{Authenticates: true}},
		{"tls_server_config: {" + certs + ", client_auth_type: RequestClientCert}", WebConfig{TLS: true}},
		{"tls_server_config: {" + certs + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: cert.pem}", WebConfig{TLS: true, Authenticates: true}},
	}
	for _, c := range cases {
		file := filepath.Join(dir, "web.yml")
		put(t, file, c.content)
		if got, err := CheckWebConfig(file); err != nil || got != c.want {
			t.Errorf("CheckWebConfig(%s) = %+v %v, want %+v", c.content, got, err, c.want)
		}
	}
}

func TestNamesThatLeadHereFromOutsideAreRefused(t *testing.T) {
	addr := protected(t, "", zap.NewNop())
	cases := []struct {
		host string
		want int
	}{
		{"127.0.0.1", 200},
		{"127.0.0.1:9810", 200},
		{"localhost:9000", 200},
		{"LOCALHOST.", 200},
		{"a.localhost", 200},
		{"[::1]:80", 200},
		{"[::1]", 200},
		{"evil.example", 421},
		{"evil.example:9810", 421},
		{"127.0.0.1.evil.example", 421},
		{"localhost.evil.example", 421},
		{"10.0.0.1", 421},
		{"169.254.169.254", 421},
		{"[2001:db8::1]:80", 421},
		{"evillocalhost", 421},
	}
	for _, c := range cases {
		for _, path := range []string{"/", "/page/events", "/metrics"} {
			code, body, err := tried(t, "http://"+addr+path, nil, func(r *http.Request) { r.Host = c.host })
			if code != c.want || err != nil || code != 200 && strings.Contains(body, "names of files") {
				t.Errorf("%s as %s = %d %q %v, want %d", path, c.host, code, body, err, c.want)
			}
		}
	}
}

func TestPagesOfOtherSitesAreRefused(t *testing.T) {
	addr := protected(t, "", zap.NewNop())
	cases := []struct {
		site, mode, dest string
		want             int
	}{
		{"", "", "", 200},
		{"none", "navigate", "document", 200},
		{"same-origin", "cors", "empty", 200},
		{"cross-site", "navigate", "document", 200}, // A link in a wiki.
		{"cross-site", "cors", "empty", 403},
		{"cross-site", "no-cors", "script", 403},
		{"cross-site", "navigate", "iframe", 403},
		{"same-site", "cors", "empty", 403}, // Another port of localhost.
	}
	for _, c := range cases {
		code, body, err := tried(t, "http://"+addr+"/", nil, func(r *http.Request) {
			for name, v := range map[string]string{"Sec-Fetch-Site": c.site, "Sec-Fetch-Mode": c.mode, "Sec-Fetch-Dest": c.dest} {
				if v != "" {
					r.Header.Set(name, v)
				}
			}
		})
		if code != c.want || err != nil || code != 200 && strings.Contains(body, "names of files") {
			t.Errorf("%+v = %d %q %v", c, code, body, err)
		}
	}
}

func TestAConnectionWithoutARequestDoesNotHoldUpTheEnd(t *testing.T) {
	ok := func() error { return nil }
	s, err := Listen(t.Context(), Options{Listen: "127.0.0.1:0", Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Healthy: ok, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if code, _, err := tried(t, "http://"+s.Addr().String()+"/-/ready", nil, func(*http.Request) {}); code != 200 || err != nil { // It is accepted after the other.
		t.Fatalf("/-/ready = %d %v", code, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still there: %v", err)
	}
}

func TestAStopClosesOnlyConnectionsOnWhichNothingWasAsked(t *testing.T) {
	s := &silentConns{conns: map[net.Conn]struct{}{}}
	closed := func(c net.Conn) bool {
		if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil { // A closed pipe refuses it.
			return true
		}
		_, err := c.Write([]byte("x"))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	conns := make([]net.Conn, 4)
	for i := range conns {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		conns[i] = here
	}
	for _, c := range conns[:3] {
		s.note(c, http.StateNew)
	}
	s.note(conns[1], http.StateActive)
	s.note(conns[2], http.StateClosed)
	s.close()
	s.note(conns[3], http.StateNew)
	for i, want := range []bool{true, false, false, true} {
		if got := closed(conns[i]); got != want {
			t.Errorf("connection %d is closed: %v, want %v", i, got, want)
		}
	}
	if n := len(s.conns); n > 1 {
		t.Errorf("%d connections are remembered", n)
	}
}

func TestWhoNeverEndsARequestIsCutOff(t *testing.T) {
	t.Parallel() // It waits for the server's own limit.
	addr := protected(t, "", zap.NewNop())
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(body), "names of files") {
		t.Errorf("a request without an end = %q %v, want the connection closed", body, err)
	}
}
