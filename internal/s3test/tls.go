package s3test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// caFiles is a private CA.
type caFiles struct {
	file string
	pool *x509.CertPool
}

// client returns an HTTP client that trusts the CA; a nil caFiles trusts the
// host's.
func (c *caFiles) client() *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 16}
	if c != nil {
		tr.TLSClientConfig = &tls.Config{RootCAs: c.pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: tr}
}

// writeCA makes a CA and a certificate for loopback addresses, and writes them
// where MinIO looks for them.
func writeCA(dir string) (*caFiles, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	caKey, ca, err := certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "s3syncd test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return nil, err
	}
	key, leaf, err := certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	c := &caFiles{file: filepath.Join(filepath.Dir(dir), "ca.pem"), pool: x509.NewCertPool()}
	c.pool.AddCert(ca)
	for name, block := range map[string]*pem.Block{
		c.file:                            {Type: "CERTIFICATE", Bytes: ca.Raw},
		filepath.Join(dir, "public.crt"):  {Type: "CERTIFICATE", Bytes: leaf.Raw},
		filepath.Join(dir, "private.key"): {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		if err := safefs.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	return c, nil
}

// certificate makes a key and a certificate that signer signs; a nil signer
// means itself.
func certificate(template, signer *x509.Certificate, signerKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, fmt.Errorf("make serial: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if signer == nil {
		signer, signerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parse certificate: %w", err)
	}
	return key, cert, nil
}
