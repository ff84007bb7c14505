package loopback

import (
	"context"
	"net"
	"testing"
)

func TestHostIsThisMachineOnly(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "localhost.": true, "minio.localhost": true, "a.b.localhost.": true,
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"": false, "localhost.example.com": false, "mylocalhost": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "127.0.0.1.nip.io": false,
		"::ffff:10.0.0.1": false, "minio.example.com": false,
	} {
		if got := Host(host); got != want {
			t.Errorf("Host(%q) = %v, want %v", host, got, want)
		}
	}
	for address, want := range map[string]bool{
		"127.0.0.1:9810": true, "[::1]:9810": true, "[::1]": true, "localhost:1": true, "minio.localhost": true, ":9810": false, "0.0.0.0:9810": false, "host:1": false,
	} {
		if got := Address(address); got != want {
			t.Errorf("Address(%q) = %v, want %v", address, got, want)
		}
	}
}

func TestNoNameServerIsAskedForLocalNames(t *testing.T) {
	for address, want := range map[string]string{
		"minio.localhost:9000": "localhost:9000", "localhost.:9000": "localhost:9000", "s3.example.com:443": "s3.example.com:443", "[::1]:1": "[::1]:1", "odd": "odd",
	} {
		dial := Dialer(func(_ context.Context, _, address string) (net.Conn, error) {
			if address != want {
				t.Errorf("dialed %q, want %q", address, want)
			}
			return nil, net.ErrClosed
		})
		if _, err := dial(t.Context(), "tcp", address); err != net.ErrClosed { //nolint:errorlint // Handed on as it is.
			t.Error(err)
		}
	}
}
