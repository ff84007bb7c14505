package host

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/s3syncd/s3syncd/internal/config"
)

func put(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestThePageIsForThisMachineOrForThoseWhoSayWhoTheyAre(t *testing.T) {
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	put(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	const certs = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
	onlyTLS := put(t, filepath.Join(dir, "tls.yml"), []byte(certs))
	both := put(t, filepath.Join(dir, "both.yml"), []byte(certs+"basic_auth_users: {a: '"+string(hash)+"'}\n"))
	broken := put(t, filepath.Join(dir, "broken.yml"), []byte("tls_server: {}\n"))
	cases := []struct{ name, admin, want string }{
		{"loopback", "{page: true}", ""},
		{"loopback with TLS", "{page: true, web_config: " + onlyTLS + "}", ""},
		{"everybody, with passwords", "{page: true, listen: ':9810', web_config: " + both + "}", ""},
		{"everybody", "{page: true, listen: ':9810'}", "c.yaml:6:15: admin.page: shows file names to whoever reaches :9810"},
		{"everybody, with TLS only", "{page: true, listen: ':9810', web_config: " + onlyTLS + "}", "c.yaml:6:15: admin.page: \"true\" shows file names to whoever reaches :9810: " + onlyTLS + " asks nobody who they are"},
		{"metrics for everybody, with TLS only", "{listen: ':9810', web_config: " + onlyTLS + "}", ""},
		{"a broken file", "{web_config: " + broken + "}", "c.yaml:6:21: admin.web_config: "},
		{"no file", "{web_config: /nonexistent/web.yml}", "/nonexistent/web.yml"},
		{"a broken file for a listener that is off", "{listen: '', web_config: " + broken + "}", ""},
	}
	for _, c := range cases {
		text := "sources:\n  - path: /srv/a\n    bucket: my-bucket\n    prefix: a\n    kms_key_id: k\nadmin: " + c.admin + "\n"
		cfg, err := config.Parse("c.yaml", []byte(text), nil)
		if err == nil {
			err = Supported(cfg)
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want no fault", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
