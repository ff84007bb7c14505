package admin

import (
	"errors"
	"fmt"
	"log/slog" //nolint:depguard // The toolkit logs with it; what it says goes to the injected logger.
	"net"
	"net/http"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
)

// WebConfig is what a web configuration file protects.
type WebConfig struct {
	TLS bool
	// Authenticates: who asks must know a password, or have a certificate that
	// a known authority has signed.
	Authenticates bool
}

// CheckWebConfig reads the file, its certificates and its password hashes as
// the server will. The server reads them again for each connection and request,
// so that what changes in them needs no restart; a fault that comes later
// refuses connections or requests until it is mended.
func CheckWebConfig(file string) (WebConfig, error) {
	if err := web.Validate(file); err != nil {
		return WebConfig{}, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return WebConfig{}, err
	}
	var c struct {
		TLS   map[string]any `yaml:"tls_server_config"`
		Users map[string]any `yaml:"basic_auth_users"`
	}
	if err := yaml.Unmarshal(content, &c); err != nil {
		return WebConfig{}, fmt.Errorf("%s: tls_server_config and basic_auth_users are not maps", file) // The error would show the file.
	}
	w := WebConfig{TLS: len(c.TLS) > 0, Authenticates: len(c.Users) > 0}
	if c.TLS["client_auth_type"] == "RequireAndVerifyClientCert" {
		if c.TLS["client_ca"] == nil && c.TLS["client_ca_file"] == nil {
			return w, errors.New("client_auth_type RequireAndVerifyClientCert needs client_ca_file")
		}
		w.Authenticates = true
	}
	return w, nil
}

// serveWeb serves l until srv is shut down, with the TLS and the authentication
// of file, "" for neither.
func serveWeb(l net.Listener, srv *http.Server, file string, log *zap.Logger) error {
	if file == "" {
		return srv.Serve(l)
	}
	return web.Serve(l, srv, &web.FlagConfig{WebConfigFile: &file}, slog.New(zapslog.NewHandler(log.Core())))
}
