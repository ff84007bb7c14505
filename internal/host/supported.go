package host

import (
	"strings"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
)

// faultText is how much of an error a fault quotes, in runes.
const faultText = 400

// Supported names every setting of c that is part of the configuration's format
// but cannot be honored: what this release does not do yet is refused rather
// than ignored, and so is a key file that cannot be used. The error is
// config.Errors.
func Supported(c *config.Config) error {
	var faults config.Errors
	faults = append(faults, webFaults(c)...)
	if file, ok := strings.CutPrefix(c.Manifest.Sign, "ed25519:"); ok {
		if _, err := LoadKey(file, c); err != nil {
			faults = append(faults, c.Fault("manifest.sign", c.Manifest.Sign, "cannot be used: "+err.Error(), "ed25519:FILE of a PKCS #8 key that only its owner can read"))
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// webFaults judges the file that admin.web_config names. The page shows file
// names: where others than this machine reach it, they must say who they are.
func webFaults(c *config.Config) config.Errors {
	file := c.Admin.WebConfig
	if file == "" || c.Admin.Listen == "" {
		return nil
	}
	const accepted = "a file in the web-config format of Prometheus"
	w, err := admin.CheckWebConfig(file)
	switch {
	case err != nil:
		return config.Errors{c.Fault("admin.web_config", file, "cannot be used: "+admin.Plain(err.Error(), faultText), accepted)}
	case c.Admin.Page && !w.Authenticates && !c.Admin.Loopback():
		return config.Errors{c.Fault("admin.page", "true", "shows file names to whoever reaches "+c.Admin.Listen+": "+file+" asks nobody who they are",
			"true where admin.listen is a loopback address, or admin.web_config has basic_auth_users or verifies client certificates")}
	}
	return nil
}
